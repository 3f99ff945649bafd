"""The parameters of a training workdir: those of its newest checkpoint that is whole, or their averages."""

import json
import logging
import os
from typing import Any

import tensorstore
from etils import epath

from janus_jax.conversion.buckets import ORBAX_PROTOCOL, is_url, reaching
from janus_jax.conversion.lazy import LazyArray
from janus_jax.conversion.orbax_files import read_orbax
from janus_jax.errors import InputError, one_line
from janus_jax.models.files import CHECKPOINTS_DIRECTORY, METADATA_FILE, PARAMS_DIRECTORY, TRAIN_DIRECTORY

# Orbax's mark of a whole checkpoint in a bucket. A local one gets its name only when it is whole.
COMMIT_FILE = 'commit_success.txt'
# Follows the path of a workdir to mean the averages of its parameters (`optimizer.ema_decay`).
EMA_SUFFIX = '@ema'


class NoAverageError(InputError):
  """A checkpoint of a run that averages nothing."""


def split_ema(path: str | os.PathLike) -> tuple[str, bool]:
  """'DIR@ema' -> ('DIR', True); any other path -> (path, False)."""
  path = os.fspath(path)
  return path.removesuffix(EMA_SUFFIX), path.endswith(EMA_SUFFIX)


def is_workdir(path: str) -> bool:
  """Tells whether a directory or bucket has checkpoints of a run."""
  if is_url(path) and not path.startswith(ORBAX_PROTOCOL):
    return False
  with reaching(path, 'a directory that can be read'):
    return epath.Path(path, CHECKPOINTS_DIRECTORY).is_dir()


def read_newest(workdir: str, averaged: bool = False) -> tuple[str, dict[str, LazyArray]]:
  """Opens the parameters of the newest whole checkpoint; a damaged one is passed over with a line in the log.

  Of a run with `patience` the one with the lowest held-out loss comes before the newest.

  Args:
    workdir: local, or gs://BUCKET/...
    averaged: with averages, as in `read_params`.

  Returns:
    (directory of the parameters, parameter path -> array).

  Raises:
    InputError: there is no checkpoint yet, none is whole, or the newest has no averages.
  """
  directory = os.path.join(workdir, CHECKPOINTS_DIRECTORY)
  # Other names: saves that were cut short, checkpoints that training has set aside.
  paths = [path for path in epath.Path(directory).iterdir() if path.name.isdecimal()]
  whole = [path for path in paths if not is_url(workdir) or (path / COMMIT_FILE).exists()]
  steps = sorted((int(path.name) for path in whole), reverse=True)
  best = _best_step(os.path.join(directory, str(steps[0]))) if steps else None
  for step in [best, *steps] if best in steps else steps:
    checkpoint = os.path.join(directory, str(step))
    try:
      arrays = read_params(checkpoint, averaged)
    except NoAverageError:
      raise
    except InputError as error:
      logging.warning('%s: damaged, passed over (%s)', checkpoint, error)
      continue
    return os.path.join(checkpoint, PARAMS_DIRECTORY), arrays
  if steps:
    raise InputError(f'{directory}: none of {len(steps)} checkpoints is whole')
  raise InputError(f'{directory}: no checkpoint yet, expected a directory named by its step')


def _best_step(checkpoint: str) -> int | None:
  """The step with the lowest held-out loss that a checkpoint tells of, if it does."""
  return _metadata(checkpoint).get('best', {}).get('step')


def image_sizes(checkpoint: str | os.PathLike) -> tuple[int, int]:
  """Sizes of the images to understand and to generate that a checkpoint was trained on; zeros where it does not say."""
  found = _metadata(checkpoint)
  return found.get('image_size', 0), found.get('generation_size', 0)


def _metadata(checkpoint: str | os.PathLike) -> dict[str, Any]:
  """Metadata that training saved with a checkpoint; {} where that is damaged: the parameters may be whole."""
  try:
    found = json.loads(epath.Path(checkpoint, METADATA_FILE).read_text())['custom_metadata']
  except (OSError, ValueError, LookupError):
    return {}
  return found if isinstance(found, dict) else {}


def read_params(checkpoint: str, averaged: bool = False) -> dict[str, LazyArray]:
  """Opens the parameters of one checkpoint: path -> array.

  Args:
    checkpoint: directory, a workdir's checkpoints/<step>.
    averaged: with the average in place of each parameter that has one: those that its stage trained.

  Raises:
    InputError: it is not whole.
    NoAverageError: it has no averages.
  """
  params = _read_whole(os.path.join(checkpoint, PARAMS_DIRECTORY))
  if not averaged:
    return params
  state = _read_whole(os.path.join(checkpoint, TRAIN_DIRECTORY))
  averages = {path.removeprefix('ema/'): leaf for path, leaf in state.items() if path.startswith('ema/')}
  if not averages:
    raise NoAverageError(
      f'{checkpoint}: no averages: expected a run with optimizer.ema_decay, or the path without {EMA_SUFFIX}'
    )
  return params | averages


def _read_whole(directory: str) -> dict[str, LazyArray]:
  arrays = read_orbax(directory)
  check_checkpoint_files(directory)
  return arrays


def check_checkpoint_files(directory: str) -> None:
  """Raises InputError if a file that an Orbax (OCDBT) tree refers to is missing or too short.

  Reads the index alone, so that it takes milliseconds for any size; changed bytes are not found.
  """
  try:
    lengths = _file_lengths(directory)
  except (ValueError, KeyError, IndexError) as error:
    raise InputError(f'{directory}: damaged index ({one_line(error)[:200]})') from error
  for name, length in lengths.items():
    path = epath.Path(directory, name)
    size = path.stat().length if path.exists() else 0
    if size < length:
      raise InputError(f'{path}: {size} bytes, expected at least {length}')


def _file_lengths(directory: str) -> dict[str, int]:
  """File -> how many bytes the newest version of an OCDBT database expects in it, by walking its B+tree."""
  local = {'driver': 'file', 'path': os.path.abspath(directory) + '/'}
  base = tensorstore.KvStore.open(f'{directory}/' if is_url(directory) else local).result()
  pending = [tensorstore.ocdbt.dump(base).result()['versions'][-1]['root']]
  lengths = {}
  while pending:
    entry = pending.pop()
    reference = entry.get('location') or entry.get('indirect_value')
    if reference is None:  # A small value stands in the index itself.
      continue
    kind, folder, file, offset, length = reference.split(':')
    name = folder + file
    lengths[name] = max(lengths.get(name, 0), int(offset) + int(length))
    if kind != 'value':
      pending += tensorstore.ocdbt.dump(base, reference).result()['entries']
  return lengths
