"""JSON and text files, read at random: an object a line, a list of objects, plain text with blank lines between.

The offsets of the records are found once, by a scan, and kept in an index beside the other indices of a run, until the
file changes. Neither records nor index are held in memory: a record costs a read of the index and one of the file, so
that any number of processes share them.
"""

import json
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from janus_jax.data.sources.files import file_identity, kept_file, open_file, plain_file
from janus_jax.data.sources.indexed import BlockRecords
from janus_jax.data.sources.json_lists import find_items
from janus_jax.data.text_encodings import decode_utf8
from janus_jax.errors import RecordError

VERSION = 1  # Of the indices.
CHUNK = 1 << 24  # Bytes that are searched for line ends at a time.
ENTRY = 3 * 8  # Bytes of an index for each record: three int64.
# A line by the highest of its bytes: 0 blank; 1 blank if these are spaces beyond ASCII; 2 not blank.
SPACES = [chr(code) for code in range(0x3001) if chr(code).isspace()] + ['\ufeff']
VISIBLE = np.full(256, 2, np.uint8)
VISIBLE[list(''.join(SPACES).encode())] = 1
VISIBLE[list(b' \t\n\r\v\f')] = 0


def find_lines(path: str, _: str) -> np.ndarray:
  """Lines that are not blank, int64[n, 3]: begin and end (line end included) of each, its number from 1."""
  bounds, blank = _lines(path)
  return np.column_stack([bounds, np.arange(1, len(bounds) + 1)])[~blank]


def find_documents(path: str, _: str) -> np.ndarray:
  """Documents, int64[n, 3]: begin and end of each, the number of its first line from 1."""
  bounds, blank = _lines(path)
  edges = np.diff(np.concatenate([[True], blank, [True]]).astype(np.int8))
  first, last = np.flatnonzero(edges == -1), np.flatnonzero(edges == 1) - 1
  return np.column_stack([bounds[first, 0], bounds[last, 1], first + 1])


def _lines(path: str) -> tuple[np.ndarray, np.ndarray]:
  """Begin and end of each line (its LF, CR LF or CR included), int64[n, 2], and whether it is blank, bool[n]."""
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
  """Ends of lines, int64[n]: behind each LF, and each CR that has none behind it."""
  feeds, returns = found == ord('\n'), found == ord('\r')
  returns[:-1] &= ~feeds[1:]
  return np.flatnonzero(feeds | returns) + 1


class _Pieces(BlockRecords):
  """Pieces of files by index, each from one offset to another. Files are opened for each read: it can be pickled.

  `_find`(path of plain UTF-8, its name in messages) -> int64[n, 3]: begin, end and number of each piece; `_name` is the
  name of a piece in messages, made of the file's name and the number.
  """

  _find: Callable[[str, str], np.ndarray]
  _name = '{}:{}'

  def __init__(self, paths: Sequence[str], index_directory: str):
    """
    Args:
      paths: files in any form that `text_encodings` knows.
      index_directory: for indices and for copies of files that are not plain UTF-8, made if missing; a file that has
        changed is indexed anew.

    Raises:
      InputError: a file that cannot be read, or, for `JsonArray`, that is no whole JSON list.
    """
    self._names = list(paths)
    self._paths = [plain_file(path, index_directory) for path in paths]
    self._indices = [self._index(*each, index_directory) for each in zip(self._names, self._paths, strict=True)]
    super().__init__(os.path.getsize(index) // ENTRY for index in self._indices)

  def _index(self, name: str, path: str, directory: str) -> str:
    """Path of the index of a file, made if it is not there."""

    def write(partial: str) -> None:
      if '://' in path or os.path.getsize(path) > CHUNK:
        logging.info('indexing %s', name)
      self._find(path, name).astype('<i8').tofile(partial)

    return kept_file(directory, f'{file_identity(name, self._find.__name__, VERSION)}.index', write)

  def where(self, index: int) -> str:
    """The name of a record in messages: 'PATH:LINE', its first line, or 'PATH: item NUMBER' in a list."""
    return self._entry(index)[1]

  def _entry(self, index: int) -> tuple[int, str, int, int]:
    """The number of a piece's file, the piece's name, and the offsets of its begin and end."""
    file, piece = self.locate(index)
    begin, end, number = np.fromfile(self._indices[file], '<i8', 3, offset=piece * ENTRY).tolist()
    return file, self._name.format(self._names[file], number), begin, end

  def _read(self, index: int) -> tuple[str, str]:
    """The text of a piece, and its name in messages. Raises RecordError if it is not UTF-8."""
    file, where, begin, end = self._entry(index)
    with open_file(self._paths[file]) as opened:
      opened.seek(begin)
      content = opened.read(end - begin)
    if len(content) < end - begin:
      raise RecordError('damaged', f'{where}: cut off since {self._names[file]} was indexed')
    return decode_utf8(content, where, begin), where


class JsonLines(_Pieces):
  """One JSON object a line, as a dict; blank lines are left out."""

  _find = staticmethod(find_lines)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Raises RecordError for a line that is not UTF-8 or not an object."""
    text, where = self._read(index)
    try:
      found = json.loads(text)
    except json.JSONDecodeError as error:
      raise RecordError('text', f'{where}: {error.msg} at column {error.pos + 1}: expected a JSON object') from None
    except (ValueError, RecursionError) as error:  # A number of thousands of digits; thousands of brackets.
      raise RecordError('text', f'{where}: {error}: expected a JSON object') from None
    if not isinstance(found, dict):
      raise RecordError('wrong type', f'{where}: a {type(found).__name__}: expected a JSON object')
    return found


class JsonArray(JsonLines):
  """Files that are each one JSON list of objects, as LLaVA's are."""

  _find, _name = staticmethod(find_items), '{}: item {}'


class TextDocuments(_Pieces):
  """Documents of plain text, {'text': str}; blank lines stand between them."""

  _find = staticmethod(find_documents)

  def __getitem__(self, index: int) -> dict[str, str]:
    """Raises RecordError for a document that is not UTF-8."""
    return {'text': self._read(index)[0].strip()}
