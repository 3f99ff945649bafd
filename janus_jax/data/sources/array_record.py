"""ArrayRecord shards of `tf.train.Example` records, the layout that TFDS writes: read at random, written in order.

TensorFlow is not needed: TFDS brings the protocol buffer along, and the files are array_record's own.
"""

import contextlib
import dataclasses
import numbers
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource, FileInstruction
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from janus_jax.data.pointers import check_files
from janus_jax.data.sources.files import errors_named
from janus_jax.data.sources.indexed import BlockRecords
from janus_jax.errors import InputError, RecordError, one_line

NUMBERS = {'int64_list': np.int64, 'float_list': np.float32}


@dataclasses.dataclass(frozen=True)
class FilePart:
  """Consecutive records of a file, `take` of them after the first `skip`: array_record's FileInstruction."""

  filename: str
  skip: int
  take: int
  examples_in_shard: int


class ArrayRecords(BlockRecords):
  """The records of parts of files, one after the other, as bytes. Picklable; files are opened anew after that."""

  def __init__(self, parts: Sequence[FileInstruction]):
    """
    Args:
      parts: in the order of their records; files on a local or mounted disk, since array_record opens them by itself.
    """
    super().__init__(part.take for part in parts)
    self._parts = tuple(parts)
    self._source = ArrayRecordDataSource(self._parts)

  def where(self, index: int) -> str:
    """The name of a record in messages: 'PATH: record NUMBER', counted in its file."""
    part, number = self.locate(index)
    return f'{self._parts[part].filename}: record {self._parts[part].skip + number}'

  def read(self, index: SupportsIndex) -> bytes:
    """One record. Raises RecordError if it is damaged."""
    try:
      return self._source[range(len(self))[index]]
    except RuntimeError as error:  # Of the C++ reader: checksums that differ, a file cut off since it was opened.
      raise RecordError('damaged', f'{self.where(index)}: {one_line(error)}') from None


class ArrayRecordExamples(ArrayRecords):
  """The records of some files, one file after the other, as dicts. Picklable; files are opened anew after that."""

  def __init__(self, paths: Sequence[str]):
    """
    Args:
      paths: one or more files on a local or mounted disk.

    Raises:
      InputError: no paths, or a file that is not there or no ArrayRecord.
    """
    if not paths:
      raise InputError('no ArrayRecord files: expected at least one')
    counts = list(map(count_records, paths))
    super().__init__([FilePart(path, 0, count, count) for path, count in zip(paths, counts)])

  def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
    """One record: name -> value. A feature of one value is that value (bytes, int or float); of several, a list of
    bytes, int64[n] or float32[n]; of none, an empty one of these.

    Raises:
      IndexError: no such record.
      RecordError: it cannot be read from the file, or is no tf.train.Example.
    """
    record = self.read(index)
    try:
      return decode_example(record)
    except DecodeError:
      message = f'{self.where(index)}: {len(record)} bytes: expected a tf.train.Example'
      raise RecordError('damaged', message) from None


def count_records(path: str) -> int:
  """Number of records of an ArrayRecord file; only its end is read. Raises InputError if it is none."""
  reader = ArrayRecordReader(path)
  count = reader.num_records()  # 0 if the file is not whole; only closing the reader tells.
  try:
    reader.close()
  except RuntimeError as error:
    with errors_named(path, expected := 'an ArrayRecord file'):
      check_files([path])
      fault = one_line(error) if os.path.getsize(path) else '0 bytes'
    raise InputError(f'{path}: {fault or "damaged or cut off"}: expected {expected}') from None
  return count


def decode_example(record: bytes) -> dict[str, Any]:
  """A serialised `tf.train.Example` to a dict, as `ArrayRecordExamples` has them. Raises protobuf's DecodeError."""
  example = tf_example_pb2.Example.FromString(record)
  return {name: _value(feature) for name, feature in example.features.feature.items()}


def _value(feature: tf_feature_pb2.Feature) -> Any:
  kind = feature.WhichOneof('kind')
  values = getattr(feature, kind).value if kind else []
  if len(values) == 1:
    return values[0]
  return np.array(values, NUMBERS[kind]) if kind in NUMBERS else list(values)


def encode_example(mapping: Mapping[str, Any]) -> bytes:
  """Serialises a dict as a `tf.train.Example`, the same bytes for the same dict.

  Args:
    mapping: name -> text, bytes, an integer, a float, or a list or 1-D array of one of these.

  Raises:
    InputError: a value of another type.
  """
  example = tf_example_pb2.Example()
  for name, value in mapping.items():
    values = value if isinstance(value, list | tuple | np.ndarray) else [value]
    feature = example.features.feature[name]
    if all(isinstance(part, str | bytes) for part in values):
      feature.bytes_list.value.extend(part.encode() if isinstance(part, str) else part for part in values)
    elif all(isinstance(part, numbers.Integral) for part in values):
      feature.int64_list.value.extend(map(int, values))
    elif all(isinstance(part, numbers.Real) for part in values):
      feature.float_list.value.extend(map(float, values))
    else:
      kinds = ', '.join(sorted({type(part).__name__ for part in values}))
      raise InputError(f'feature {name!r}: {kinds}: expected text, bytes, numbers, or a list of one of them')
  return example.SerializeToString(deterministic=True)


def shard_path(directory: str, name: str, index: int, count: int) -> str:
  """Path of a shard: 'DIRECTORY/NAME-00003-of-00010.array_record'."""
  return os.path.join(directory, f'{name}-{index:05}-of-{count:05}.array_record')


class ShardWriter:
  """Writes one shard; a context manager. The file appears whole when the block ends well, or not at all.

  A process that is killed leaves a `.partial` behind, which the next writer of the shard overwrites.
  """

  def __init__(self, path: str):
    """`path` is in an existing directory on a local or mounted disk."""
    self.path, self._partial = path, f'{path}.partial'

  def __enter__(self) -> 'ShardWriter':
    # Groups of one: a record is read without decompressing its neighbours.
    self._writer = ArrayRecordWriter(self._partial, 'group_size:1')
    return self

  def write(self, record: bytes) -> None:
    """Appends a record. Raises InputError as `__exit__` does, where most faults show."""
    with self._faults_named():
      self._writer.write(record)

  def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
    """Raises InputError if the file cannot be written: no such directory, no permission, no space."""
    try:
      with self._faults_named():
        self._writer.close()
        if kind is None:
          os.replace(self._partial, self.path)
    except InputError:
      if kind is None:  # Else what ended the block is the news.
        raise
    finally:
      if os.path.exists(self._partial):
        os.remove(self._partial)

  @contextlib.contextmanager
  def _faults_named(self) -> Iterator[None]:
    try:
      yield
    except (RuntimeError, OSError) as error:  # RuntimeError: of the C++ writer.
      raise InputError(f'{self.path}: cannot be written: {one_line(error)}') from None
