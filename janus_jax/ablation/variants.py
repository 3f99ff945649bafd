"""The runs of an ablation, and the stages that they have in common, by hashes of their prefixes."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from janus_jax.errors import InputError
from janus_jax.runs.config import TrainConfig, to_json
from janus_jax.training.stages import stage_ends

# Fields that neither parameters nor metrics of a run depend on.
WITHOUT_EFFECT = ('sampling', 'keep_last', 'keep_every', 'watchdog_factor', 'wandb_project', 'prefetch', 'workers')


@dataclasses.dataclass(frozen=True, eq=False)
class PlannedRun:
  """One variant with one seed.

  Attributes:
    seed: seed of data and guidance dropout.
    config: the run's, without `init_from` where the parts that it starts from are the sweep's own.
    parts: a hash of all that those parts depend on; '' where `init_from` names existing ones.
    parts_seed: seed that they are made with.
    name: name of its directory: variant, seed and a hash of the config, so that a changed variant is another run.
    ends: the step at which each stage is over.
    prefixes: for 1, 2, ... stages a hash of all that their training depends on: runs of one hash train the same.
  """

  variant: str
  seed: int
  config: TrainConfig
  parts: str
  parts_seed: int
  name: str
  ends: tuple[int, ...]
  prefixes: tuple[str, ...]

  @property
  def steps(self) -> int:
    return self.ends[-1]


def planned(variant: str, seed: int, config: TrainConfig, parts_per_seed: bool = False) -> PlannedRun:
  """The run of a variant with a seed, which replaces the config's (for the parts only with `parts_per_seed`).

  Raises:
    InputError: neither parts nor settings to make them.
  """
  if not config.init_from and config.pretraining is None:
    raise InputError('base.init_from is empty and there is no base.pretraining: expected one of them')
  parts_seed = seed if parts_per_seed else config.seed
  made_of = [to_json(config).get('pretraining'), config.data.toy, parts_seed]
  parts = '' if config.init_from else digest(made_of)
  config = dataclasses.replace(config, seed=seed)
  values = to_json(config)
  return PlannedRun(
    variant,
    seed,
    config,
    parts,
    parts_seed,
    name=f'{variant}-seed{seed}-{digest([values, parts])}',
    ends=tuple(stage_ends(config.run_stages)),
    prefixes=prefix_keys(values, parts),
  )


def prefix_keys(values: Mapping[str, Any], parts: str) -> tuple[str, ...]:
  """`PlannedRun.prefixes` of a config as JSON reads it and the name of its parts."""
  common = {key: value for key, value in values.items() if key not in ('stages', 'run', *WITHOUT_EFFECT)}
  common['parts'] = parts
  names = list(values['run'])
  # With traced masks a stage carries the moments of all that trains in any stage.
  if values['stage_masks'] != 'static':
    common['trainable'] = sorted({pattern for name in names for pattern in values['stages'][name]['trainable']})
  # With factors in any stage, the tree has them and checkpoints leave out the base.
  common['lora'] = next((lora for name in names if (lora := values['stages'][name]['lora'])['rank']), None)
  # Names too: they stand in the metrics.
  stages = [[name, values['stages'][name]] for name in names]
  return tuple(digest([common, stages[:count]]) for count in range(1, len(names) + 1))


def shared_stages(run: PlannedRun, prefixes: Sequence[str]) -> int:
  """Number of stages that a run has in common with one of these prefixes."""
  return sum(own == other for own, other in zip(run.prefixes, prefixes))


def steps_to_train(runs: Sequence[PlannedRun]) -> int:
  """Steps that all runs take together when what they have in common is trained once."""
  lengths = {}
  for run in runs:
    lengths |= {key: end - start for key, start, end in zip(run.prefixes, (0, *run.ends), run.ends)}
  return sum(lengths.values())


def in_order(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
  """Runs that share stages next to each other, seed by seed, else in the order given."""
  first: dict[str, int] = {}
  for number, run in enumerate(runs):
    for key in run.prefixes:
      first.setdefault(key, number)
  seeds = list(dict.fromkeys(run.seed for run in runs))
  return sorted(runs, key=lambda run: (seeds.index(run.seed), [first[key] for key in run.prefixes]))


def of_shard(runs: Sequence[PlannedRun], shard: tuple[int, int]) -> list[PlannedRun]:
  """The runs of process i of n, which lie next to each other, so that few prefixes are trained by two of them."""
  index, count = shard
  return list(runs[index * len(runs) // count : (index + 1) * len(runs) // count])


def digest(value: Any) -> str:
  """A short hash of a JSON value."""
  return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=5).hexdigest()
