"""Charts by matplotlib: curves with bands, means with intervals; as SVG for a page, or as a PNG file.

matplotlib is imported where a chart is made, so this module loads without it. The n-th of what a chart compares looks
alike in all charts: it has a dash and a mark as well as a colour, so that it can be told apart in black and white. The
colours are Okabe and Ito's, which colour-blind people can tell apart.
"""

import dataclasses
import io
import math
import textwrap
import types
from collections.abc import Sequence
from typing import Any

from janus_jax.errors import InputError

FAINT, LIGHT = '#57606a', '#d9dee3'
COLOURS = ('#000000', '#0072b2', '#d55e00', '#009e73', '#cc79a7', '#56b4e9', '#e69f00')
# On and off lengths in line widths; () is solid.
DASHES = ((), (7, 3), (2, 2), (10, 3, 2, 3), (4, 4), (12, 4))
MARKS = ('o', 's', '^', 'D', 'P')
WIDTH, HEIGHT, DPI = 4.6, 2.6, 200  # Inches. At 400 pixels of width a chart's text still has 10.
TITLE = 54  # Letters in a line.
STEPS = (1, 2, 5, 10)  # Ticks are these times a power of ten apart.
# Text stays text in an SVG, where a page can be searched; no name is taken for a formula; equal charts are equal files.
SETTINGS = {
  'font.size': 9, 'text.parse_math': False, 'axes.edgecolor': FAINT, 'axes.labelcolor': FAINT, 'grid.color': LIGHT,
  'axes.spines.top': False, 'axes.spines.right': False, 'xtick.color': FAINT, 'ytick.color': FAINT,
  'legend.frameon': False, 'legend.handlelength': 3.5, 'svg.fonttype': 'none', 'svg.hashsalt': 'janus_jax',
}  # fmt: skip
Figure = Any  # matplotlib.figure.Figure


@dataclasses.dataclass(frozen=True)
class Axis:
  """An axis: its label with the unit, whether it is logarithmic, and between which values it stays."""

  label: str
  log: bool = False
  limits: tuple[float, float] = (-math.inf, math.inf)


@dataclasses.dataclass(frozen=True)
class Series:
  """A curve through (x, y), and a band around it of (x, low, high). Points that are not finite are left out."""

  name: str
  points: Sequence[tuple[float, float | None]]
  band: Sequence[tuple[float, float, float]] = ()


@dataclasses.dataclass(frozen=True)
class Boundary:
  """Something that ends at an x, such as a stage of training; `numbers` are those of the series it ends for."""

  name: str
  x: float
  numbers: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of a chart of intervals: the mean of values, None without any, and its interval, None of one value."""

  label: str
  mean: float | None
  interval: tuple[float, float] | None
  values: Sequence[float]
  is_baseline: bool = False


def matplotlib() -> types.ModuleType:
  """The package, with what charts need of it. Raises InputError where it is not installed."""
  try:
    import matplotlib.figure
    import matplotlib.ticker
  except ImportError as error:
    raise InputError(f'charts need matplotlib ({error}): pip install janus_jax[report]') from None
  return matplotlib


def style_of(number: int) -> dict[str, Any]:
  """Colour, dashes and marker of the n-th of several things: three properties with different periods."""
  names = ('color', COLOURS), ('dashes', DASHES), ('marker', MARKS)
  return {name: values[number % len(values)] for name, values in names}


def short(value: float, _: Any = None) -> str:
  """A number in at most four digits: 0.0025, 12, 3.2k, 1.5M."""
  for limit, unit in ((1e6, 'M'), (1e3, 'k')):
    if abs(value) >= limit:
      return f'{value / limit:.3g}{unit}'
  return f'{value:.3g}'


def line_chart(
  title: str, series: Sequence[Series], x: Axis, y: Axis, boundaries: Sequence[Boundary] = ()
) -> Figure | None:
  """Curves, with their names (or 'last') and last values below; None where all values are 0 or there are none.

  Args:
    title: of the chart.
    series: later ones over earlier ones; on a logarithmic axis without what is not above 0.
    x: horizontal axis.
    y: vertical axis.
    boundaries: dotted lines, with names at the top where there is room and the marks of their series.
  """
  kept = {number: _drawable(item.points, y.log) for number, item in enumerate(series)}
  kept = {number: points for number, points in kept.items() if points}
  if not any(value for points in kept.values() for _, value in points):
    return None
  with matplotlib().rc_context(SETTINGS):
    figure, axes = _figure(title, HEIGHT + 0.1 * len(kept))
    lines = []
    for number, points in kept.items():
      every = max(len(points) // 6, 1)  # About six marks, at other points than those of other curves.
      marked = {'markersize': 4.5, 'markevery': (number * every // len(series), every)}
      lines += axes.plot(*zip(*points), linewidth=1.3, **style_of(number), **marked)
      if series[number].band:
        axes.fill_between(*zip(*series[number].band), color=lines[-1].get_color(), alpha=0.15, linewidth=0)
    reach = [point for number, points in kept.items() for point in (*points, *series[number].band)]
    _set_scale(axes.xaxis, x, [*(point[0] for point in reach), *(item.x for item in boundaries)])
    _set_scale(axes.yaxis, y, [value for _, *values in reach for value in values if value > 0 or not y.log])
    _mark_boundaries(axes, boundaries)
    labels = [f'{series[number].name or "last"} {short(points[-1][1])}' for number, points in kept.items()]
    figure.legend(lines, labels, loc='outside lower left', ncols=2)
    return _laid_out(figure)


def interval_chart(title: str, rows: Sequence[Row], x: Axis) -> Figure | None:
  """A line per row: the mean as a mark and a number, its interval as a bar, values as strokes; the baseline's mean runs
  through all of them. None where all values are 0 or there are none.
  """
  if not any(value for row in rows for value in row.values):
    return None
  with matplotlib().rc_context(SETTINGS):
    figure, axes = _figure(title, 0.9 + 0.26 * len(rows))
    beside = {'va': 'center', 'transform': axes.get_yaxis_transform()}
    for y, row in enumerate(rows):
      if row.mean is None:
        axes.text(0.01, y, 'no value', color=FAINT, **beside)
        continue
      if row.is_baseline:
        axes.axvline(row.mean, color=FAINT, linewidth=0.8, linestyle='--')
      style = style_of(y)
      axes.plot(row.values, [y] * len(row.values), '|', color=FAINT, markersize=7)
      if row.interval:
        axes.plot(row.interval, [y, y], '-|', color=style['color'], markersize=10)
      axes.plot(row.mean, y, markersize=6, clip_on=False, **style)
      axes.text(1.02, y, short(row.mean), **beside)
    axes.set_yticks(range(len(rows)), [row.label for row in rows], color='black')
    for row, label in zip(rows, axes.get_yticklabels()):
      label.set_fontweight('bold' if row.is_baseline else 'normal')
    axes.set_ylim(len(rows) - 0.5, -0.5)
    _set_scale(axes.xaxis, x, [value for row in rows for value in (*row.values, *(row.interval or ()))])
    return _laid_out(figure)


def to_svg(figure: Figure) -> str:
  """An SVG document with its text as text."""
  file = io.StringIO()
  with matplotlib().rc_context(SETTINGS):
    figure.savefig(file, format='svg', metadata={'Date': None})
  return file.getvalue()


def save_chart(figure: Figure, path: str) -> None:
  """Writes a PNG file."""
  with matplotlib().rc_context(SETTINGS):
    figure.savefig(path, format='png', dpi=DPI)


def _drawable(points: Sequence[tuple[float, float | None]], log: bool) -> list[tuple[float, float]]:
  return [(x, y) for x, y in points if y is not None and math.isfinite(y) and (y > 0 or not log)]


def _figure(title: str, height: float) -> tuple[Figure, Any]:
  figure = matplotlib().figure.Figure((WIDTH, height), layout='constrained')
  figure.suptitle(textwrap.fill(title, TITLE), x=0.01, ha='left', fontsize=10, fontweight='bold')
  return figure, figure.add_subplot()


def _laid_out(figure: Figure) -> Figure:
  """Places everything once: left to itself, a figure does so twice for every file it is written to."""
  figure.draw_without_rendering()
  figure.set_layout_engine('none')
  return figure


def _set_scale(axis: Any, about: Axis, values: Sequence[float]) -> None:
  """Sets label, grid, limits with some room, and ticks; two or more of them have labels on a logarithmic axis too."""
  ticker, axes = matplotlib().ticker, axis.axes
  low, high = min(values), max(values)
  if about.log:
    axes.set(**{f'{axis.axis_name}scale': 'log'})
    room = max((high / low) ** 0.04, 1.02)
    low, high = low / room, high * room
    # 1, 2 and 5 times the powers of ten; round numbers where these are too few, powers alone where they are too many.
    factors = (1,) if high / low > 1000 else (1, 2, 5)
    locator = ticker.LogLocator(subs=factors, numticks=20) if high / low > 10 else ticker.MaxNLocator(5, steps=STEPS)
  else:
    room = 0.04 * (high - low) or max(abs(high), 1.0) * 0.05
    low, high = low - room, high + room
    locator = ticker.MaxNLocator(6, steps=STEPS)
  axis.set(label_text=about.label, major_locator=locator, minor_locator=ticker.NullLocator(), major_formatter=short)
  axis.grid(True)
  axes.set(**{f'{axis.axis_name}lim': (max(low, about.limits[0]), min(high, about.limits[1]))})


def _mark_boundaries(axes: Any, boundaries: Sequence[Boundary]) -> None:
  """Marks of those that share a boundary stand one above the other; names that would overlap are left out."""
  (left, right), free = axes.get_xlim(), 0.0
  at_top = {'transform': axes.get_xaxis_transform()}
  for item in sorted(boundaries, key=lambda item: item.x):
    axes.axvline(item.x, color=FAINT, linewidth=0.8, linestyle=':')
    for row, number in enumerate(item.numbers):
      axes.plot(item.x, 0.96 - 0.06 * row, markersize=4, clip_on=False, **style_of(number), **at_top)
    at = (item.x - left) / (right - left)
    if at - 0.017 * len(item.name) >= free:
      axes.text(item.x, 1.02, item.name, ha='right', color=FAINT, **at_top)
      free = at
