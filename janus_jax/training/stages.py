"""The stage schedule: what a config says of it, checked and turned into frozen dataclasses before anything loads."""

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from ml_collections import ConfigDict

from janus_jax.data.examples import KINDS
from janus_jax.errors import InputError
from janus_jax.training.defaults import STAGE_DEFAULTS
from janus_jax.training.optimizer import learning_rates

# The vocabulary of DESIGN section 4; a pattern that names one of them alone means everything in it.
GROUPS = ('vision_encoder', 'vision_aligner', 'vq', 'gen_embed', 'gen_aligner', 'gen_head', 'language_model')


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
  given = {**STAGE_DEFAULTS, **fields.to_dict()}
  known = [field.name for field in dataclasses.fields(Stage) if field.name != 'name']
  for field in given:
    if field not in known:
      raise InputError(f'stages.{name}.{field} is unknown: expected one of {", ".join(known)}')
  for field in known:
    if field not in given:
      raise InputError(f'stages.{name}.{field} is missing')
  for field in ('trainable', 'ratio', 'loss_weights', 'expected_tokens'):
    given[field] = tuple(given[field])
  stage = Stage(name=name, **given)
  _check(stage)
  return stage


def _check(stage: Stage) -> None:
  where = f'stages.{stage.name}'
  for field in ('steps', 'batch_size'):
    if getattr(stage, field) < 1:
      raise InputError(f'{where}.{field} is {getattr(stage, field)}: expected 1 or more')
  for field in ('ratio', 'loss_weights'):
    values = getattr(stage, field)
    if len(values) != len(KINDS) or min(values) < 0 or not sum(values):
      raise InputError(f'{where}.{field} is {values}: expected {":".join(KINDS)}, none negative, not all 0')
  if len(stage.expected_tokens) != len(KINDS) or min(stage.expected_tokens) <= 0:
    raise InputError(f'{where}.expected_tokens is {stage.expected_tokens}: expected {":".join(KINDS)}, all positive')
  if not isinstance(stage.carry_moments, bool):
    raise InputError(f'{where}.carry_moments is {stage.carry_moments!r}: expected True or False')
  for kind, share in zip(KINDS, stage.ratio):
    if share and not sum(stage.sources.get(kind, {}).values()):
      raise InputError(f'{where}.sources: no source of {kind}, which has a share of {share} in the ratio')
  if not stage.trainable:
    raise InputError(f'{where}.trainable is empty: expected parameter groups or patterns')
  try:
    learning_rates(stage.schedule, stage.learning_rate, stage.warmup_steps, stage.steps, stage.final_fraction)
  except InputError as error:
    raise InputError(f'{where}: {error}') from None


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
