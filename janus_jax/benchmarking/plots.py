"""The chart of a cost against a size, both axes logarithmic."""

import math

from janus_jax.benchmarking.scaling import Cost
from janus_jax.reporting.charts import log_ticks, short
from janus_jax.reporting.drawing import FAINT, LIGHT, Drawing, Line, Mark, Text, style_of

WIDTH, HEIGHT = 560, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 44, 44  # Around the plotted area.


def cost_chart(cost: Cost) -> Drawing:
  """Medians as marks, their spread as bars, the fitted power law as a dashed line."""
  sizes = [point.size for point in cost.points]
  fit = cost.fit
  reach = [value for point in cost.points for value in (point.seconds.low, point.seconds.high)]
  reach += [fit.at(size) for size in sizes]
  low, high = min(reach) / 1.2, max(reach) * 1.2
  first, last = min(sizes) / 1.2, max(sizes) * 1.2

  def x(size: float) -> float:
    return LEFT + math.log(size / first) / math.log(last / first) * (WIDTH - RIGHT - LEFT)

  def y(seconds: float) -> float:
    return HEIGHT - BOTTOM - math.log(seconds / low) / math.log(high / low) * (HEIGHT - BOTTOM - TOP)

  style = style_of(1)
  things: list[Line | Mark | Text] = [Text((10, 20), f'{cost.title}: exponent {fit.exponent:.2f}', bold=True)]
  for seconds in log_ticks(low, high) or [low, high]:
    things += [
      Line(((LEFT, y(seconds)), (WIDTH - RIGHT, y(seconds))), LIGHT),
      Text((LEFT - 6, y(seconds) + 4), short(seconds), 'end', FAINT),
    ]
  things += [Text((x(size), HEIGHT - BOTTOM + 16), short(size), 'middle', FAINT) for size in sizes]
  things += [Text((WIDTH - RIGHT, HEIGHT - 8), cost.axis, 'end', FAINT), Text((10, TOP - 6), 'seconds', colour=FAINT)]
  ends = min(sizes), max(sizes)
  things.append(Line(tuple((x(size), y(fit.at(size))) for size in ends), FAINT, 1.2, (6, 4)))
  for point in cost.points:
    low_high = ((x(point.size), y(point.seconds.low)), (x(point.size), y(point.seconds.high)))
    things += [
      Line(low_high, style.colour, 2),
      Mark((x(point.size), y(point.seconds.median)), style.mark, style.colour),
    ]
  return Drawing(WIDTH, HEIGHT, tuple(things))
