"""Checks that the processes of a run agree on settings, code, data and weights before it begins (`hosts.check_same`).

Where they differ the run would train, and on garbage: each process makes its part of every batch and of every update.
"""

import hashlib
import importlib.metadata
import itertools
import os
import pathlib
import platform
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

import janus_jax
from janus_jax.conversion.checkpoint import Checkpoint
from janus_jax.data.sources import build
from janus_jax.data.sources.files import find_files
from janus_jax.errors import InputError
from janus_jax.models import config as model_config
from janus_jax.runs.config import DataConfig, TrainConfig, to_json
from janus_jax.runs.datasets import RunData
from janus_jax.training import hosts

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')
# Settings of jax that change what a step computes.
JAX_SETTINGS = ('jax_enable_x64', 'jax_default_matmul_precision', 'jax_default_prng_impl', 'jax_threefry_partitionable')
RECORDS = 16  # Records of each source that are compared to the byte.
FILES = 2000  # Most files of each source whose sizes and contents are compared.
WHOLE_FILES = 256e6  # Bytes of a source up to which its files are read whole; else three pieces of each.
PIECE = 4096  # Bytes of such a piece.
ARRAYS = 8  # Arrays of each part of the model, the smallest ones, that are compared to the byte.


def check_same_run(config: TrainConfig, workdir: str, force: bool) -> None:
  """Raises InputError, in all processes, where they differ in flags, config, code, versions or settings of jax."""
  if jax.process_count() == 1:
    return
  hosts.check_same('other flags', {'workdir': workdir, 'force': force})
  hosts.check_same('another config', to_json(config))
  hosts.check_same('other code', code())
  hosts.check_same('other versions', versions())
  hosts.check_same('other settings of jax', {name: str(getattr(jax.config, name)) for name in JAX_SETTINGS})


def check_same_data(config: DataConfig, data: RunData, start: Checkpoint | None) -> None:
  """Raises InputError, in all processes, where they read other data, or start from other weights (`start`, if new)."""
  if jax.process_count() == 1:
    return
  with hosts.together():
    sources, weights = describe_data(config, data), describe_start(start) if start else {}
  hosts.check_same('other data', sources)
  hosts.check_same('another starting checkpoint', weights)


def code() -> dict[str, str]:
  """Digest of each file of this package, by its path."""
  root = pathlib.Path(janus_jax.__file__).parent
  return {str(path.relative_to(root.parent)): _digest([path.read_bytes()]) for path in sorted(root.rglob('*.py'))}


def versions() -> dict[str, str]:
  """Versions of Python and of the packages that a step depends on."""
  major, minor, _ = platform.python_version_tuple()
  return {'python': f'{major}.{minor}'} | {name: importlib.metadata.version(name) for name in PACKAGES}


def describe_data(config: DataConfig, data: RunData) -> dict[str, Any]:
  """Number and digest of the records of each source, and of the files that they come from."""
  found = {}
  for split, sources in (('train', data.train), ('held_out', data.held_out)):
    for task, named in sources.items():
      for name, records in named.items():
        spread = sorted({index * len(records) // RECORDS for index in range(RECORDS)}) if len(records) else []
        digest = _digest(_bytes_of(_try_record(records, index)) for index in spread)
        found[f'{split}.{task}.{name}'] = {'records': len(records), 'digest of some records': digest}
  if config.name == 'files':
    for name, spec in config.specs.items():
      found[f'data.sources.{name}'] = _describe_files(_files_of(spec))
  return found


def describe_start(start: Checkpoint) -> dict[str, Any]:
  """Architecture and tokenizer files of a checkpoint, and shapes and some values of each part."""
  params = start.params
  found: dict[str, Any] = {'model': model_config.config_to_dict(start.config)}
  found |= {name: _digest([content]) for name, content in sorted(start.tokenizer_files.items())}
  for part, group in itertools.groupby(sorted(params), key=lambda path: path.split('/')[0]):
    paths = list(group)
    shapes = [f'{path} {params[path].shape} {params[path].dtype}'.encode() for path in paths]
    by_size = sorted(paths, key=lambda path: (params[path].nbytes, path))
    chosen = by_size[:ARRAYS] + [path for path in by_size if len(params[path].shape) > 1][:ARRAYS]
    values = (_bytes_of(params[path][...]) for path in chosen)
    found[f'parameters of {part}'] = _digest([*shapes, *values])
  return found


def _files_of(spec: build.SourceSpec) -> list[str]:
  """Files of a source, as far as they are local or can be listed."""
  found = []
  for path in filter(None, (spec.directory,) if spec.format == 'tfds' else spec.path):
    try:
      walked = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
      found += walked if os.path.isdir(path) else find_files(path)
    except InputError:  # The reader that opens it says what is wrong.
      found.append(path)
  return sorted(found)


def _describe_files(paths: list[str]) -> dict[str, Any]:
  chosen = paths[:: -(-len(paths) // FILES)] if paths else []
  sizes = {path: os.path.getsize(path) for path in chosen if os.path.isfile(path)}
  whole = sum(sizes.values()) <= WHOLE_FILES
  return {
    'files': len(paths),
    'bytes': sum(sizes.values()),
    'digest of their names': _digest(os.path.basename(path).encode() for path in paths),
    'digest of their content': _digest(piece for path, size in sizes.items() for piece in _pieces(path, size, whole)),
  }


def _pieces(path: str, size: int, whole: bool) -> Iterator[bytes]:
  with open(path, 'rb') as file:
    for start in (0,) if whole else (0, size // 2, max(size - PIECE, 0)):
      file.seek(start)
      yield file.read(None if whole else PIECE)


def _try_record(records: Any, index: int) -> Any:
  """A record without its origin: hosts may have the data in folders of different names."""
  try:
    return {name: value for name, value in records[index].items() if name != 'where'}
  except InputError as error:
    return type(error).__name__


def _bytes_of(value: Any) -> bytes:
  """Bytes that tell values of records and parameters apart."""
  if isinstance(value, Mapping):
    return b''.join(_bytes_of(key) + _bytes_of(value[key]) for key in sorted(value))
  if isinstance(value, list | tuple):
    return b''.join(map(_bytes_of, value))
  if isinstance(value, np.ndarray):
    return f'{value.dtype}{value.shape}'.encode() + np.ascontiguousarray(value).tobytes()
  if isinstance(value, bytes):
    return value
  if isinstance(value, str | int | float | bool | np.generic) or value is None:
    return f'{value!r};'.encode('utf-8', 'surrogatepass')
  return type(value).__name__.encode()


def _digest(parts: Iterable[bytes]) -> str:
  found = hashlib.sha256()
  for part in parts:
    found.update(f'{len(part)}:'.encode())
    found.update(part)
  return found.hexdigest()[:16]
