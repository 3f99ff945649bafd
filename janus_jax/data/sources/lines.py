"""JSON and text files, read at random: an object a line, a list of objects, plain text with blank lines between.

Where each record lies is found once, by a scan, and kept in an index beside the other indices of a run, until the file
changes. Of neither is anything held in memory: a record costs a read of the index and one of the file, so that any
number of processes share them.
"""

import bisect
import itertools
import json
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from janus_jax.data.sources.files import open_file
from janus_jax.data.sources.json_lists import find_items
from janus_jax.data.sources.kept_files import identity, kept_file, plain_file
from janus_jax.data.text_encodings import decode_utf8
from janus_jax.errors import RecordError

VERSION = 1  # Of the indices.
CHUNK = 1 << 24  # Bytes that are searched for line ends at a time.
ENTRY = np.dtype('<i8')
# What a line is by the highest of its bytes: 0 blank; 1 blank if these are spaces beyond ASCII; 2 not blank.
SPACES = [chr(code) for code in range(0x3001) if chr(code).isspace()] + ['\ufeff']
VISIBLE = np.full(256, 2, np.uint8)
VISIBLE[list(''.join(SPACES).encode())] = 1
VISIBLE[list(b' \t\n\r\v\f')] = 0


class _Pieces:
  """Pieces of files by index, each from one offset to another. Files are opened for each read: it can be pickled.

  Attributes:
    counts: pieces of each file.
  """

  def __init__(
    self, paths: Sequence[str], index_directory: str, find: Callable[[str, str], np.ndarray], name: str = '{}:{}'
  ):
    """
    Args:
      paths: of the files, in any form that `text_encodings` knows.
      index_directory: where indices are kept, and copies of files that are not plain UTF-8.
      find: (path of plain UTF-8, what messages call it) -> int64[n, 3]: where each piece begins and ends, its number.
      name: of a piece in messages, by file and number.

    Raises:
      InputError: a file that cannot be read.
    """
    self._names, self._name = list(paths), name
    self._paths = [plain_file(path, index_directory) for path in paths]
    self._indices = [
      _index(path, plain, index_directory, find) for path, plain in zip(self._names, self._paths, strict=True)
    ]
    self.counts = tuple(os.path.getsize(index) // (3 * ENTRY.itemsize) for index in self._indices)
    self._ends = list(itertools.accumulate(self.counts))

  def __len__(self) -> int:
    return self._ends[-1]

  def where(self, index: int) -> str:
    """What messages call a piece."""
    file, (_, _, number) = self._entry(index)
    return self._name.format(self._names[file], number)

  def _entry(self, index: int) -> tuple[int, list[int]]:
    """The number of a piece's file, and what its index says: where it begins and ends, its number."""
    number = range(len(self))[index]
    file = bisect.bisect_right(self._ends, number)
    place = number - (self._ends[file - 1] if file else 0)
    return file, np.fromfile(self._indices[file], ENTRY, 3, offset=3 * ENTRY.itemsize * place).tolist()

  def read(self, index: int) -> tuple[str, str]:
    """The text of a piece, and what messages call it. Raises RecordError if it is not UTF-8."""
    file, (begin, end, number) = self._entry(index)
    where = self._name.format(self._names[file], number)
    with open_file(self._paths[file]) as opened:
      opened.seek(begin)
      content = opened.read(end - begin)
    if len(content) < end - begin:
      raise RecordError('damaged', f'{where}: cut off since {self._names[file]} was indexed')
    return decode_utf8(content, where, begin), where


def _index(path: str, plain: str, directory: str, find: Callable[[str, str], np.ndarray]) -> str:
  """Path of the index of a file, made if it is not there."""

  def write(partial: str) -> None:
    if '://' in plain or os.path.getsize(plain) > CHUNK:
      logging.info('indexing %s', path)
    find(plain, path).astype(ENTRY).tofile(partial)

  return kept_file(directory, f'{identity(path, find.__name__, VERSION)}.index', write)


def _object(text: str, where: str) -> dict[str, Any]:
  try:
    found = json.loads(text)
  except json.JSONDecodeError as error:
    raise RecordError('text', f'{where}: {error.msg} at column {error.pos + 1}: expected a JSON object') from None
  except (ValueError, RecursionError) as error:  # A number of thousands of digits; thousands of brackets.
    raise RecordError('text', f'{where}: {error}: expected a JSON object') from None
  if not isinstance(found, dict):
    raise RecordError('wrong type', f'{where}: a {type(found).__name__}: expected a JSON object')
  return found


class JsonLines:
  """One JSON object a line, as a dict; blank lines are left out.

  Attributes:
    block_sizes: objects in each file, in order.
  """

  def __init__(self, paths: Sequence[str], index_directory: str):
    """
    Args:
      paths: of the files.
      index_directory: where indices are kept, made if missing; a file that has changed is indexed anew.

    Raises:
      InputError: a file that cannot be read.
    """
    self._pieces = _Pieces(paths, index_directory, find_lines)
    self.block_sizes = self._pieces.counts

  def __len__(self) -> int:
    return len(self._pieces)

  def where(self, index: int) -> str:
    """What messages call an item: 'PATH:LINE', of a list 'PATH: item NUMBER'."""
    return self._pieces.where(index)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Raises RecordError for a line that is not UTF-8 or not an object."""
    return _object(*self._pieces.read(index))


class JsonArray(JsonLines):
  """Files that are each one JSON list of objects, as LLaVA's are."""

  def __init__(self, paths: Sequence[str], index_directory: str):
    """As `JsonLines`; also raises InputError for a file that is no whole JSON list."""
    self._pieces = _Pieces(paths, index_directory, find_items, '{}: item {}')
    self.block_sizes = self._pieces.counts


class TextDocuments:
  """Documents of plain text, {'text': str}; blank lines stand between them."""

  def __init__(self, paths: Sequence[str], index_directory: str):
    """As `JsonLines`."""
    self._pieces = _Pieces(paths, index_directory, find_documents)

  def __len__(self) -> int:
    return len(self._pieces)

  def where(self, index: int) -> str:
    """What messages call a document: 'PATH:LINE', the first one."""
    return self._pieces.where(index)

  def __getitem__(self, index: int) -> dict[str, str]:
    """Raises RecordError for a document that is not UTF-8."""
    return {'text': self._pieces.read(index)[0].strip()}


def find_lines(path: str, _: str) -> np.ndarray:
  """int64[n, 3], of each line that is not blank: where it begins and ends (line end included), its number from 1."""
  bounds, blank = _lines(path)
  return np.column_stack([bounds, np.arange(1, len(bounds) + 1)])[~blank]


def find_documents(path: str, _: str) -> np.ndarray:
  """int64[n, 3], of each document: where it begins and ends, the number of its first line from 1."""
  bounds, blank = _lines(path)
  edges = np.diff(np.concatenate([[True], blank, [True]]).astype(np.int8))
  first, last = np.flatnonzero(edges == -1), np.flatnonzero(edges == 1) - 1
  return np.column_stack([bounds[first, 0], bounds[last, 1], first + 1])


def _lines(path: str) -> tuple[np.ndarray, np.ndarray]:
  """int64[n, 2], where each line begins and ends (its line end included), and bool[n], whether it is blank.

  Lines end with LF, CR LF or CR.
  """
  ends, levels, offset, rest, begun = [np.zeros(0, np.int64)], [np.zeros(0, np.uint8)], 0, b'', 0
  with open_file(path) as file:
    while content := rest + (chunk := file.read(CHUNK)):
      # A CR at the end of a chunk may be the first half of a line end.
      rest = b'\r' if chunk and content.endswith(b'\r') else b''
      found = np.frombuffer(content, np.uint8, len(content) - len(rest))
      stops = _line_ends(found)
      if len(found):
        of_lines = np.maximum.reduceat(np.take(VISIBLE, found), np.concatenate([[0], stops[stops < len(found)]]))
        of_lines[0] = max(of_lines[0], begun)
        ends.append(stops + offset)
        levels.append(of_lines[: len(stops)])
        begun = of_lines[len(stops)] if len(of_lines) > len(stops) else 0
        offset += len(found)
    stops, visible = np.concatenate(ends), np.concatenate(levels)
    if offset > (stops[-1] if len(stops) else 0):  # The last line has no end.
      stops, visible = np.append(stops, offset), np.append(visible, begun)
    bounds = np.column_stack([np.concatenate([[0], stops])[:-1], stops]).astype(np.int64)
    blank = visible == 0
    for number in np.flatnonzero(visible == 1):
      file.seek(int(bounds[number, 0]))
      blank[number] = not file.read(int(np.diff(bounds[number])[0])).decode(errors='replace').strip(''.join(SPACES))
  return bounds, blank


def _line_ends(found: np.ndarray) -> np.ndarray:
  """int64[n], where lines end: behind each LF, and each CR that has none behind it."""
  feeds = found == ord('\n')
  returns = found == ord('\r')
  returns[:-1] &= ~feeds[1:]
  return np.flatnonzero(feeds | returns) + 1
