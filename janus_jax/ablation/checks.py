"""Checks of a sweep before any of its runs begins: those of all variants come first."""

import dataclasses
import fnmatch
import functools
import logging
import os
from collections.abc import Callable, Mapping

from janus_jax.ablation.compute import check_runs
from janus_jax.ablation.settings import Ablation
from janus_jax.ablation.tables import COSTS
from janus_jax.data.sources.build import FILE_NAMES
from janus_jax.data.sources.files import find_files, open_file
from janus_jax.errors import InputError
from janus_jax.models.config import PRESETS, JanusConfig
from janus_jax.runs.config import TrainConfig
from janus_jax.runs.setup import check_run, make_placement
from janus_jax.runs.start import as_trained, open_start
from janus_jax.toy.parts import check_parts
from janus_jax.training.stages import stage_models

# Fields that a sweep sets in each run -> settings to use in their place.
SET_BY_SWEEP = {
  'seed': '`seeds`',
  'held_out_batches': '`evaluation.held_out_batches`',
  'eval_every': 'nothing: finished runs are measured, and the ends of their stages',
  'evaluation.benchmarks': 'nothing: `evaluate` scores finished runs',
  'evaluation.toy': 'nothing: finished runs are scored',
  'sampling.num_images': '`evaluation.images_per_group`',
}


def check_sweep(ablation: Ablation) -> None:
  """Checks every variant of a sweep as training would, and that there will be something to compare.

  Raises:
    InputError: the first thing that is wrong, with the name of the variant.
  """
  for name, overrides in ablation.variants.items():
    for field, value in overrides.items():
      _check_override(f'variant {name}', field, value, ablation.configs[name])

  @functools.cache
  def model_of(init_from: str, template: str) -> JanusConfig:
    same = (other for other in ablation.configs.values() if (other.init_from, other.template) == (init_from, template))
    return open_start(dataclasses.replace(next(same), shared_encoder=False)).config

  for name, config in ablation.configs.items():
    try:
      _check_run(config, model_of)
    except InputError as error:
      raise InputError(f'variant {name}: {error}') from None
  for name, stages in ablation.equal_flops.items():
    check_runs(ablation.configs[name], stages, f'equal_flops.{name}')
  _check_measured(ablation, ablation.configs[ablation.baseline])


def _check_override(where: str, field: str, value: object, config: TrainConfig) -> None:
  for own, instead in SET_BY_SWEEP.items():
    parent, _, last = own.rpartition('.')
    if field == own or (field == parent and isinstance(value, Mapping) and last in value):
      raise InputError(f'{where}: {own!r} is set by the sweep, in all runs alike: expected {instead}')
  if field.partition('.')[0] == 'pretraining' and config.init_from:
    raise InputError(f'{where}: {field!r} has no effect: expected an empty init_from, which is {config.init_from!r}')


def _check_run(config: TrainConfig, model_of: Callable[[str, str], JanusConfig]) -> None:
  """Checks what `runs.setup.train` checks before it writes anything."""
  if config.patience:
    raise InputError(f'patience is {config.patience}: expected 0, as runs are compared at their ends')
  if config.init_from:
    model = as_trained(model_of(config.init_from, config.template), config)
  else:
    check_parts(config.pretraining)
    model = as_trained(PRESETS[config.pretraining.model], config)
  models = stage_models(model, config.run_stages)
  check_run(config, models, make_placement(config.mesh, models[0], config.lora))
  if config.data.name == 'files':
    _check_files(config)


def _check_files(config: TrainConfig) -> None:
  """Raises InputError for a source whose files are missing; their content is checked as a run opens them."""
  for spec in config.data.specs.values():
    if spec.format == 'folder' and '://' not in spec.path[0] and not os.path.isdir(spec.path[0]):
      raise InputError(f'data.sources.{spec.name}.path: {spec.path[0]}: no such folder')
    if spec.format not in ('folder', 'tfds'):
      find_files(spec.path, FILE_NAMES[spec.format])
    if spec.fields.names:
      open_file(spec.fields.names).close()


def _check_measured(ablation: Ablation, baseline: TrainConfig) -> None:
  """Logs that no loss on held-out data can be measured; raises InputError where nothing else is compared."""
  if baseline.data.name != 'files':
    return
  stage = baseline.run_stages[-1]
  names = sorted({name for weights in stage.sources.values() for name in weights})
  specs = baseline.data.specs
  if any(specs[name].held_out for name in names if name in specs):
    return
  if not any(fnmatch.filter(COSTS, pattern) for pattern in ablation.metrics):
    raise InputError(
      f'base.data.sources: none of {", ".join(names)}, the sources of the last stage, has held_out: expected some, as '
      'the loss on held-out records is what runs on own files are compared by (or costs alone: metrics=("cost/*",))'
    )
  logging.info('no loss on held-out data: none of %s has held_out', ', '.join(names))
