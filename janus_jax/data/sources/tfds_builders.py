"""Datasets of the TFDS catalogue (`imagenet2012`, `coco_captions`, ...), read at random without TensorFlow."""

import contextlib
import fnmatch
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError

from janus_jax.data.sources.array_record import ArrayRecords, count_records
from janus_jax.errors import InputError, RecordError

INFO = 'dataset_info.json'
VERSION = re.compile(r'\d+\.\d+\.\d+')
# '[namespace:]name[/config][:version]', of which a version may have wildcards.
NAME = re.compile(r'(?P<name>\w+)(?:/(?P<config>[^:]+))?(?::(?P<version>[\d.*]+))?')


class TfdsExamples(ArrayRecords):
  """Examples of one split, as dicts of Python values; images stay as they are stored, JPEG or PNG."""

  def __init__(self, name: str, directory: str, split: str, number_classes: bool, used: Sequence[str] = ()):
    """
    Args:
      name: a builder, with config and version if wanted: 'imagenet2012', 'coco_captions/2014:1.1.0'. Or the folder in
        which it lies: '/data/mnist/3.0.1'.
      directory: `data_dir` of TFDS; '' for its own default.
      split: 'train', 'train[:90%]', ...
      number_classes: whether a class label stays a number; else it becomes its name.
      used: the features that are read, by the names that `Fields` has for them. Others may be anything.

    Raises:
      InputError: no such builder or split, not prepared there, or in a format that has no random access; a shard that
        is missing or damaged; no such feature, or a class label without names.
    """
    builder = _open_builder(name, directory)
    self._features, self._number_classes, self._used = builder.info.features, number_classes, tuple(used)
    for field in used:
      self._check_feature(name, str(builder.data_dir), field)
    self._undecoded = {
      name: tfds.decode.SkipDecoding()
      for name, feature in self._features.items()
      if isinstance(feature, tfds.features.Image)
    }
    splits = builder.info.splits
    try:
      parts = splits[split].file_instructions
    except (KeyError, ValueError, AssertionError) as error:
      expected = ', '.join(sorted(splits)) or 'none'
      raise InputError(f'TFDS {name}: split {split!r}: {_first_line(error)}: expected one of {expected}') from None
    for part in parts:
      if (count := count_records(str(part.filename))) != part.examples_in_shard:
        expected = f'expected {part.examples_in_shard}, as {INFO} says'
        raise InputError(f'TFDS {name}: {part.filename}: {count} records: {expected}')
    super().__init__(parts)

  def _check_feature(self, name: str, directory: str, field: str) -> None:
    """Raises InputError unless there is such a feature, with names if it is a class label that is to have one."""
    feature = self._features
    for part in field.split('/'):
      feature = feature.feature if isinstance(feature, tfds.features.Sequence) else feature
      features = feature if isinstance(feature, tfds.features.FeaturesDict) else {}
      if part not in features:
        known = ', '.join(sorted(features)) or 'none within it'
        raise InputError(f'TFDS {name}: no feature {field!r}: expected one of {known}')
      feature = feature[part]
    if isinstance(feature, tfds.features.ClassLabel) and not self._number_classes and not feature._int2str:
      raise InputError(
        f'TFDS {name}: {field}: {feature.num_classes} classes without names: expected '
        f'{directory}/{field.replace("/", "-")}.labels.txt, or a file of them as data.sources.NAME.names'
      )

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Raises RecordError for a record that is damaged, or of a class that has no name."""
    record = self.read(index)
    try:
      example = self._features.deserialize_example_np(record, decoders=self._undecoded)
    except (DecodeError, ValueError, KeyError, TypeError) as error:
      raise RecordError('damaged', f'{self.where(index)}: {_first_line(error)}: expected an example') from None
    try:
      return self._plain(self._features, example, '')
    except RecordError as error:
      raise error.at(self.where(index)) from None

  def _plain(self, feature: tfds.features.FeatureConnector, value: Any, path: str) -> Any:
    """Names in place of class numbers; lists of dicts and dicts of lists alike become dicts of lists."""
    below = f'{path}/' if path else ''
    match feature:
      case tfds.features.FeaturesDict():
        return {name: self._plain(feature[name], part, below + name) for name, part in value.items()}
      case tfds.features.Sequence() if isinstance(value, Mapping):
        inner = feature.feature
        return {name: [self._plain(inner[name], part, below + name) for part in parts] for name, parts in value.items()}
      case tfds.features.Sequence():
        return [self._plain(feature.feature, part, path) for part in value]
      case tfds.features.ClassLabel() if not self._number_classes and (path in self._used or not self._used):
        if not 0 <= value < len(feature.names):  # TFDS has -1 for a class that is not known.
          raise RecordError('class', f'{path}: class {value}: expected 0 to {len(feature.names) - 1}')
        return feature.names[value]
    return value.item() if isinstance(value, np.generic) else value


def _open_builder(name: str, directory: str) -> tfds.core.DatasetBuilder:
  """The builder of a dataset that is prepared in ArrayRecord files. Raises InputError."""
  at = next((path for path in (name, os.path.join(directory, name)) if _is_builder(path)), None)
  try:
    builder = tfds.builder_from_directory(at) if at else tfds.builder(name, data_dir=directory or None)
    if not at and not builder.is_prepared():
      raise ValueError('not prepared')
  except Exception as error:  # Of JSON, protocol buffers, files, features' own code: they have no common base class.
    expected = f'expected {INFO}, features.json and label files as TFDS writes them'
    fault = f'{at}: {_first_line(error)}: {expected}' if at else _fault(name, directory, error)
    raise InputError(f'TFDS {name}: {fault}') from None
  found = builder.info.file_format
  others = getattr(builder.info, 'alternative_file_formats', None) or []
  if found and found.value == 'array_record':
    return builder
  if any(other.value == 'array_record' for other in others):
    return tfds.builder_from_directory(str(builder.data_dir), file_format='array_record')
  raise InputError(
    f'TFDS {name}: {builder.data_dir} has {found.value if found else "unknown"} files: expected array_record, as after '
    f"`tfds.builder({builder.name!r}, file_format='array_record').download_and_prepare()`"
  )


def _is_builder(path: str) -> bool:
  return os.path.isfile(os.path.join(path, INFO))


def _fault(name: str, directory: str, error: Exception) -> str:
  """The part of a builder's name that is not there, and what is there."""
  root = os.path.expanduser(directory or os.environ.get('TFDS_DATA_DIR') or str(tfds.core.constants.DATA_DIR))
  prepare = f"`tfds.builder({name!r}, data_dir={root!r}, file_format='array_record').download_and_prepare()`"
  if os.sep in name and (os.path.isabs(name) or os.path.isdir(os.path.dirname(name))):
    if not os.path.isdir(name):
      return f'no such folder: expected that of a version, with {INFO}'
    return f'no {INFO} in it: expected the folder of a version{_one_of(_folders(name))}'
  if not (match := NAME.fullmatch(name)):
    return 'expected NAME, NAME/CONFIG or NAME/CONFIG:VERSION, or the folder of a version'
  if directory and not os.path.isdir(root):
    return f'{root}: no such folder: expected the data_dir of TFDS (data.sources.NAME.directory)'
  folder = os.path.join(root, match['name'])
  if not os.path.isdir(folder):
    if _is_in_catalogue(match['name']):
      return f'not prepared in {root}: expected after {prepare}'
    expected = f'expected the name of a TFDS dataset{_one_of(_folders(root))}'
    return f'no such dataset in {root}, nor in the catalogue of TFDS: {expected}'
  configs = [entry for entry in _folders(folder) if _versions(os.path.join(folder, entry))]
  if match['config'] and match['config'] not in configs:
    expected = f'one of {", ".join(configs)}' if configs else f'{match["name"]} alone'
    return f'no config {match["config"]!r} in {folder}: expected {expected}'
  if not match['config'] and configs and not _versions(folder):
    expected = ' or '.join(f'{match["name"]}/{config}' for config in configs)
    return f'{folder} has configs: expected {expected}'
  where = os.path.join(folder, match['config']) if match['config'] else folder
  versions = _versions(where)
  if match['version'] and not fnmatch.filter(versions, match['version']):
    return f'no version {match["version"]} in {where}: expected one of {", ".join(versions) or "none"}'
  if not any(_is_builder(os.path.join(where, version)) for version in versions):
    return f'not prepared in {where}: expected after {prepare}'
  return f'{folder}: {_first_line(error)}: expected {INFO} and features.json as TFDS writes them'


def _folders(path: str) -> list[str]:
  """Names of the folders in a folder; none if it cannot be read."""
  with contextlib.suppress(OSError), os.scandir(path) as entries:
    named = sorted(entry.name for entry in entries if entry.is_dir())
    return [name for name in named if name[0] != '.' and name != 'downloads']
  return []


def _versions(path: str) -> list[str]:
  return list(filter(VERSION.fullmatch, _folders(path)))


def _one_of(names: list[str]) -> str:
  """', one of a, b, ...' for a message."""
  return f', one of {", ".join(names[:10])}{", ..." if len(names) > 10 else ""}' if names else ''


def _is_in_catalogue(name: str) -> bool:
  try:
    tfds.builder_cls(name)
  except (tfds.core.DatasetNotFoundError, ValueError):
    return False
  return True


def _first_line(error: Exception) -> str:
  """The first line of an exception's message, or its type."""
  return (str(error).strip().splitlines() or [type(error).__name__])[0]
