"""Line charts as SVG text, to stand in a page."""

import dataclasses
import html
import math
from collections.abc import Sequence

WIDTH, HEIGHT = 560, 250
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 46, 30  # Around the plotted area, in pixels.


@dataclasses.dataclass(frozen=True)
class Series:
  """A curve. Points whose y is missing or not finite are left out."""

  name: str
  points: tuple[tuple[float, float], ...]
  colour: str
  dashed: bool = False


@dataclasses.dataclass(frozen=True)
class Span:
  """A named stretch of the x axis, such as a stage of training."""

  name: str
  start: float
  end: float


@dataclasses.dataclass(frozen=True)
class _Axis:
  """Maps values to pixels. `low` < `high`; both above 0 if `log`."""

  low: float
  high: float
  start: float
  end: float
  log: bool = False

  def __call__(self, value: float) -> float:
    a, b, v = (math.log(x) if self.log else x for x in (self.low, self.high, value))
    return self.start + (v - a) / (b - a) * (self.end - self.start)


def line_chart(title: str, series: Sequence[Series], spans: Sequence[Span] = (), log: bool = False) -> str:
  """An <svg> with a legend, the y axis from the smallest to the largest value.

  Args:
    title: above the chart.
    series: curves; those without points are left out of the legend too.
    spans: shaded in turn and named at the top.
    log: y axis; values of 0 and below are left out.
  """
  kept = [dataclasses.replace(item, points=_drawable(item.points, log)) for item in series]
  kept = [item for item in kept if item.points]
  points = [point for item in kept for point in item.points]
  if not points:
    return ''
  xs, ys = zip(*points)
  stretch = [*xs, *(span.start for span in spans), *(span.end for span in spans)]
  x_axis = _Axis(*_widened(min(stretch), max(stretch), False), LEFT, WIDTH - RIGHT)
  y_axis = _Axis(*_widened(min(ys), max(ys), log), HEIGHT - BOTTOM, TOP, log)
  parts = [
    *_span_marks(spans, x_axis),
    *_y_ticks(y_axis),
    *_x_ticks(x_axis),
    *(_curve(item, x_axis, y_axis) for item in kept),
    f'<text x="{LEFT}" y="15" class="title">{html.escape(title)}</text>',
    *_legend(kept),
  ]
  return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'


def _drawable(points: Sequence[tuple[float, float]], log: bool) -> tuple[tuple[float, float], ...]:
  return tuple((x, y) for x, y in points if y is not None and math.isfinite(y) and (y > 0 or not log))


def _widened(low: float, high: float, log: bool) -> tuple[float, float]:
  """A range that is never empty."""
  if low < high:
    return low, high
  return (low / 2, high * 2) if log else (low - 1, high + 1)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
  """About `count` round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`."""
  rough = (high - low) / count
  power = 10 ** math.floor(math.log10(rough))
  step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
  first = math.ceil(low / step - 1e-9)
  return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
  """1, 2 and 5 times each power of ten, or over more than two decades the powers alone."""
  decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
  factors = (1,) if math.log10(high / low) > 2 else (1, 2, 5)
  return [f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high]


def short(value: float) -> str:
  """At most four digits: 0.0025, 12, 3.2k, 1.5M."""
  for limit, unit in ((1e6, 'M'), (1e3, 'k')):
    if abs(value) >= limit:
      return f'{value / limit:.3g}{unit}'
  return f'{value:.3g}'


def _span_marks(spans: Sequence[Span], axis: _Axis) -> list[str]:
  marks = []
  for index, span in enumerate(spans):
    left, right = axis(span.start), axis(span.end)
    size = f'width="{right - left:.1f}" height="{HEIGHT - TOP - BOTTOM}"'
    marks.append(f'<rect x="{left:.1f}" y="{TOP}" {size} class="span{index % 2}"/>')
    middle = f'x="{(left + right) / 2:.1f}" y="{TOP - 4}"'
    marks.append(f'<text {middle} class="span" text-anchor="middle">{html.escape(span.name)}</text>')
  return marks


def _y_ticks(axis: _Axis) -> list[str]:
  marks = []
  for value in log_ticks(axis.low, axis.high) if axis.log else ticks(axis.low, axis.high):
    y = f'{axis(value):.1f}'
    marks.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" class="grid"/>')
    marks.append(f'<text x="{LEFT - 6}" y="{y}" dy="4" text-anchor="end">{short(value)}</text>')
  return marks


def _x_ticks(axis: _Axis) -> list[str]:
  y = HEIGHT - BOTTOM + 16
  found = ticks(axis.low, axis.high, 6)
  return [f'<text x="{axis(value):.1f}" y="{y}" text-anchor="middle">{short(value)}</text>' for value in found]


def _curve(item: Series, x_axis: _Axis, y_axis: _Axis) -> str:
  name = f'<title>{html.escape(item.name)}</title>'
  pixels = [f'{x_axis(x):.1f},{y_axis(y):.1f}' for x, y in item.points]
  if len(pixels) == 1:
    x, y = pixels[0].split(',')
    return f'<circle cx="{x}" cy="{y}" r="3" fill="{item.colour}">{name}</circle>'
  dash = ' stroke-dasharray="5 3"' if item.dashed else ''
  return f'<polyline points="{" ".join(pixels)}" stroke="{item.colour}"{dash} class="curve">{name}</polyline>'


def _legend(series: Sequence[Series]) -> list[str]:
  """At the upper right, with the last value of each curve."""
  marks, x = [], WIDTH - RIGHT
  for item in reversed(series):
    text = f'{item.name} {short(item.points[-1][1])}'
    marks.append(f'<text x="{x}" y="15" text-anchor="end" style="fill: {item.colour}">{html.escape(text)}</text>')
    x -= 6.4 * len(text) + 12
  return marks
