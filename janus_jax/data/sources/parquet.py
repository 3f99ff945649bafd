"""Rows of parquet files, read at random; what is cheap is to read the rows of one row group together."""

import functools
import threading
from collections.abc import Sequence
from typing import Any

from janus_jax.data.sources.files import open_file
from janus_jax.data.sources.indexed import BlockRecords
from janus_jax.errors import InputError, RecordError

# Row groups that a process keeps decoded: the one being read and the one before.
KEPT = 2


class ParquetRows(BlockRecords):
  """Rows as dicts of Python values; structs become dicts. Blocks are row groups.

  Footers are read once, row groups when a row is wanted.
  """

  def __init__(self, paths: Sequence[str], columns: Sequence[str]):
    """
    Args:
      paths: parquet files.
      columns: to read; no other one is touched.

    Raises:
      InputError: a file that is not parquet, or that lacks a column.
    """
    self._columns = list(columns)
    groups = [(path, group, rows) for path in paths for group, rows in enumerate(_footer(path, columns))]
    self._groups = [(path, group) for path, group, _ in groups]
    super().__init__(rows for _, _, rows in groups)
    self._start()

  def _start(self) -> None:
    self._lock = threading.Lock()
    self._table = functools.lru_cache(KEPT)(self._decode)

  def __getstate__(self) -> dict[str, Any]:
    """Without tables, which each process decodes for itself."""
    return {name: value for name, value in self.__dict__.items() if name not in ('_lock', '_table')}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._start()

  def where(self, index: int) -> str:
    """The name of a row in messages: 'PATH: row NUMBER', counted in the file."""
    block, row = self.locate(index)
    path, group = self._groups[block]
    return f'{path}: row {sum(self.block_sizes[block - group : block]) + row}'

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Raises RecordError for a row group that is damaged, and for text that is not UTF-8."""
    block, row = self.locate(index)
    try:
      with self._lock:  # Two threads that want the same row group would both decode all of it.
        table = self._table(block)
      return table.slice(row, 1).to_pylist()[0]
    except UnicodeDecodeError as error:
      where = f'{self.where(index)}: {error.reason} at byte {error.start}'
      raise RecordError('text', f'{where}: expected UTF-8') from None
    except RecordError as error:
      raise error.at(self.where(index)) from None

  def _decode(self, block: int) -> Any:
    path, group = self._groups[block]
    with open_file(path) as file:
      try:
        return _parquet_file(file).read_row_group(group, columns=self._columns)
      except (OSError, ValueError, NotImplementedError) as error:  # The last: over 2 GiB in a nested column.
        raise RecordError('damaged', f'row group {group}: {error}') from None


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
  """Imports pyarrow, which takes 150 MB of memory, where there are such files only."""
  import pyarrow.parquet

  return pyarrow.parquet.ParquetFile(file)
