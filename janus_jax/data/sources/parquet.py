"""Rows of parquet files, read at random; what is cheap is to read the rows of one row group together."""

import bisect
import collections
import itertools
import threading
from collections.abc import Sequence
from typing import Any

from janus_jax.data.sources.files import open_file
from janus_jax.errors import InputError, RecordError

# Row groups that a process keeps decoded: the one being read and the one before.
KEPT = 2


class ParquetRows:
  """Rows as dicts of Python values; structs become dicts. Footers are read once, row groups when a row is wanted.

  Attributes:
    block_sizes: rows of each row group, in order.
  """

  def __init__(self, paths: Sequence[str], columns: Sequence[str]):
    """
    Args:
      paths: of the files.
      columns: to read; no other one is touched.

    Raises:
      InputError: a file that is not parquet, or that lacks a column.
    """
    self._columns = tuple(columns)
    self._groups = [(path, group, rows) for path in paths for group, rows in enumerate(_footer(path, self._columns))]
    self.block_sizes = tuple(rows for _, _, rows in self._groups)
    self._ends = list(itertools.accumulate(self.block_sizes))
    self._start()

  def _start(self) -> None:
    self._decoded: collections.OrderedDict[int, Any] = collections.OrderedDict()
    self._lock = threading.Lock()

  def __getstate__(self) -> dict[str, Any]:
    """Without what has been decoded, which each process does for itself."""
    return {name: value for name, value in self.__dict__.items() if name not in ('_decoded', '_lock')}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._start()

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def where(self, index: int) -> str:
    """What messages call a row: 'PATH: row NUMBER', counted in the file."""
    group, place = self._place(index)
    path, group_in_file, _ = self._groups[group]
    before = sum(self.block_sizes[group - group_in_file : group])
    return f'{path}: row {before + place}'

  def _place(self, index: int) -> tuple[int, int]:
    """The number of a row's group, and its number there."""
    number = range(len(self))[index]
    group = bisect.bisect_right(self._ends, number)
    return group, number - (self._ends[group] - self.block_sizes[group])

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Raises RecordError for a row group that is damaged, and for text that is not UTF-8."""
    group, place = self._place(index)
    try:
      return self._table(group).slice(place, 1).to_pylist()[0]
    except UnicodeDecodeError as error:
      where = f'{self.where(index)}: {error.reason} at byte {error.start}'
      raise RecordError('text', f'{where}: expected UTF-8') from None
    except RecordError as error:
      raise error.at(self.where(index)) from None

  def _table(self, group: int) -> Any:
    """A row group, decoded. One thread decodes at a time: two that want the same group would both do all of it."""
    with self._lock:
      if group not in self._decoded:
        self._decoded[group] = self._decode(group)
      self._decoded.move_to_end(group)
      while len(self._decoded) > KEPT:
        self._decoded.popitem(last=False)
      return self._decoded[group]

  def _decode(self, group: int) -> Any:
    path, number, _ = self._groups[group]
    with open_file(path) as file:
      try:
        return _parquet_file(file).read_row_group(number, columns=list(self._columns))
      except (OSError, ValueError, NotImplementedError) as error:  # The last: over 2 GiB in a nested column.
        raise RecordError('damaged', f'row group {number}: {error}') from None


def _footer(path: str, columns: Sequence[str]) -> list[int]:
  """Rows of each row group."""
  with open_file(path) as file:
    try:
      found = _parquet_file(file)
    except (OSError, ValueError) as error:
      raise InputError(f'{path}: {error}: expected a parquet file') from None
    names = found.schema_arrow.names
    if missing := [name for name in columns if name not in names]:
      raise InputError(f'{path}: no column {missing[0]!r}: expected one of {", ".join(names)}')
    return [found.metadata.row_group(group).num_rows for group in range(found.num_row_groups)]


def _parquet_file(file: Any) -> Any:
  """pyarrow is 150 MB, which whoever has no such data need not have in memory."""
  import pyarrow.parquet

  return pyarrow.parquet.ParquetFile(file)
