"""Sources of the examples of a stage in their order: index arithmetic over exact periodic patterns."""

import collections
import dataclasses
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from janus_jax.data.examples import TASKS
from janus_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Mixture:
  """The order of tasks and sources in a stage.

  Attributes:
    tasks: one cycle of tasks, repeated for ever: any `len(tasks)` consecutive examples hold the ratio exactly.
    sources: per task one cycle of its sources, repeated over the examples of that task.
  """

  tasks: tuple[str, ...]
  sources: Mapping[str, tuple[str, ...]]

  def source_at(self, index: int) -> tuple[str, str]:
    """Task and name of the source of example `index` (0, 1, ...) of the stage."""
    cycle, offset = divmod(index, len(self.tasks))
    task = self.tasks[offset]
    before = cycle * self.tasks.count(task) + self.tasks[:offset].count(task)
    names = self.sources[task]
    return task, names[before % len(names)]


def make_mixture(ratio: Sequence[int], weights: Mapping[str, Mapping[str, int]]) -> Mixture:
  """The mixture of a stage.

  Args:
    ratio: understanding : text : generation, held exactly by any sum(ratio) consecutive examples of a stream.
    weights: per task, integer weights of the sources to use, held exactly within the task.

  Raises:
    InputError: negative or fractional numbers, a ratio or weights that sum to zero, or a task without sources.
  """
  if len(ratio) != len(TASKS):
    raise InputError(f'ratio {list(ratio)}: expected {len(TASKS)} integers, {":".join(TASKS)}')
  if unknown := sorted(set(weights) - set(TASKS)):
    raise InputError(f'sources of kind {unknown[0]!r}: expected one of {list(TASKS)}')
  parts = dict(zip(TASKS, ratio))
  _check_weights(parts, 'ratio')
  used = {task: weights.get(task, {}) for task in TASKS if parts[task]}
  for task, names in used.items():
    if not names:
      raise InputError(f'ratio {":".join(map(str, ratio))}: no source of {task}: expected at least one')
    _check_weights(names, f'weights of {task}')
  return Mixture(interleave(parts), {task: interleave(names) for task, names in used.items()})


def _check_weights(weights: Mapping[str, int], what: str) -> None:
  for name, weight in weights.items():
    if isinstance(weight, bool) or not isinstance(weight, int | np.integer) or weight < 0:
      raise InputError(f'{what}: {weight!r} for {name}: expected an integer that is not negative')
  if not sum(weights.values()):
    raise InputError(f'{what}: they sum to zero: expected at least one that is positive')


def interleave(weights: Mapping[str, int]) -> tuple[str, ...]:
  """One cycle in which each name occurs in proportion to its weight, spread evenly.

  Every step gives each name its weight in credit, and the name with most credit pays the sum of all weights and comes
  next (smooth weighted round robin). After a whole cycle every credit is zero again.
  """
  divisor = math.gcd(*weights.values())
  weights = {name: weight // divisor for name, weight in weights.items() if weight}
  credit, cycle = dict.fromkeys(weights, 0), []
  for _ in range(sum(weights.values())):
    for name, weight in weights.items():
      credit[name] += weight
    chosen = max(credit, key=credit.get)
    credit[chosen] -= sum(weights.values())
    cycle.append(chosen)
  return tuple(cycle)


def source_seed(seed: int, name: str) -> int:
  """A 32-bit seed for each source. crc32, because Python's `hash` of strings differs between processes."""
  return int(np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1)[0])


def shuffled(source: Any, seed: int, name: str) -> Any:
  """An endless view of a `grain.MapDataset`, every epoch in another order. InputError: the source is empty."""
  if not len(source):
    raise InputError(f'source {name}: empty: expected at least one record')
  return source.shuffle(seed=source_seed(seed, name)).repeat()


def source_shares(mixture: Mixture) -> dict[str, float]:
  """Fractions of the examples of a mixture by 'task/name'."""
  tasks = collections.Counter(mixture.tasks)
  return {
    f'{task}/{name}': tasks[task] / len(mixture.tasks) * count / len(cycle)
    for task, cycle in mixture.sources.items()
    for name, count in sorted(collections.Counter(cycle).items())
  }
