"""Seconds of work that is done several times, by one side or by two in turn."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Timing:
  """Seconds, or ratios of seconds, of several runs of the same work, in their order."""

  values: tuple[float, ...]

  @property
  def median(self) -> float:
    return statistics.median(self.values)

  def spread(self) -> dict[str, float]:
    return {'median': self.median, 'low': min(self.values), 'high': max(self.values)}

  def per(self, amount: float) -> 'Timing':
    """Timing of each of `amount` equal parts of the work."""
    return Timing(tuple(value / amount for value in self.values))


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
  """Seconds of one run, and what it returned."""
  began = time.perf_counter()
  result = run()
  return time.perf_counter() - began, result


def time_in_turn(runs: Sequence[Callable[[], Any]], repeats: int) -> list[Timing]:
  """Times each of some runs `repeats` times, one after the other in every round, so that a machine which slows down
  does so for all. They are warm: the caller has run each once.
  """
  rounds = [[timed(run)[0] for run in runs] for _ in range(repeats)]
  return [Timing(values) for values in zip(*rounds)]


def speedup(ours: Timing, theirs: Timing) -> Timing:
  """Ratio of their seconds to ours, round by round."""
  return Timing(tuple(slow / fast for fast, slow in zip(ours.values, theirs.values, strict=True)))
