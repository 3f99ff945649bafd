"""A scoring rule: a scorer and a version of it. The same answers have other scores under another rule."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from janus_jax.evaluation.rows import Row

# Names of metrics to numbers (None where the original divides by zero), nested as the original scorer nests them.
Metrics = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class ReadAnswer:
  """A prediction as a rule reads it.

  Attributes:
    read: the answer that was found in it; None where there is none.
    score: 1 if it is right, 0 if not, or between.
    is_random: whether the answer was sampled because none was found.
  """

  read: Any
  score: float
  is_random: bool = False


# Rows with 'prediction' and the dataset's columns -> a reading of each row, and the metrics.
Rule = Callable[[Sequence[Row]], tuple[list[ReadAnswer], Metrics]]


def ratio(part: float, whole: float) -> float | None:
  """part / whole; None where there is nothing to divide by."""
  return part / whole if whole else None


def mean(values: Sequence[float]) -> float | None:
  """Arithmetic mean; None of no values."""
  return ratio(sum(values), len(values))


def grouped(rows: Sequence[Row], column: str) -> dict[Any, list[int]]:
  """Value of a column -> indices of the rows that have it, in order of first appearance."""
  groups: dict[Any, list[int]] = {}
  for index, row in enumerate(rows):
    groups.setdefault(row[column], []).append(index)
  return groups
