"""The stage schedule: what a config says of it, checked and turned into frozen dataclasses before anything loads."""

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from ml_collections import ConfigDict

from janus_jax.data.examples import KINDS
from janus_jax.errors import InputError
from janus_jax.training.defaults import STAGE_DEFAULTS
from janus_jax.training.optimizer import SCHEDULES
from janus_jax.training.value_checks import Bool, Integer, Names, Number, OneOf, PerKind, Table, check_fields

# The first names of parameter paths; a pattern that names one of them alone means everything in it.
GROUPS = ('vision_encoder', 'vision_aligner', 'vq', 'gen_embed', 'gen_aligner', 'gen_head', 'language_model')

# What each field of `config.stages.NAME` may be.
STAGE: Table = {
  'steps': Integer(1, 10**8),
  'batch_size': Integer(1, 10**6),
  'trainable': Names(),
  'learning_rate': Number(0, 100),
  'warmup_steps': Integer(),
  'schedule': OneOf(SCHEDULES),
  'final_fraction': Number(0, 1),
  'weight_decay': Number(0, 100),
  'ratio': PerKind(KINDS, Integer()),
  'sources': {kind: {'*': Integer()} for kind in KINDS},
  'loss_weights': PerKind(KINDS, Number()),
  'images_per_row': Number(0, 10_000),
  'drawings_per_row': Number(0, 10_000),
  'carry_moments': Bool(),
  'expected_tokens': PerKind(KINDS, Number(above=True), zeros=False),
}


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage of training.

  Attributes:
    name: as the config calls it.
    steps: updates.
    batch_size: packed rows per update.
    trainable: parameter groups, or regexes over whole paths; what trains.
    learning_rate: the highest.
    warmup_steps: before it is reached.
    schedule: a key of `optimizer.SCHEDULES`.
    final_fraction: of the learning rate at the end, for schedules that fall.
    weight_decay: AdamW's.
    ratio: understanding : text : generation.
    sources: per kind, the integer weight of each source.
    loss_weights: of a target of each kind.
    images_per_row: understanding images that there is room for, per row; 0: as many as the mixture needs
      (`packing.batch_shape`).
    drawings_per_row: images to generate that there is room for, in the same way.
    carry_moments: keep Adam's moments of the stage before, which must train the same parameters.
    expected_tokens: mean length of an example of each kind, images included: what `plan` assumes, which reads no data.
  """

  name: str
  steps: int
  batch_size: int
  trainable: tuple[str, ...]
  learning_rate: float
  warmup_steps: int
  schedule: str
  final_fraction: float
  weight_decay: float
  ratio: tuple[int, int, int]
  sources: Mapping[str, Mapping[str, int]]
  loss_weights: tuple[float, float, float]
  images_per_row: float
  drawings_per_row: float
  carry_moments: bool
  expected_tokens: tuple[float, float, float]


def read_stages(config: ConfigDict) -> tuple[Stage, ...]:
  """The stages that `config.run` names, in its order, from `config.stages`.

  Raises:
    InputError: a stage that is not there, a field that is missing or unknown, no steps, a ratio that sums to zero, a
      kind with a share but no source, a learning rate schedule that does not fit.
  """
  names = tuple(config.run)
  if not names:
    raise InputError(f'run is empty: expected some of {", ".join(config.stages)}')
  for name in names:
    if name not in config.stages:
      raise InputError(f'run: no stage is called {name!r}: expected some of {", ".join(config.stages)}')
  return tuple(_read_stage(name, config.stages[name]) for name in names)


def _read_stage(name: str, fields: ConfigDict) -> Stage:
  where = f'stages.{name}'
  given = {**STAGE_DEFAULTS, **fields.to_dict()}
  check_fields(given, STAGE, f'{where}.')
  for field in STAGE:
    if field not in given:
      raise InputError(f'{where}.{field} is missing')
  for field in ('trainable', 'ratio', 'loss_weights', 'expected_tokens'):
    given[field] = tuple(given[field])
  stage = Stage(name=name, **given)
  for kind, share in zip(KINDS, stage.ratio):
    if share and not sum(stage.sources.get(kind, {}).values()):
      raise InputError(f'{where}.sources: no source of {kind}, which has a share of {share} in the ratio')
  if stage.warmup_steps > stage.steps:
    expected = f'expected 0 to the {stage.steps} steps of the stage'
    raise InputError(f'{where}.warmup_steps is {stage.warmup_steps}: {expected}')
  return stage


def trained_paths(stage: Stage, paths: Iterable[str]) -> frozenset[str]:
  """The parameters that train in a stage.

  Raises:
    InputError: a pattern that is no regex or matches nothing.
  """
  paths = list(paths)
  found: set[str] = set()
  for pattern in stage.trainable:
    regex = f'{pattern}/.*' if pattern in GROUPS else pattern
    try:
      matches = {path for path in paths if re.fullmatch(regex, path)}
    except re.error as error:
      raise InputError(f'stages.{stage.name}.trainable: {pattern!r} is no regular expression ({error})') from None
    if not matches:
      raise InputError(
        f'stages.{stage.name}.trainable: {pattern!r} matches no parameter: expected a group ({", ".join(GROUPS)}) or a '
        'regular expression over whole paths'
      )
    found |= matches
  return frozenset(found)


def check_carried(stages: Sequence[Stage], paths: Iterable[str]) -> None:
  """Raises InputError where moments are to be carried over from a stage that trains other parameters."""
  paths = list(paths)
  for before, stage in zip([None, *stages], stages):
    if not stage.carry_moments:
      continue
    where = f'stages.{stage.name}.carry_moments is True'
    if before is None:
      raise InputError(f'{where}: expected False, as no stage runs before it')
    others = trained_paths(before, paths) ^ trained_paths(stage, paths)
    if others:
      raise InputError(
        f'{where}: expected the parameters that train in {before.name}, which runs before it; {len(others)} train in '
        f'one of the two alone, such as {min(others)}'
      )


def trained_groups(paths: Collection[str]) -> set[str]:
  """The groups in which anything trains."""
  return {path.split('/')[0] for path in paths}


def stage_ends(stages: Iterable[Stage]) -> list[int]:
  """The step of the run at which each stage is over."""
  ends, total = [], 0
  for stage in stages:
    total += stage.steps
    ends.append(total)
  return ends
