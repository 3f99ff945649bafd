"""Where the items of a JSON list lie in its file, found by a scan that parses none of them and holds none in memory."""

import json
from collections.abc import Iterator, Sequence
from typing import NoReturn

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
  if end is None:
    _refuse_cut(path, name, starts)
  with open_file(path) as file:
    _refuse_more(file, name, end)
    file.seek(begin + 1)
    if not len(separators) and not file.read(end - begin - 1).strip(SPACE):
      return np.zeros((0, 3), np.int64)
  return np.column_stack([starts, np.append(separators, end), np.arange(len(starts))])


def _find_list(path: str, name: str) -> int:
  """Where the list begins: the offset of its bracket."""
  offset = 0
  with open_file(path) as file:
    while chunk := file.read(CHUNK):
      kept = chunk.removeprefix(b'\xef\xbb\xbf') if not offset else chunk
      offset += len(chunk) - len(kept)
      if first := kept.lstrip(SPACE)[:1]:
        if first != b'[':
          other = "; an object a line is format 'json_lines'" if first == b'{' else ''
          raise InputError(f'{name}: begins with {first.decode("latin-1")!a}: expected a JSON list, [...]{other}')
        return offset + len(kept) - len(kept.lstrip(SPACE))
      offset += len(kept)
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


def _refuse_cut(path: str, name: str, starts: Sequence[int]) -> NoReturn:
  """Raises InputError for a list without an end; names the first item that cannot be read."""
  with open_file(path) as file:
    for number, (begin, stop) in enumerate(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)):
      file.seek(begin)
      try:
        json.loads(file.read(stop - 1 - begin))
      except (ValueError, RecursionError) as error:
        raise InputError(f'{name}[{number}]: {error}, at offset {begin}: expected a JSON list') from None
  raise InputError(
    f'{name}: ends within item {len(starts) - 1}, which begins at offset {starts[-1]}: expected a whole JSON list'
  )


def _refuse_more(file, name: str, end: int) -> None:
  """Raises InputError if anything but space follows the end of the list."""
  file.seek(end)
  if (last := file.read(1)) != b']':
    raise InputError(f'{name}: {last.decode("latin-1")!a} at offset {end}: expected the end of a JSON list, ]')
  offset = end + 1
  while chunk := file.read(CHUNK):
    if chunk.strip(SPACE):
      place = offset + len(chunk) - len(chunk.lstrip(SPACE))
      raise InputError(f'{name}: more at offset {place}, after the end of the list: expected one JSON list')
    offset += len(chunk)
