"""Where the items of a JSON list lie in its file, found by a scan that parses none of them and holds none in memory."""

import json
from codecs import BOM_UTF8 as MARK
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from janus_jax.data.sources.files import open_file
from janus_jax.errors import InputError

CHUNK = 1 << 24  # Bytes that are scanned at a time.
SPACE = b' \t\r\n'
# What brackets add to the depth, and what matters to the scan.
DEPTH = np.zeros(256, np.int64)
DEPTH[list(b'[{')], DEPTH[list(b']}')] = 1, -1
MATTERS = np.zeros(256, bool)
MATTERS[list(b'"\\,[]{}')] = True


def find_items(path: str, name: str) -> np.ndarray:
  """int64[n, 3], of each item of a list: where it begins and ends, with the space around it, its number from 0.

  An item that is damaged by itself is found like the others: what a reader makes of it is up to the reader.

  Args:
    path: of a JSON list in UTF-8.
    name: what messages call it.

  Raises:
    InputError: it is no list, or none that ends where the file does.
  """
  begin = _find_list(path, name)
  commas, end = [np.zeros(0, np.int64)], None
  for places, kinds, depths in _structure(path, begin):
    if len(closed := np.flatnonzero(depths == 0)):
      end = int(places[closed[0]])
      places, kinds, depths = (array[: closed[0]] for array in (places, kinds, depths))
    commas.append(places[(kinds == ord(',')) & (depths == 1)])
    if end is not None:
      break
  separators = np.concatenate(commas)
  starts = np.concatenate([[begin + 1], separators + 1])
  with open_file(path) as file:
    if wrong := _cut(starts) if end is None else _not_the_end(file, end):
      stops = separators if end is None else np.append(separators, end)
      raise InputError(f'{name}{_first_damaged(file, starts, stops) or wrong}')
    file.seek(begin + 1)
    if not len(separators) and not file.read(end - begin - 1).strip(SPACE):
      return np.zeros((0, 3), np.int64)
  return np.column_stack([starts, np.append(separators, end), np.arange(len(starts))])


def _find_list(path: str, name: str) -> int:
  """Where the list begins: the offset of its bracket."""
  with open_file(path) as file:
    offset = len(MARK) if file.read(len(MARK)) == MARK else 0
    file.seek(offset)
    while chunk := file.read(CHUNK):
      if rest := chunk.lstrip(SPACE):
        if (first := chr(rest[0])) != '[':
          other = "; an object a line is format 'json_lines'" if first == '{' else ''
          raise InputError(f'{name}: begins with {first!a}: expected a JSON list, [...]{other}')
        return offset + len(chunk) - len(rest)
      offset += len(chunk)
  raise InputError(f'{name}: empty: expected a JSON list, [...]')


def _structure(path: str, begin: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Brackets and commas outside of strings, those of a chunk at a time: offset, byte, and depth behind it, int64[n]."""
  offset, rest, quoted, depth = begin, b'', 0, 0
  with open_file(path) as file:
    file.seek(begin)
    while chunk := file.read(CHUNK):
      content = rest + chunk
      rest = content[len(content.rstrip(b'\\')) :]  # What it escapes comes with the next chunk.
      found = np.frombuffer(content, np.uint8, len(content) - len(rest))
      places = np.flatnonzero(np.take(MATTERS, found))
      if len(places):
        kinds = found[places]
        inside = (quoted + np.cumsum((kinds == ord('"')) & ~_escaped(places, kinds))) % 2
        depths = depth + np.cumsum(DEPTH[kinds] * (1 - inside))
        outside = (inside == 0) & (kinds != ord('"')) & (kinds != ord('\\'))
        yield places[outside] + offset, kinds[outside], depths[outside]
        quoted, depth = int(inside[-1]), int(depths[-1])
      offset += len(found)


def _escaped(places: np.ndarray, kinds: np.ndarray) -> np.ndarray:
  """bool[n], whether the byte before is a backslash, and the last of an odd number of them."""
  follows = np.diff(places, prepend=-2) == 1
  slashes = kinds == ord('\\')
  index = np.arange(len(places))
  begins = slashes & ~(follows & np.roll(slashes, 1))
  before = index - np.maximum.accumulate(np.where(begins, index, 0))  # Backslashes right before a backslash.
  return follows & np.roll(slashes & (before % 2 == 0), 1)


def _cut(starts: np.ndarray) -> str:
  return f': ends within item {len(starts) - 1}, which begins at offset {starts[-1]}: expected a whole JSON list'


def _not_the_end(file: BinaryIO, end: int) -> str:
  """What is wrong with the last bracket of a list and what follows it; '' if nothing is."""
  file.seek(end)
  if (last := file.read(1)) != b']':
    return f': {chr(last[0])!a} at offset {end}: expected the end of a JSON list, ]'
  offset = end + 1
  while chunk := file.read(CHUNK):
    if chunk.strip(SPACE):
      place = offset + len(chunk) - len(chunk.lstrip(SPACE))
      return f': more at offset {place}, after the end of the list: expected one JSON list'
    offset += len(chunk)
  return ''


def _first_damaged(file: BinaryIO, starts: np.ndarray, stops: np.ndarray) -> str:
  """Which item of a list that does not end as it should is the first that cannot be read; '' if all can."""
  for number, (begin, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=False)):
    file.seek(begin)
    try:
      json.loads(file.read(stop - begin))
    except (ValueError, RecursionError) as error:
      return f': item {number}: {error}, at offset {begin}: expected a JSON list'
  return ''
