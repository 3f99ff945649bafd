"""Which runs an ablation consists of, and what they have in common: overridden configs, and names of prefixes."""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from janus_jax.ablation.settings import unshared
from janus_jax.errors import InputError
from janus_jax.runs.recipes import field_names
from janus_jax.runs.workdirs import config_dict
from janus_jax.training.defaults import STAGE_DEFAULTS

# Fields that neither parameters nor metrics of a run depend on, or that say where it finds what is the same anyway.
WITHOUT_EFFECT = ('sampling', 'keep_last', 'keep_every', 'watchdog_factor', 'wandb_project', 'prefetch', 'workers')


@dataclasses.dataclass(frozen=True, eq=False)
class PlannedRun:
  """One variant with one seed.

  Attributes:
    variant: its name.
    seed: of data and guidance dropout.
    config: of the run, without `init_from` where the parts that it starts from are the sweep's own.
    parts: a hash of all that those depend on; '' where `init_from` names what is there already.
    name: of its directory: variant, seed and a hash of the config, so that a changed variant is another run.
    ends: the step at which each stage is over.
    prefixes: for 1, 2, ... stages a hash of all that their training depends on: runs of one hash train the same.
  """

  variant: str
  seed: int
  config: ConfigDict
  parts: str
  name: str
  ends: tuple[int, ...]
  prefixes: tuple[str, ...]

  @property
  def steps(self) -> int:
    return self.ends[-1]


def overridden(base: ConfigDict, overrides: Mapping[str, Any], where: str) -> ConfigDict:
  """A copy of a config with some fields changed.

  Args:
    base: stays as it is.
    overrides: dotted name -> value. A dict takes the place of all that was there. New are only stages, and fields of
      stages that have defaults (`training/stages.py`).
    where: begins the line that says what is wrong.

  Raises:
    InputError: a field that is not there, or a value of another type.
  """
  config = unshared(base)
  for name, value in overrides.items():
    *parents, last = name.split('.')
    node = config
    for part in parents:
      node = node[part] if isinstance(node, ConfigDict) and part in node else None
    if not isinstance(node, ConfigDict) or (last not in node and not _may_be_new(parents, last)):
      raise InputError(f'{where}: {name!r} is no field of the config{_suggestion(name, config)}')
    try:
      node[last] = ConfigDict(dict(value)) if isinstance(value, Mapping) else value
    except (TypeError, ValueError) as error:
      raise InputError(f'{where}: {name!r} cannot be {value!r}: {" ".join(str(error).split())}') from None
  return config


def _may_be_new(parents: Sequence[str], last: str) -> bool:
  return parents == ['stages'] or (len(parents) == 2 and parents[0] == 'stages' and last in STAGE_DEFAULTS)


def _suggestion(name: str, config: ConfigDict) -> str:
  close = difflib.get_close_matches(name, field_names(config.to_dict()), 1)
  return f': did you mean {close[0]!r}?' if close else ''


def parts_config(config: ConfigDict, seed: int, per_seed: bool) -> ConfigDict | None:
  """What the pretrained parts of a run are made by; None where `init_from` names them.

  Args:
    config: of a variant.
    seed: of the run.
    per_seed: whether the parts have the seed of the run, or that of the config.
  """
  if config.init_from:
    return None
  config = config.copy_and_resolve_references()
  config.seed = seed if per_seed else config.seed
  return config


def parts_name(config: ConfigDict | None) -> str:
  """A hash of all that pretrained parts depend on, of `parts_config`.

  Raises:
    InputError: neither parts nor how to make them.
  """
  if config is None:
    return ''
  if 'pretraining' not in config:
    raise InputError('base.init_from is empty and there is no base.pretraining: expected one of them')
  return digest([config.pretraining.to_dict(), config.data.num_train, config.seed])


def planned(variant: str, seed: int, config: ConfigDict, parts_per_seed: bool = False) -> PlannedRun:
  """The run of a variant with a seed.

  Args:
    variant: its name.
    seed: takes the place of the config's.
    config: of the variant.
    parts_per_seed: see `parts_config`.

  Raises:
    InputError: a stage that is not there, or no parts.
  """
  parts = parts_name(parts_config(config, seed, parts_per_seed))
  config = config.copy_and_resolve_references()
  config.seed = seed
  values = config_dict(config)
  stages = [values['stages'].get(name) for name in values['run']]
  for name, stage in zip(values['run'], stages):
    if not isinstance(stage, dict) or not isinstance(stage.get('steps'), int):
      raise InputError(f'variant {variant}: run names {name!r}: expected a stage with steps in `stages`')
  if not stages:
    raise InputError(f'variant {variant}: run is empty: expected names of stages')
  ends = tuple(sum(stage['steps'] for stage in stages[: count + 1]) for count in range(len(stages)))
  name = f'{variant}-seed{seed}-{digest([values, parts])}'
  return PlannedRun(variant, seed, config, parts, name, ends, prefix_keys(values, parts))


def prefix_keys(values: Mapping[str, Any], parts: str) -> tuple[str, ...]:
  """What `PlannedRun.prefixes` is, of a config as JSON reads it and the name of its parts."""
  common = {key: value for key, value in values.items() if key not in ('stages', 'run', *WITHOUT_EFFECT)}
  common['parts'] = parts
  names = list(values['run'])
  # With traced masks a stage carries the moments of all that trains in any stage.
  if values['stage_masks'] != 'static':
    common['trainable'] = sorted({pattern for name in names for pattern in values['stages'][name]['trainable']})
  # Names too: they stand in the metrics.
  stages = [[name, values['stages'][name]] for name in names]
  return tuple(digest([common, stages[:count]]) for count in range(1, len(names) + 1))


def shared_stages(run: PlannedRun, prefixes: Sequence[str]) -> int:
  """How many stages a run has in common with one of these prefixes."""
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
