"""JSON and text files, read at random: an object a line, a list of objects, plain text with blank lines between.

Where lines begin is found once, when a source is opened; of the content nothing is kept in memory but of `JsonArray`.
"""

import bisect
import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from janus_jax.data.sources.files import open_file
from janus_jax.errors import InputError, RecordError

CHUNK = 1 << 24  # Bytes that are searched for line ends at a time.


def _lines(path: str) -> tuple[np.ndarray, np.ndarray]:
  """int64[n, 2], where each line begins and ends (its line end included), and bool[n], whether it is blank."""
  ends, returns, offset, before = [np.zeros(0, np.int64)], [np.zeros(0, bool)], 0, b''
  with open_file(path) as file:
    while chunk := file.read(CHUNK):
      found = np.frombuffer(before + chunk, np.uint8)
      places = np.flatnonzero(found == ord('\n'))
      places = places[places >= len(before)]
      ends.append(places + (offset - len(before) + 1))
      returns.append((places > 0) & (found[places - 1] == ord('\r')))
      offset, before = offset + len(chunk), chunk[-1:]
  stops, returned = np.concatenate(ends), np.concatenate(returns)
  starts = np.concatenate([[0], stops])
  lengths = np.diff(starts)
  blank = (lengths == 1) | ((lengths == 2) & returned)
  if starts[-1] < offset:  # The last line has no end.
    stops, blank = np.append(stops, offset), np.append(blank, False)
  return np.stack([starts[: len(stops)], stops], axis=1).astype(np.int64), blank


class _Pieces:
  """Pieces of files by index, each from one offset to another. Files are opened for each read: it can be pickled.

  Attributes:
    counts: pieces of each file.
  """

  def __init__(self, paths: Sequence[str], find: Callable[[str], tuple[np.ndarray, np.ndarray]]):
    """
    Args:
      paths: of the files.
      find: path -> int64[n, 2], where each piece begins and ends, and int64[n], the number of its first line.

    Raises:
      InputError: a file that cannot be read.
    """
    self._paths = list(paths)
    self._bounds, self._lines = zip(*map(find, self._paths))
    self.counts = tuple(map(len, self._bounds))
    self._ends = list(itertools.accumulate(self.counts))

  def __len__(self) -> int:
    return self._ends[-1]

  def read(self, index: int) -> tuple[str, str]:
    """The text of a piece, and what messages call it, 'PATH:LINE'. Raises RecordError if it is not UTF-8."""
    number = range(len(self))[index]
    file = bisect.bisect_right(self._ends, number)
    place = number - (self._ends[file - 1] if file else 0)
    begin, end = self._bounds[file][place].tolist()
    where = f'{self._paths[file]}:{self._lines[file][place] + 1}'
    with open_file(self._paths[file]) as opened:
      opened.seek(begin)
      content = opened.read(end - begin)
    try:
      return content.decode(), where
    except UnicodeDecodeError as error:
      raise RecordError('text', f'{where}: {error.reason} at byte {error.start}: expected UTF-8') from None


def _object(text: str, where: str) -> dict[str, Any]:
  try:
    found = json.loads(text)
  except json.JSONDecodeError as error:
    raise RecordError('text', f'{where}: {error.msg} at column {error.pos + 1}: expected a JSON object') from None
  except (ValueError, RecursionError) as error:  # A number of thousands of digits; thousands of brackets.
    raise RecordError('text', f'{where}: {error}: expected a JSON object') from None
  return _checked(found, where)


def _checked(found: Any, where: str) -> dict[str, Any]:
  if not isinstance(found, dict):
    raise RecordError('wrong type', f'{where}: a {type(found).__name__}: expected a JSON object')
  return found


class JsonLines:
  """One JSON object a line, as a dict; blank lines are left out.

  Attributes:
    block_sizes: objects in each file, in order.
  """

  def __init__(self, paths: Sequence[str]):
    self._pieces = _Pieces(paths, _find_lines)
    self.block_sizes = self._pieces.counts

  def __len__(self) -> int:
    return len(self._pieces)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Raises RecordError for a line that is not UTF-8 or not an object."""
    return _object(*self._pieces.read(index))


def _find_lines(path: str) -> tuple[np.ndarray, np.ndarray]:
  bounds, blank = _lines(path)
  return bounds[~blank], np.flatnonzero(~blank)


class TextDocuments:
  """Documents of plain text, {'text': str}; blank lines stand between them."""

  def __init__(self, paths: Sequence[str]):
    self._pieces = _Pieces(paths, _find_documents)

  def __len__(self) -> int:
    return len(self._pieces)

  def __getitem__(self, index: int) -> dict[str, str]:
    """Raises RecordError for a document that is not UTF-8."""
    return {'text': self._pieces.read(index)[0].strip()}


def _find_documents(path: str) -> tuple[np.ndarray, np.ndarray]:
  bounds, blank = _lines(path)
  edges = np.diff(np.concatenate([[True], blank, [True]]).astype(np.int8))
  first, last = np.flatnonzero(edges == -1), np.flatnonzero(edges == 1) - 1
  return np.stack([bounds[first, 0], bounds[last, 1]], axis=1), first


class JsonArray:
  """Files that are each one JSON list of objects, as LLaVA's are. They are read whole."""

  def __init__(self, paths: Sequence[str]):
    """
    Raises:
      InputError: a file that cannot be read, or is no JSON list.
    """
    self._items = [(item, f'{path}[{number}]') for path in paths for number, item in enumerate(_list(path))]

  def __len__(self) -> int:
    return len(self._items)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Raises RecordError for what is not an object."""
    return _checked(*self._items[index])


def _list(path: str) -> list[Any]:
  with open_file(path) as file:
    try:
      found = json.load(file)
    except (ValueError, RecursionError) as error:  # json's own, and UnicodeDecodeError; thousands of brackets.
      raise InputError(f'{path}: {error}: expected a JSON list') from None
  if not isinstance(found, list):
    raise InputError(f'{path}: a {type(found).__name__}: expected a JSON list')
  return found
