"""Files of a training workdir beside checkpoints and metrics: the model's description, the config, the revision.

A workdir can be opened like a checkpoint directory (`conversion/workdir.py`), so it holds the same files at its root.
It is local here; `runs/workdir_mirror.py` has workdirs in buckets.
"""

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from janus_jax.conversion.adapters import fingerprint, split_base, write_base
from janus_jax.conversion.buckets import local_files
from janus_jax.conversion.checkpoint import Checkpoint, read_json
from janus_jax.conversion.hub import resolved
from janus_jax.conversion.special_tokens import special_token_ids
from janus_jax.conversion.tokenizer_files import template_of, tokenizer_files_for
from janus_jax.conversion.translate import parameter_shapes
from janus_jax.conversion.workdir import split_ema
from janus_jax.data.whole_files import write_json, write_text
from janus_jax.errors import InputError
from janus_jax.models import config as model_config
from janus_jax.models.config import JanusConfig
from janus_jax.models.files import CONFIG_FILE, RUN_CONFIG_FILE
from janus_jax.models.lora import is_adapter
from janus_jax.runs.config import EvaluationConfig, SamplingConfig, filled
from janus_jax.runs.revision import revision

# Settings of the original's `generation_inference.py`.
SAMPLING = {name: getattr(SamplingConfig, name) for name in ('cfg_weight', 'temperature', 'top_k')}
REVISION_FILE, MACHINE_FILE = 'revision.txt', 'machine.txt'
# Fields that a run may change when it goes on: nothing that it computes depends on them.
WITHOUT_EFFECT = ('log_every', 'eval_every', 'save_every', 'keep_last', 'keep_every')
WITHOUT_EFFECT += ('prefetch', 'workers', 'watchdog_factor', 'wandb_project')
WITHOUT_EFFECT += tuple(f'evaluation.{field.name}' for field in dataclasses.fields(EvaluationConfig))
# Fields of a saved config that are no more.
REMOVED = ('quantisation',)
# Today's names of fields of a saved config, and of values of `data.name` and `pretraining.model`.
RENAMED = {
  'observe_every': 'eval_every',
  'max_skipped_in_a_row': 'max_consecutive_skips',
  'max_bad_record_share': 'max_bad_record_fraction',
  'world_grid': 'toy_grid',
  'drawings_per_row': 'generation_images_per_row',
  'wordings': 'prompt_templates',
}
RENAMED_VALUES = {'name: embedded': 'toy', 'model: embedded': 'toy', 'model: tiny': 'test_tiny'}


def is_begun(workdir: str) -> bool:
  return os.path.exists(os.path.join(workdir, CONFIG_FILE))


def check_template(template: str, init_from: str, checkpoint: Checkpoint) -> None:
  """Raises InputError where a config names another template than that of the checkpoint a run starts from."""
  if not template or 'tokenizer.json' not in checkpoint.tokenizer_files:
    return
  own = template_of(checkpoint.tokenizer_files, special_token_ids(checkpoint.tokenizer_files['tokenizer.json']))
  if template != own:
    raise InputError(f'template is {template!r}: expected {own!r} or nothing, as {init_from} was trained with that')


def check_config(workdir: str, config: Mapping[str, Any], force: bool) -> None:
  """Raises InputError where a begun workdir has another config (from `to_json`); with `force` logs how they differ."""
  path = os.path.join(workdir, RUN_CONFIG_FILE)
  lines = differences(filled(_renamed(read_json(path))), filled(config)) if os.path.exists(path) else []
  lines = [line for line in lines if line.split(':')[0] not in WITHOUT_EFFECT]
  if lines[1:] or (lines and force):
    logging.warning('fields that differ from %s:\n  %s', path, '\n  '.join(lines))
  if lines and not force:
    what = lines[0] if len(lines) == 1 else f'{len(lines)} fields'
    raise InputError(f'{path}: a run with another config ({what}): --force goes on with the new one')


def begin(workdir: str, config: Mapping[str, Any], checkpoint: Checkpoint | None) -> None:
  """Writes config (from `to_json`), revision, machine, and tokenizer and model of the checkpoint of a new run.

  Comes once all that can be checked has been. Raises OSError where nothing can be written.
  """
  os.makedirs(workdir, exist_ok=True)
  if checkpoint is not None:
    write_tokenizer(workdir, checkpoint)
  write_json(os.path.join(workdir, RUN_CONFIG_FILE), config)
  write_text(os.path.join(workdir, REVISION_FILE), f'{revision()}\n')
  write_text(os.path.join(workdir, MACHINE_FILE), f'{machine()}\n')
  if checkpoint is not None and any(map(is_adapter, checkpoint.params)):
    base = checkpoint.adapter.base_params
    write_base(workdir, checkpoint.adapter.base, fingerprint(parameter_shapes(checkpoint.config), base))
  if checkpoint is not None:  # Last, as it marks the workdir as begun.
    write_json(os.path.join(workdir, CONFIG_FILE), model_config.config_to_dict(checkpoint.config))


def machine() -> str:
  """Devices and processor that a run is on: '8 x NVIDIA H100 80GB HBM3, 1 process, 192 cores of x86_64'."""
  processes = jax.process_count()
  return (
    f'{jax.device_count()} x {jax.devices()[0].device_kind}, {processes} process{"es" if processes > 1 else ""}, '
    f'{os.cpu_count()} cores of {platform.machine()}'
  )


def write_tokenizer(directory: str, checkpoint: Checkpoint) -> None:
  """Writes the tokenizer files of a checkpoint as a workdir has them."""
  for name, content in tokenizer_files_for('orbax', checkpoint.tokenizer_files, checkpoint.config).items():
    with open(os.path.join(directory, name), 'wb') as file:
      file.write(content)


@contextlib.contextmanager
def tokenizer_of(checkpoint: Checkpoint) -> Iterator[str]:
  """A temporary directory with the tokenizer of a checkpoint, which may be made of parts from several places."""
  with tempfile.TemporaryDirectory(prefix='janus_jax-tokenizer-') as directory:
    write_tokenizer(directory, checkpoint)
    yield directory


def remove_empty(workdir: str) -> None:
  """Removes the empty directories of a workdir that was not begun: those in which a refused run wrote nothing."""
  if is_begun(workdir):
    return
  for folder, _, _ in os.walk(workdir, topdown=False):
    if folder != workdir:
      with contextlib.suppress(OSError):
        os.rmdir(folder)


def read_model(workdir: str) -> JanusConfig:
  """The architecture of a begun workdir."""
  return model_config.from_dict(read_json(os.path.join(workdir, CONFIG_FILE)))


def read_config(checkpoint: str) -> dict[str, Any]:
  """The config of a training workdir as it was saved, by today's names; {} of any other checkpoint."""
  workdir = local_files(resolved(split_ema(split_base(checkpoint)[1])[0]))
  path = os.path.join(workdir, RUN_CONFIG_FILE)
  # PyTorch layouts have a config.json too, of another kind.
  return _renamed(read_json(path)) if is_begun(workdir) and os.path.exists(path) else {}


def _renamed(values: Any) -> Any:
  """A config that was saved before some fields had their names."""
  if not isinstance(values, dict):
    return values
  values = {RENAMED.get(name, name): _renamed(value) for name, value in values.items() if name not in REMOVED}
  return {name: RENAMED_VALUES.get(f'{name}: {value}', value) for name, value in values.items()}


def generation_sizes(checkpoint: str, model: JanusConfig) -> list[int]:
  """Sizes of images in pixels that a checkpoint, whose architecture is `model`, was trained to generate, as far as it
  says: its own, and those of the stages of its run before.
  """
  config = read_config(checkpoint)
  stages = [config.get('stages', {}).get(name, {}) for name in config.get('run', ())]
  found = {stage.get('generation_size', 0) for stage in stages} - {0}
  return sorted({size for size in found if size < model.vq.image_size} | {model.vq.image_size})


def has_aspects(checkpoint: str) -> bool:
  """Says whether a checkpoint was trained on images that are not square, as far as it says: a stage of its run read a
  source of codes with grids.
  """
  config = read_config(checkpoint)
  stages = [config.get('stages', {}).get(name, {}) for name in config.get('run', ())]
  used = {name for stage in stages for name, weight in stage.get('sources', {}).get('generation', {}).items() if weight}
  sources = config.get('data', {}).get('sources', {})
  return any(sources.get(name, {}).get('grid') for name in used)


def read_sampling(checkpoint: str, defaults: Mapping[str, float | int] = SAMPLING) -> dict[str, float | int]:
  """Settings of generated images: those of a workdir's config, else the defaults."""
  stored = read_config(checkpoint).get('sampling', {})
  # A config may say 5 where it means 5.0; both are to be stored alike with an image.
  return {name: type(default)(stored.get(name, default)) for name, default in defaults.items()}


def differences(old: Any, new: Any, name: str = '') -> list[str]:
  """Differences of two configs, a line each: 'stages.stage1.steps: 100 -> 200'."""
  if isinstance(old, dict) and isinstance(new, dict):
    keys = dict.fromkeys([*old, *new])
    found = (differences(old.get(key), new.get(key), f'{name}.{key}'.lstrip('.')) for key in keys)
    return list(itertools.chain.from_iterable(found))
  return [] if old == new else [f'{name}: {json.dumps(old)} -> {json.dumps(new)}']
