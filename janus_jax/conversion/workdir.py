"""The parameters of a training workdir: those of its newest checkpoint that is whole."""

import logging
import os

import tensorstore
from etils import epath

from janus_jax.conversion.buckets import ORBAX_PROTOCOL, is_url, reaching
from janus_jax.conversion.lazy import LazyArray
from janus_jax.conversion.orbax_files import read_orbax
from janus_jax.errors import InputError
from janus_jax.models.files import CHECKPOINTS_DIRECTORY, PARAMS_DIRECTORY

# Orbax's name. Locally a checkpoint has its name from when it is whole; in a bucket, once it has this file.
COMMIT_FILE = 'commit_success.txt'


def is_workdir(path: str) -> bool:
  """Whether there are checkpoints of a run, in a directory or bucket."""
  if is_url(path) and not path.startswith(ORBAX_PROTOCOL):
    return False
  with reaching(path, 'a directory that can be read'):
    return epath.Path(path, CHECKPOINTS_DIRECTORY).is_dir()


def read_newest(workdir: str) -> tuple[str, dict[str, LazyArray]]:
  """Opens the parameters of the newest whole checkpoint; a damaged one is passed over with a line in the log.

  Args:
    workdir: local, or gs://BUCKET/...

  Returns:
    (directory of the parameters, parameter path -> array).

  Raises:
    InputError: there is no checkpoint yet, or none is whole.
  """
  directory = os.path.join(workdir, CHECKPOINTS_DIRECTORY)
  # Other names: saves that were cut short, checkpoints that training has set aside.
  paths = [path for path in epath.Path(directory).iterdir() if path.name.isdecimal()]
  if is_url(workdir):
    paths = [path for path in paths if (path / COMMIT_FILE).exists()]
  steps = sorted((int(path.name) for path in paths), reverse=True)
  for step in steps:
    params = os.path.join(directory, str(step), PARAMS_DIRECTORY)
    try:
      arrays = read_orbax(params)
      check_data(params)
    except InputError as error:
      logging.warning('%s: damaged, passed over (%s)', os.path.join(directory, str(step)), error)
      continue
    return params, arrays
  if steps:
    raise InputError(f'{directory}: none of {len(steps)} checkpoints is whole')
  raise InputError(f'{directory}: no checkpoint yet, expected a directory named by its step')


def check_data(directory: str) -> None:
  """Raises InputError if a file that an Orbax (OCDBT) tree refers to is missing or too short.

  Reads the index alone, so that it takes milliseconds for any size; changed bytes are not found.
  """
  try:
    lengths = _file_lengths(directory)
  except (ValueError, KeyError, IndexError) as error:
    raise InputError(f'{directory}: damaged index ({" ".join(str(error).split())[:200]})') from error
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
