"""Settings of an ablation: a base config, variants of it, seeds, metrics; read from configs/ablations/*.py."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from janus_jax.errors import InputError
from janus_jax.runs.config import TrainConfig, parse_config, replaced, unshared
from janus_jax.runs.recipes import read_recipe
from janus_jax.runs.value_checks import BOOL, SEED, Integer, Table, check_fields
from janus_jax.toy.test_set import IMAGES_PER_GROUP, QUESTIONS_PER_KIND

NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9_.+-]*')  # A variant's, which is part of directory names.
LONGEST_NAME = 150  # Letters, which seed, hash and suffixes of unfinished files keep within the 255 of a file name.
EVALUATION: Table = {
  'scores': BOOL,
  **dict.fromkeys(('questions_per_kind', 'images_per_group', 'held_out_batches'), Integer(1)),
  'seed': SEED,
}
TOY_RECIPES = ('tiny', 'small')
# Patterns (fnmatch) of the metrics that a report shows first by default.
METRICS = ('target_scores/*', 'questions/all', 'generations/all', 'held_out/*')


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Settings by which finished runs are measured.

  Attributes:
    scores: whether questions are asked and images generated; the held-out loss is measured anyway.
    questions_per_kind: questions of each kind, content and group (`toy.test_set.build_questions`).
    images_per_group: images of each skill and group.
    seed: seed of the choice of questions and prompts, and of sampling: the same for all runs.
    held_out_batches: batches of the baseline's last stage; all variants are measured on the same ones.
  """

  scores: bool
  questions_per_kind: int
  images_per_group: int
  seed: int
  held_out_batches: int


@dataclasses.dataclass(frozen=True, eq=False)
class Ablation:
  """An ablation, checked.

  Attributes:
    base: config of a run.
    variants: name -> {dotted name of a field: value}, in the order of the report.
    configs: name of a variant -> `base` with these fields.
    baseline: the variant that the others are compared with.
    metrics: patterns of the metrics that the report shows first.
    equal_flops: variant -> names of stages whose steps are multiplied so that the variant costs what the baseline does.
    parts_per_seed: whether each seed has parts pretrained of its own; else all share those of `base.seed`.
    fresh_compilation: whether each run compiles everything anew, so that its cost is that of a run alone.
  """

  base: TrainConfig
  variants: Mapping[str, Mapping[str, Any]]
  configs: Mapping[str, TrainConfig]
  baseline: str
  seeds: tuple[int, ...]
  metrics: tuple[str, ...]
  equal_flops: Mapping[str, tuple[str, ...]]
  parts_per_seed: bool
  fresh_compilation: bool
  evaluation: Evaluation


def ablation_config(base: ConfigDict, variants: Mapping[str, Mapping[str, Any]], baseline: str) -> ConfigDict:
  """The fields of an ablation with their defaults. Runs neither measure held-out losses nor generate images along the
  way: the sweep measures all of them alike.

  `variants` are as {'long': {'stages.stage1.steps': 300}}, `baseline` is one of their names.
  """
  base = ConfigDict(unshared(base.to_dict()))
  base.held_out_batches = base.sampling.num_images = base.eval_every = 0
  base.evaluation.benchmarks, base.evaluation.toy = (), 0
  config = ConfigDict({'base': base, 'baseline': baseline, 'seeds': (0, 1, 2), 'metrics': METRICS})
  # Variants are shown in the order in which they were written.
  config.variants = ConfigDict(dict(variants), allow_dotted_keys=True, sort_keys=False)
  config.equal_flops = ConfigDict(sort_keys=False)
  config.parts_per_seed = config.fresh_compilation = False
  config.evaluation = dataclasses.asdict(Evaluation(True, QUESTIONS_PER_KIND, IMAGES_PER_GROUP, 0, 16))
  return config


def toy_base(configs: pathlib.Path, argument: str) -> ConfigDict:
  """The config that a sweep on the toy world starts from, by the argument of its file: '0.1' is tiny.py with a tenth of
  all steps, 'small' small.py, 'small,0.1' a tenth of that.

  Raises:
    InputError: another recipe, or a scale that is not positive.
  """
  first, _, rest = argument.partition(',')
  name, scale = (first, rest or '1') if first in TOY_RECIPES else ('tiny', argument)
  return scaled(read_recipe(str(configs / f'{name}.py')), scale)


def scaled(base: ConfigDict, scale: str) -> ConfigDict:
  """The config with every stage's steps, warm-up and distance between metrics multiplied by `scale`, a number as text:
  the argument of a config file (`configs/ablations/stage1_length.py:0.1`). Raises InputError where it is not positive.
  """
  try:
    factor = float(scale)
  except ValueError:
    factor = 0.0
  if not 0 < factor < float('inf'):
    expected = f'expected {" or ".join(TOY_RECIPES)}, a positive number by which all steps are multiplied, or both'
    raise InputError(f'scale is {scale!r}: {expected}')
  base = ConfigDict(unshared(base.to_dict()))
  for stage in base.stages.values():
    stage.steps = times(stage.steps, factor)
    stage.warmup_steps = min(round(stage.get('warmup_steps', 0) * min(factor, 1)), stage.steps - 1)
  base.log_every = times(base.log_every, min(factor, 1))
  return base


def times(steps: int, factor: float) -> int:
  """Steps times a factor, at least one."""
  return max(round(steps * factor), 1)


def read_ablation(config: ConfigDict) -> Ablation:
  """The ablation that a config describes. Raises InputError for a field that is wrong, or a variant's config."""
  variants = {name: overrides.to_dict() for name, overrides in config.variants.items()}
  if not variants:
    raise InputError('variants is empty: expected {name: {field: value}}')
  for name in variants:
    if not NAME.fullmatch(name):
      raise InputError(f'variants: {name!r} is no name: expected letters, digits and any of _ . + -')
    if len(name) > LONGEST_NAME:
      raise InputError(f'variants: {name!r} has {len(name)} letters: expected at most {LONGEST_NAME}')
  known = ', '.join(variants)
  if config.baseline not in variants:
    raise InputError(f'baseline is {config.baseline!r}: expected one of the variants, {known}')
  for name, stages in config.equal_flops.items():
    if name not in variants or name == config.baseline:
      raise InputError(f'equal_flops: {name!r}: expected a variant other than the baseline: {known}')
    if isinstance(stages, str):
      raise InputError(f'equal_flops.{name} is {stages!r}: expected a tuple of names of stages')
  if config.evaluation.scores and config.base.data.name != 'toy':
    raise InputError('evaluation.scores is True: expected False, as only the toy world can be scored')
  check_fields(config.evaluation.to_dict(), EVALUATION, 'evaluation.')
  changed = {name: ConfigDict(replaced(config.base.to_dict(), overrides)) for name, overrides in variants.items()}
  return Ablation(
    base=parse_config(config.base, 'base: '),
    variants=variants,
    configs={name: parse_config(variant, f'variant {name}: ') for name, variant in changed.items()},
    baseline=config.baseline,
    seeds=_read_seeds(config.seeds),
    metrics=tuple(config.metrics),
    equal_flops={name: tuple(stages) for name, stages in config.equal_flops.items()},
    parts_per_seed=config.parts_per_seed,
    fresh_compilation=config.fresh_compilation,
    evaluation=Evaluation(**config.evaluation),
  )


def _read_seeds(seeds: Any) -> tuple[int, ...]:
  found = tuple(seeds)
  if not found:
    raise InputError('seeds is empty: expected one or more, as in --config.seeds=0,1,2')
  if any(map(SEED.expected, found)):
    raise InputError(f'seeds are {found}: expected integers from 0 to 2^32 - 1')
  if len(set(found)) < len(found):
    raise InputError(f'seeds are {found}: expected each once')
  return found
