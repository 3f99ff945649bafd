"""Means over seeds with their 95 % intervals, and differences to a baseline, paired by seed.

Both intervals are Student's t for a mean: mean +- t(0.975, n - 1) s / sqrt(n), with the sample standard deviation s.
Pairing takes out what a seed does to all variants alike (order of the data, fresh parameters). Nothing is corrected for
the number of comparisons: of twenty intervals of differences that are nothing, one is expected to leave out 0.
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

from scipy.special import stdtrit

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A mean.

  Attributes:
    mean: mean of the values.
    half: half of the interval's width, mean - half to mean + half; None for one value, which has no interval.
    count: number of values.
  """

  mean: float
  half: float | None
  count: int

  @property
  def leaves_out_zero(self) -> bool:
    """True if 0 lies outside of the interval; never for one value, nor for equal ones: a few counts are easily so."""
    return bool(self.half) and abs(self.mean) > self.half

  def interval(self, limits: tuple[float, float] = (-math.inf, math.inf)) -> tuple[float, float] | None:
    """Low and high end, cut to the values that the quantity can have; None of one value."""
    if self.half is None:
      return None
    return max(self.mean - self.half, limits[0]), min(self.mean + self.half, limits[1])


def t_quantile(degrees: int) -> float:
  """Student's t: the value that |t| stays below with a probability of CONFIDENCE."""
  return float(stdtrit(degrees, (1 + CONFIDENCE) / 2))


def estimate(values: Sequence[float]) -> Estimate | None:
  """The mean of one value per seed; None of no values."""
  if not values:
    return None
  mean = statistics.fmean(values)
  if len(values) == 1:
    return Estimate(mean, None, 1)
  half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
  return Estimate(mean, half, len(values))


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate | None:
  """The mean of value - baseline over the seeds that both have; None if there is none."""
  return estimate([values[seed] - baseline[seed] for seed in values if seed in baseline])
