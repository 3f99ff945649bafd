"""Where a prepared TFDS dataset lies, and, where there is none, which of the many reasons it is."""

import contextlib
import fnmatch
import os
import re
from typing import NoReturn

import tensorflow_datasets as tfds

from janus_jax.errors import InputError

INFO = 'dataset_info.json'
VERSION = re.compile(r'\d+\.\d+\.\d+')
# '[namespace:]name[/config][:version]', of which a version may have wildcards.
NAME = re.compile(r'(?P<name>\w+)(?:/(?P<config>[^:]+))?(?::(?P<version>[\d.*]+))?')


def open_builder(name: str, directory: str) -> tfds.core.DatasetBuilder:
  """The builder of a dataset that is prepared in ArrayRecord files.

  Args:
    name: as `tfds.builder` takes it, or the folder of a version: '/data/mnist/3.0.1'.
    directory: `data_dir` of TFDS; '' for its own default.

  Raises:
    InputError: there is none, which names what was looked for and what is there.
  """
  at = next((path for path in (name, os.path.join(directory, name)) if _is_builder(path)), None)
  try:
    builder = _read(at) if at else tfds.builder(name, data_dir=directory or None)
  except Exception as error:  # Of JSON, protocol buffers, files, features' own code: they have no common base class.
    if at:
      expected = f'expected {INFO}, features.json and label files as TFDS writes them'
      raise InputError(f'TFDS {name}: {at}: {first_line(error)}: {expected}') from None
    _refuse(name, directory, error)
  if not at and not builder.is_prepared():
    _refuse(name, directory, ValueError('not prepared'))
  return _as_array_record(name, builder)


def _is_builder(path: str) -> bool:
  return os.path.isfile(os.path.join(path, INFO))


def _read(path: str, **options: str) -> tfds.core.DatasetBuilder:
  return tfds.builder_from_directory(path, **options)


def _as_array_record(name: str, builder: tfds.core.DatasetBuilder) -> tfds.core.DatasetBuilder:
  found = builder.info.file_format
  others = getattr(builder.info, 'alternative_file_formats', None) or []
  if found and found.value == 'array_record':
    return builder
  if any(other.value == 'array_record' for other in others):
    return _read(str(builder.data_dir), file_format='array_record')
  raise InputError(
    f'TFDS {name}: {builder.data_dir} has {found.value if found else "unknown"} files: expected array_record, as after '
    f"`tfds.builder({builder.name!r}, file_format='array_record').download_and_prepare()`"
  )


def _refuse(name: str, directory: str, error: Exception) -> NoReturn:
  """Raises InputError that says what of 'name/config:version' is not there."""
  root = os.path.expanduser(directory or os.environ.get('TFDS_DATA_DIR') or str(tfds.core.constants.DATA_DIR))
  prepare = f"`tfds.builder({name!r}, data_dir={root!r}, file_format='array_record').download_and_prepare()`"
  match = NAME.fullmatch(name)
  if os.sep in name and (os.path.isabs(name) or os.path.isdir(os.path.dirname(name))):
    if not os.path.isdir(name):
      raise InputError(f'TFDS {name}: no such folder: expected that of a version, with {INFO}')
    inside = _folders(name)
    raise InputError(f'TFDS {name}: no {INFO} in it: expected the folder of a version{_listed(inside)}')
  if not match:
    raise InputError(f'TFDS {name}: expected NAME, NAME/CONFIG or NAME/CONFIG:VERSION, or the folder of a version')
  if directory and not os.path.isdir(root):
    raise InputError(
      f'TFDS {name}: {root}: no such folder: expected the data_dir of TFDS (data.sources.NAME.directory)'
    )
  there = os.path.join(root, match['name'])
  if not os.path.isdir(there):
    if _is_in_catalogue(match['name']):
      raise InputError(f'TFDS {name}: not prepared in {root}: expected after {prepare}')
    raise InputError(
      f'TFDS {name}: no such dataset in {root}, nor in the catalogue of TFDS: '
      f'expected the name of a TFDS dataset{_listed(_folders(root))}'
    )
  _refuse_config(name, match, there)
  versions = [entry for entry in _folders(_config_folder(match, there)) if VERSION.fullmatch(entry)]
  wanted = match['version']
  if wanted and not fnmatch.filter(versions, wanted):
    where = _config_folder(match, there)
    raise InputError(f'TFDS {name}: no version {wanted} in {where}: expected one of {", ".join(versions) or "none"}')
  whole = [entry for entry in versions if _is_builder(os.path.join(_config_folder(match, there), entry))]
  if not whole:
    raise InputError(f'TFDS {name}: not prepared in {_config_folder(match, there)}: expected after {prepare}')
  raise InputError(f'TFDS {name}: {there}: {first_line(error)}: expected {INFO} and features.json as TFDS writes them')


def _refuse_config(name: str, match: re.Match, there: str) -> None:
  """Raises InputError where a config that is named is not there, or none is named where there are some."""
  configs = [
    entry
    for entry in _folders(there)
    if not VERSION.fullmatch(entry) and any(map(VERSION.fullmatch, _folders(os.path.join(there, entry))))
  ]
  if match['config'] and match['config'] not in configs:
    expected = f'one of {", ".join(configs)}' if configs else f'{match["name"]} alone'
    raise InputError(f'TFDS {name}: no config {match["config"]!r} in {there}: expected {expected}')
  if not match['config'] and configs and not any(map(VERSION.fullmatch, _folders(there))):
    expected = ' or '.join(f'{match["name"]}/{config}' for config in configs)
    raise InputError(f'TFDS {name}: {there} has configs: expected {expected}')


def _config_folder(match: re.Match, there: str) -> str:
  return os.path.join(there, match['config']) if match['config'] else there


def _folders(path: str) -> list[str]:
  """Names of the folders in a folder; none if it cannot be read."""
  with contextlib.suppress(OSError), os.scandir(path) as entries:
    return sorted(
      entry.name for entry in entries if entry.is_dir() and entry.name[0] != '.' and entry.name != 'downloads'
    )
  return []


def _listed(names: list[str]) -> str:
  """', one of a, b, ...' for a message."""
  return f', one of {", ".join(names[:10])}{", ..." if len(names) > 10 else ""}' if names else ''


def _is_in_catalogue(name: str) -> bool:
  try:
    tfds.builder_cls(name)
  except (tfds.core.DatasetNotFoundError, ValueError):
    return False
  return True


def first_line(error: Exception) -> str:
  """What an exception says, in short."""
  return (str(error).strip().splitlines() or [type(error).__name__])[0]
