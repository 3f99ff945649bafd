"""The charts of an ablation: intervals of a metric per variant, and curves of losses with the boundaries of stages."""

import dataclasses
import math
from collections.abc import Callable, Sequence

from janus_jax.reporting.charts import log_ticks, short, ticks
from janus_jax.reporting.drawing import FAINT, INK, LIGHT, Drawing, Line, Mark, Style, Text
from janus_jax.reporting.statistics import Estimate

WIDTH, ROW, CHARACTER = 640, 26, 6.6
Scale = Callable[[float], float]


@dataclasses.dataclass(frozen=True)
class Row:
  """A variant in a chart of intervals: its mean and interval over seeds, the value of each seed, and of how many there
  is none.
  """

  name: str
  estimate: Estimate | None
  values: tuple[float, ...]
  style: Style
  left_out: str = ''

  @property
  def label(self) -> str:
    return self.name + self.left_out


@dataclasses.dataclass(frozen=True)
class Curve:
  """A variant in a chart of losses.

  Attributes:
    name: of the variant.
    points: (step, loss).
    ends: (stage, the step at which it is over).
    style: of the variant.
  """

  name: str
  points: tuple[tuple[float, float], ...]
  ends: tuple[tuple[str, int], ...]
  style: Style


def interval_chart(title: str, rows: Sequence[Row], baseline: str) -> Drawing:
  """A line per variant: the mean as a mark, its 95 % interval as a bar, seeds as strokes; the baseline's mean runs
  through all of them.
  """
  left, right, top = 20 + CHARACTER * max(len(row.label) for row in rows), WIDTH - 90, 40
  bottom = top + ROW * len(rows)
  reach = [value for row in rows for value in (*row.values, *_ends(row.estimate))]
  low, high = _widened(min(reach, default=0.0), max(reach, default=1.0))
  x = lambda value: left + (value - low) / (high - low) * (right - left)  # noqa: E731
  things = [Text((10, 18), title, bold=True)]
  for value in ticks(low, high, 5):
    things += [
      Line(((x(value), top - 6), (x(value), bottom)), LIGHT),
      Text((x(value), bottom + 16), short(value), 'middle', FAINT),
    ]
  for row in rows:
    if row.name == baseline and row.estimate:
      things.append(Line(((x(row.estimate.mean), top - 6), (x(row.estimate.mean), bottom)), FAINT, 1, (4, 3)))
  for number, row in enumerate(rows):
    y = top + ROW * (number + 0.5)
    things.append(Text((left - 12, y + 4), row.label, 'end', INK, row.name == baseline))
    if row.estimate is None:
      things.append(Text((left + 4, y + 4), 'no value', colour=FAINT))
      continue
    ends = [x(value) for value in _ends(row.estimate)]
    things += [Line(((x(value), y - 4), (x(value), y + 4)), FAINT) for value in row.values]
    things += [
      Line(((ends[0], y), (ends[1], y)), row.style.colour, 2),
      *(Line(((end, y - 6), (end, y + 6)), row.style.colour, 2) for end in ends if row.estimate.half is not None),
      Mark((x(row.estimate.mean), y), row.style.mark, row.style.colour),
      Text((WIDTH - 10, y + 4), short(row.estimate.mean), 'end'),
    ]
  return Drawing(WIDTH, bottom + 28, tuple(things))


def _ends(estimate: Estimate | None) -> tuple[float, ...]:
  if estimate is None:
    return ()
  half = estimate.half or 0.0
  return estimate.mean - half, estimate.mean + half


def _widened(low: float, high: float) -> tuple[float, float]:
  room = 0.05 * (high - low) or max(abs(high), 1.0) * 0.05
  return low - room, high + room


def loss_chart(title: str, curves: Sequence[Curve]) -> Drawing | None:
  """Losses over steps, both of each variant; the end of each of its stages is a dotted line with its mark at the top.

  None where there is nothing to draw. The y axis is logarithmic.
  """
  curves = [dataclasses.replace(curve, points=_drawable(curve.points)) for curve in curves]
  curves = [curve for curve in curves if curve.points]
  if not curves:
    return None
  left, right, top, height = 56, WIDTH - 14, 58, 260
  steps = [step for curve in curves for step, _ in (*curve.points, *((end, 0) for _, end in curve.ends))]
  values = [value for curve in curves for _, value in curve.points]
  last = max(steps)
  low, high = min(values) / 1.05, max(values) * 1.05
  x = lambda step: left + step / last * (right - left)  # noqa: E731
  y = lambda value: top + (1 - math.log(value / low) / math.log(high / low)) * height  # noqa: E731
  things = [Text((10, 18), title, bold=True)]
  for value in log_ticks(low, high) or [low, high]:
    things += [
      Line(((left, y(value)), (right, y(value))), LIGHT),
      Text((left - 6, y(value) + 4), short(value), 'end', FAINT),
    ]
  things += [Text((x(step), top + height + 16), short(step), 'middle', FAINT) for step in ticks(0, last, 6)]
  things.append(Text((right, top + height + 30), 'steps', 'end', FAINT))
  things += _boundaries(curves, x, top, height)
  for number, curve in enumerate(curves):
    things += _curve(curve, x, y, number / len(curves))
  legend = _legend(curves, top + height + 48)
  return Drawing(WIDTH, round(max(thing.at[1] for thing in legend if isinstance(thing, Text)) + 12), (*things, *legend))


def _drawable(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
  return tuple((x, y) for x, y in points if y is not None and math.isfinite(y) and y > 0)


def _boundaries(curves: Sequence[Curve], x: Scale, top: float, height: float) -> list[Line | Mark | Text]:
  """Variants that end a stage at the same step share the line; their marks stand one above the other."""
  things: list[Line | Mark | Text] = []
  at: dict[tuple[str, int], list[Curve]] = {}
  for curve in curves:
    for stage, end in curve.ends:
      at.setdefault((stage, end), []).append(curve)
  named = 0.0
  for (stage, end), ending in sorted(at.items(), key=lambda item: item[0][1]):
    things.append(Line(((x(end), top), (x(end), top + height)), FAINT, 1, (1, 3)))
    things += [
      Mark((x(end), top + 6 + 10 * row), curve.style.mark, curve.style.colour, 3.5) for row, curve in enumerate(ending)
    ]
    width = CHARACTER * len(stage)
    if x(end) - width >= named:  # Names that would run into each other are left out: the marks say enough.
      things.append(Text((x(end), top - 6), stage, 'end', FAINT))
      named = x(end) + 4
  return things


def _curve(curve: Curve, x: Scale, y: Scale, shift: float) -> list[Line | Mark]:
  """With about six marks, at other places than those of other curves."""
  points = [(x(step), y(value)) for step, value in curve.points]
  every = max(len(points) // 6, 1)
  marked = points[int(shift * every) :: every]
  return [
    Line(tuple(points), curve.style.colour, 1.6, curve.style.dash),
    *(Mark(point, curve.style.mark, curve.style.colour, 3.5) for point in marked),
  ]


def _legend(curves: Sequence[Curve], top: float) -> list[Line | Mark | Text]:
  things, left, y = [], 14.0, top
  for curve in curves:
    width = 52 + CHARACTER * len(curve.name)
    if left > 14 and left + width > WIDTH:
      left, y = 14.0, y + 20
    things += [
      Line(((left, y - 4), (left + 30, y - 4)), curve.style.colour, 1.6, curve.style.dash),
      Mark((left + 15, y - 4), curve.style.mark, curve.style.colour, 3.5),
      Text((left + 36, y), curve.name),
    ]
    left += width
  return things
