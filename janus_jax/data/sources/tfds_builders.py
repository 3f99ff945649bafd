"""Datasets of the TFDS catalogue (`imagenet2012`, `coco_captions`, ...), read at random without TensorFlow."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from janus_jax.errors import InputError


class TfdsExamples:
  """Examples of one split, as dicts of Python values; images stay as they are stored, JPEG or PNG."""

  def __init__(self, name: str, directory: str, split: str, number_classes: bool):
    """
    Args:
      name: of the builder, with config and version if wanted: 'imagenet2012', 'coco_captions/2014:1.1.0'.
      directory: `data_dir` of TFDS; '' for its own default.
      split: 'train', 'train[:90%]', ...
      number_classes: whether a class label stays a number; else it becomes its name.

    Raises:
      InputError: no such builder or split, not prepared there, or prepared in a format that has no random access.
    """
    try:
      builder = tfds.builder(name, data_dir=directory or None)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
      raise InputError(f'TFDS {name}: {_first_line(error)}: expected the name of a TFDS dataset') from None
    if not builder.is_prepared():
      raise InputError(
        f'TFDS {name}: not prepared in {builder.data_dir}: expected after '
        f"`tfds.builder({name!r}, data_dir=..., file_format='array_record').download_and_prepare()`"
      )
    try:
      self._source = builder.as_data_source(split, decoders=_undecoded(builder.info.features))
    except (NotImplementedError, ValueError, KeyError) as error:
      raise InputError(f'TFDS {name}, split {split!r}: {_first_line(error)}') from None
    self._features, self._number_classes = builder.info.features, number_classes

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self._plain(self._features, self._source[index])

  def _plain(self, feature: tfds.features.FeatureConnector, value: Any) -> Any:
    """Names in place of class numbers; lists of dicts and dicts of lists alike become dicts of lists."""
    match feature:
      case tfds.features.FeaturesDict():
        return {name: self._plain(feature[name], part) for name, part in value.items()}
      case tfds.features.Sequence() if isinstance(value, Mapping):
        return {name: [self._plain(feature.feature[name], part) for part in parts] for name, parts in value.items()}
      case tfds.features.Sequence():
        return [self._plain(feature.feature, part) for part in value]
      case tfds.features.ClassLabel():
        return int(value) if self._number_classes else feature.int2str(int(value))
    return value.item() if isinstance(value, np.generic) else value


def _undecoded(features: tfds.features.FeaturesDict) -> dict[str, Any]:
  return {
    name: tfds.decode.SkipDecoding() for name, feature in features.items() if isinstance(feature, tfds.features.Image)
  }


def _first_line(error: Exception) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0]
