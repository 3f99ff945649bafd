"""Offsets of the items of a JSON list in its file, found by a scan that neither parses nor keeps them."""

import json
import re
from codecs import BOM_UTF8 as MARK
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from janus_jax.data.sources.files import open_file
from janus_jax.errors import InputError

CHUNK = 1 << 24  # Bytes that are scanned at a time.
SPACE = b' \t\r\n'
# What brackets add to the depth, and the bytes that matter to the scan.
DEPTH = np.zeros(256, np.int64)
DEPTH[list(b'[{')], DEPTH[list(b']}')] = 1, -1
MATTERS = np.zeros(256, bool)
MATTERS[list(b'",[]{}')] = True
ESCAPED = re.compile(rb'\\[\\"]')


def find_items(path: str, name: str) -> np.ndarray:
  """Items of a JSON list, int64[n, 3]: begin and end of each, with the space around it, its number from 0.

  An item that is damaged by itself is found like the others.

  Args:
    path: a file in UTF-8.
    name: its name in messages.

  Raises:
    InputError: it is no list, or none that ends with the file.
  """
  begin = _find_list(path, name)
  commas, end = [np.zeros(0, np.int64)], None
  for offsets, marks, depths in _structure(path, begin):
    if len(closed := np.flatnonzero(depths == 0)):
      end = int(offsets[closed[0]])
      offsets, marks, depths = (array[: closed[0]] for array in (offsets, marks, depths))
    commas.append(offsets[(marks == ord(',')) & (depths == 1)])
    if end is not None:
      break
  separators = np.concatenate(commas)
  starts = np.concatenate([[begin + 1], separators + 1])
  stops = separators if end is None else np.append(separators, end)
  cut = f'ends within item {len(starts) - 1}, which begins at offset {starts[-1]}: expected a whole JSON list'
  with open_file(path) as file:
    if wrong := cut if end is None else _fault_at_end(file, end):
      raise InputError(f'{name}: {_fault_of_items(file, starts, stops) or wrong}')
    file.seek(begin + 1)
    if not len(separators) and not file.read(end - begin - 1).strip(SPACE):
      return np.zeros((0, 3), np.int64)
  return np.column_stack([starts, stops, np.arange(len(starts))])


def _find_list(path: str, name: str) -> int:
  """Offset of the bracket that begins the list."""
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
      content = ESCAPED.sub(b'  ', rest + chunk)
      rest = b'\\' if content.endswith(b'\\') else b''  # What it escapes comes with the next chunk.
      found = np.frombuffer(content, np.uint8, len(content) - len(rest))
      offsets = np.flatnonzero(np.take(MATTERS, found))
      if len(offsets):
        marks = found[offsets]
        inside = (quoted + np.cumsum(marks == ord('"'))) % 2
        depths = depth + np.cumsum(DEPTH[marks] * (1 - inside))
        outside = (inside == 0) & (marks != ord('"'))
        yield offsets[outside] + offset, marks[outside], depths[outside]
        quoted, depth = int(inside[-1]), int(depths[-1])
      offset += len(found)


def _fault_at_end(file: BinaryIO, end: int) -> str:
  """The fault of the last bracket of a list, or of what follows it; '' if there is none."""
  file.seek(end)
  if (last := file.read(1)) != b']':
    return f'{chr(last[0])!a} at offset {end}: expected the end of a JSON list, ]'
  offset = end + 1
  while chunk := file.read(CHUNK):
    if rest := chunk.lstrip(SPACE):
      offset += len(chunk) - len(rest)
      return f'more at offset {offset}, after the end of the list: expected one JSON list'
    offset += len(chunk)
  return ''


def _fault_of_items(file: BinaryIO, starts: np.ndarray, stops: np.ndarray) -> str:
  """The fault of the first item that cannot be read; '' if all can. For a list that does not end as it should."""
  for number, (begin, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=False)):
    file.seek(begin)
    try:
      json.loads(file.read(stop - begin))
    except (ValueError, RecursionError) as error:
      return f'item {number}: {error}, at offset {begin}: expected a JSON list'
  return ''
