"""Datasets of the TFDS catalogue (`imagenet2012`, `coco_captions`, ...), read at random without TensorFlow."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError

from janus_jax.data.sources.array_record import ArrayRecords, FilePart, count_records
from janus_jax.data.sources.tfds_lookup import first_line, open_builder
from janus_jax.errors import InputError, RecordError


class TfdsExamples(ArrayRecords):
  """Examples of one split, as dicts of Python values; images stay as they are stored, JPEG or PNG."""

  def __init__(self, name: str, directory: str, split: str, number_classes: bool, used: Sequence[str] = ()):
    """
    Args:
      name: of the builder, with config and version if wanted: 'imagenet2012', 'coco_captions/2014:1.1.0'. Or the folder
        in which it lies: '/data/mnist/3.0.1'.
      directory: `data_dir` of TFDS; '' for its own default.
      split: 'train', 'train[:90%]', ...
      number_classes: whether a class label stays a number; else it becomes its name.
      used: the features that are read, by the names that `Fields` has for them. Others may be anything.

    Raises:
      InputError: no such builder or split, not prepared there, or in a format that has no random access; a shard that
        is missing or damaged; no such feature, or a class label without names.
    """
    builder = open_builder(name, directory)
    self._features, self._number_classes, self._used = builder.info.features, number_classes, tuple(used)
    for field in used:
      self._check_feature(name, str(builder.data_dir), field)
    self._undecoded = _undecoded(self._features)
    splits = builder.info.splits
    try:
      parts = splits[split].file_instructions
    except (KeyError, ValueError, AssertionError) as error:
      raise InputError(
        f'TFDS {name}: split {split!r}: {first_line(error)}: expected one of {", ".join(sorted(splits)) or "none"}'
      ) from None
    for part in parts:
      if (count := count_records(str(part.filename))) != part.examples_in_shard:
        expected = f'expected {part.examples_in_shard}, as dataset_info.json says'
        raise InputError(f'TFDS {name}: {part.filename}: {count} records: {expected}')
    super().__init__([FilePart(str(part.filename), part.skip, part.take, part.examples_in_shard) for part in parts])

  def _check_feature(self, name: str, directory: str, field: str) -> None:
    feature, whole = self._features, field
    for part in field.split('/'):
      feature = feature.feature if isinstance(feature, tfds.features.Sequence) else feature
      features = feature if isinstance(feature, tfds.features.FeaturesDict) else {}
      if part not in features:
        known = ', '.join(sorted(features)) or 'none within it'
        raise InputError(f'TFDS {name}: no feature {whole!r}: expected one of {known}')
      feature = feature[part]
    if isinstance(feature, tfds.features.ClassLabel) and not self._number_classes and not feature._int2str:
      raise InputError(
        f'TFDS {name}: {field}: {feature.num_classes} classes without names: expected '
        f'{directory}/{field.replace("/", "-")}.labels.txt, or a file of them as data.sources.NAME.names'
      )

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Raises RecordError for a record that is damaged, or of a class that has no name."""
    try:
      example = self._features.deserialize_example_np(self.read(index), decoders=self._undecoded)
    except (DecodeError, ValueError, KeyError, TypeError) as error:
      if isinstance(error, RecordError):
        raise
      raise RecordError('damaged', f'{self.where(index)}: {first_line(error)}: expected an example') from None
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
        return {
          name: [self._plain(feature.feature[name], part, below + name) for part in parts]
          for name, parts in value.items()
        }
      case tfds.features.Sequence():
        return [self._plain(feature.feature, part, path) for part in value]
      case tfds.features.ClassLabel():
        return self._class(feature, int(value), path)
    return value.item() if isinstance(value, np.generic) else value

  def _class(self, feature: tfds.features.ClassLabel, number: int, path: str) -> int | str:
    if self._number_classes or (path not in self._used and self._used):
      return number
    if not 0 <= number < len(feature.names):  # TFDS has -1 for a class that is not known.
      raise RecordError('class', f'{path}: class {number}: expected 0 to {len(feature.names) - 1}')
    return feature.names[number]


def _undecoded(features: tfds.features.FeaturesDict) -> dict[str, Any]:
  return {
    name: tfds.decode.SkipDecoding() for name, feature in features.items() if isinstance(feature, tfds.features.Image)
  }
