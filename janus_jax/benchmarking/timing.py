"""Seconds of work that is done several times, by one side or by two in turn."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Timing:
  """Seconds, or ratios of seconds, of several runs of the same work.

  Attributes:
    values: in the order of the runs.
  """

  values: tuple[float, ...]

  @property
  def median(self) -> float:
    return statistics.median(self.values)

  @property
  def low(self) -> float:
    return min(self.values)

  @property
  def high(self) -> float:
    return max(self.values)

  def spread(self) -> dict[str, float]:
    return {'median': self.median, 'low': self.low, 'high': self.high}

  def per(self, amount: float) -> 'Timing':
    """Of a part of the work."""
    return Timing(tuple(value / amount for value in self.values))


def time_in_turn(runs: Sequence[Callable[[], Any]], repeats: int) -> list[Timing]:
  """Times each of some runs `repeats` times, one after the other in every round, so that a machine which slows down
  does so for all. They are warm: whoever calls has run each once.
  """
  seconds: list[list[float]] = [[] for _ in runs]
  for _ in range(repeats):
    for run, found in zip(runs, seconds):
      began = time.perf_counter()
      run()
      found.append(time.perf_counter() - began)
  return [Timing(tuple(found)) for found in seconds]


def speedup(ours: Timing, theirs: Timing) -> Timing:
  """How many times as fast we are, round by round."""
  return Timing(tuple(slow / fast for fast, slow in zip(ours.values, theirs.values, strict=True)))


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
  """Seconds of one run, and what it returned."""
  began = time.perf_counter()
  result = run()
  return time.perf_counter() - began, result
