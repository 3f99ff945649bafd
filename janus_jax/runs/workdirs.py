"""What lies in a training workdir beside checkpoints and metrics: the model's description, the config, the revision.

A workdir can be opened like a checkpoint directory (`conversion/workdir.py`), so it holds the same files at its root.
These functions write to local directories; `runs/workdir_mirror.py` has workdirs in buckets.
"""

import contextlib
import json
import logging
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from janus_jax.conversion.buckets import local_files
from janus_jax.conversion.checkpoint import Checkpoint, read_json
from janus_jax.conversion.special_tokens import special_token_ids
from janus_jax.conversion.tokenizer_files import template_of, tokenizer_files_for
from janus_jax.conversion.workdir import split_ema
from janus_jax.data.whole_files import write_json
from janus_jax.errors import InputError
from janus_jax.models import config as model_config
from janus_jax.models.config import JanusConfig
from janus_jax.models.files import CONFIG_FILE, RUN_CONFIG_FILE
from janus_jax.runs.config import SamplingConfig, filled
from janus_jax.runs.revision import revision

# How the original's `generation_inference.py` generates.
SAMPLING = {name: getattr(SamplingConfig, name) for name in ('cfg_weight', 'temperature', 'top_k')}
REVISION_FILE, MACHINE_FILE = 'revision.txt', 'machine.txt'
# What fields of a saved config are called today, and values of `data.name` and `pretraining.model`.
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
  """Checks that a begun workdir belongs to this config.

  Args:
    workdir: begun.
    config: of the run, from `to_json`.
    force: go on with another config, which is described in the log.

  Raises:
    InputError: a run of another config, which is described.
  """
  path = os.path.join(workdir, RUN_CONFIG_FILE)
  lines = differences(filled(_renamed(read_json(path))), filled(config)) if os.path.exists(path) else []
  lines = [line for line in lines if not line.startswith('workers:')]  # What is read does not depend on them.
  if lines[1:] or (lines and force):
    logging.warning('fields that differ from %s:\n  %s', path, '\n  '.join(lines))
  if lines and not force:
    what = lines[0] if len(lines) == 1 else f'{len(lines)} fields'
    raise InputError(f'{path}: a run with another config ({what}): --force goes on with the new one')


def begin(workdir: str, config: Mapping[str, Any], checkpoint: Checkpoint | None) -> None:
  """Writes config, revision, machine and, of a new workdir, tokenizer and model: once all that can be checked has been.

  Args:
    workdir: made if missing.
    config: of the run, from `to_json`.
    checkpoint: what a new run starts from; None where the workdir is begun.

  Raises:
    OSError: nothing can be written there.
  """
  os.makedirs(workdir, exist_ok=True)
  if checkpoint is not None:
    write_tokenizer(workdir, checkpoint)
  write_json(os.path.join(workdir, RUN_CONFIG_FILE), config)
  with open(os.path.join(workdir, REVISION_FILE), 'w') as file:
    file.write(f'{revision()}\n')
  with open(os.path.join(workdir, MACHINE_FILE), 'w') as file:
    file.write(f'{machine()}\n')
  if checkpoint is not None:
    # It says that the workdir is begun.
    write_json(os.path.join(workdir, CONFIG_FILE), model_config.config_to_dict(checkpoint.config))


def machine() -> str:
  """Devices and processor that a run is on: '8 x NVIDIA H100 80GB HBM3, 1 process, 192 cores of x86_64'."""
  processes = jax.process_count()
  return (
    f'{jax.device_count()} x {jax.devices()[0].device_kind}, {processes} process{"es" if processes > 1 else ""}, '
    f'{os.cpu_count()} cores of {platform.machine()}'
  )


def write_tokenizer(directory: str, checkpoint: Checkpoint) -> None:
  """Writes the tokenizer of a checkpoint, and what goes with it, as a workdir has them."""
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
  """Removes the empty directories in a workdir that was not begun: those in which a refused run wrote nothing."""
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
  workdir = local_files(split_ema(checkpoint)[0])
  path = os.path.join(workdir, RUN_CONFIG_FILE)
  # PyTorch layouts have a config.json too, of another kind.
  return _renamed(read_json(path)) if is_begun(workdir) and os.path.exists(path) else {}


def _renamed(values: Any) -> Any:
  """A config that was saved before some fields had their names."""
  if not isinstance(values, dict):
    return values
  values = {RENAMED.get(name, name): _renamed(value) for name, value in values.items()}
  return {name: RENAMED_VALUES.get(f'{name}: {value}', value) for name, value in values.items()}


def read_sampling(checkpoint: str, defaults: Mapping[str, float | int] = SAMPLING) -> dict[str, float | int]:
  """How images are generated: as a workdir's config says, else as the defaults do."""
  stored = read_config(checkpoint).get('sampling', {})
  # A config may say 5 where it means 5.0; what is stored with a picture is to be the same.
  return {name: type(default)(stored.get(name, default)) for name, default in defaults.items()}


def differences(old: Any, new: Any, name: str = '') -> list[str]:
  """What two configs differ in, a line each: 'stages.stage1.steps: 100 -> 200'."""
  if isinstance(old, dict) and isinstance(new, dict):
    keys = [*old, *(key for key in new if key not in old)]
    found = [differences(old.get(key), new.get(key), f'{name}.{key}' if name else key) for key in keys]
    return [line for lines in found for line in lines]
  return [] if old == new else [f'{name}: {json.dumps(old)} -> {json.dumps(new)}']
