"""Finding and opening data files, on local disks and in buckets (`gs://`, `s3://`, ...: whatever fsspec knows).

A bucket needs its fsspec driver installed (`gcsfs` for `gs://`).
"""

import fnmatch
import glob
import hashlib
import itertools
import logging
import os
import posixpath
import re
import shutil
from collections.abc import Sequence
from typing import BinaryIO

import fsspec

from janus_jax.data.text_encodings import decode_text
from janus_jax.errors import InputError, one_line

PATTERN = re.compile(r'[*?\[{]')  # What is in the name of a pattern, and may be in that of a file.
# {a,b} and {00..12}: the innermost come first.
ALTERNATIVES = re.compile(r'\{([^{}]*,[^{}]*|\d+\.\.\d+)\}')


def expand_home(path: str) -> str:
  """A local path with the home directory that `~` or `~user` at its beginning stands for."""
  return path if '://' in path else os.path.expanduser(path)


def find_files(patterns: str | Sequence[str], names: Sequence[str] = ()) -> list[str]:
  """Paths of the files that patterns match, those of each pattern sorted.

  A path that exists is a path, whatever characters are in it. In others `*`, `?`, `[...]` and `**` match as in a shell,
  `{a,b}` and `{00..12}` stand for each of several names, all of which must be there. Files whose names begin with a dot
  are left out. A folder stands for the files in it that match one of `names`.

  Args:
    patterns: one or more, local or with a protocol: 'shards/*.tar', 'gs://bucket/train-*.parquet'.
    names: what files are called in a folder: '*.parquet'.

  Raises:
    InputError: a pattern matches no file, or its file system cannot be reached.
  """
  found = []
  for pattern in [patterns] if isinstance(patterns, str) else patterns:
    try:
      system, path = fsspec.url_to_fs(expand_home(pattern))
      found += [system.unstrip_protocol(match).removeprefix('file://') for match in _matches(system, path, names)]
    except InputError as error:
      raise InputError(f'{pattern}: {error}') from None
    except (OSError, ImportError, ValueError) as error:
      raise InputError(f'{pattern}: {error}: expected files') from None
  return found


def _matches(system: fsspec.AbstractFileSystem, path: str, names: Sequence[str]) -> list[str]:
  """Files that a path, a pattern or a folder stands for; an InputError without the path's name if there is none."""
  if system.isfile(path):
    return [path]
  if system.isdir(path):
    called = [match for match in system.ls(path, detail=False) if _is_called(match, names)]
    inside = sorted(match for match in called if system.isfile(match))
    if not inside:
      expected = f'{" or ".join(names)} in it, or ' if names else ''
      raise InputError(f'a folder: expected {expected}a pattern such as {posixpath.join(path, "*")}')
    return inside
  folder, rest = _split_existing(system, path)
  alternatives = _alternatives(rest)
  if alternatives != [rest]:
    return list(itertools.chain(*(_alternative(system, folder, each, names) for each in alternatives)))
  pattern = posixpath.join(glob.escape(folder), rest)
  hidden = posixpath.basename(rest).startswith('.')
  matches = [match for match in system.glob(pattern) if hidden or not posixpath.basename(match).startswith('.')]
  files = sorted(match for match in matches if not system.isdir(match))
  if not files:
    raise InputError('no such file: expected at least one')
  return files


def _alternative(system: fsspec.AbstractFileSystem, folder: str, rest: str, names: Sequence[str]) -> list[str]:
  try:
    return _matches(system, posixpath.join(folder, rest), names)
  except InputError as error:
    raise InputError(f'{rest}: {error}') from None


def _is_called(path: str, names: Sequence[str]) -> bool:
  name = posixpath.basename(path.rstrip('/'))
  return not name.startswith('.') and any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in names)


def _split_existing(system: fsspec.AbstractFileSystem, path: str) -> tuple[str, str]:
  """The folders of a path that exist as they are spelled, and the pattern below them."""
  parts = path.split('/')
  for number, part in enumerate(parts):
    if PATTERN.search(part) and not system.isdir('/'.join(parts[: number + 1])):
      return '/'.join(parts[:number]) or ('/' if number else ''), '/'.join(parts[number:])
  return posixpath.split(path)


def _alternatives(pattern: str) -> list[str]:
  """What a pattern with {a,b} or {00..12} stands for: each without them."""
  found = ALTERNATIVES.search(pattern)
  if not found:
    return [pattern]
  inside = found[1]
  if ',' in inside:
    each = inside.split(',')
  else:
    first, last = inside.split('..')
    step = 1 if int(first) <= int(last) else -1
    each = [f'{number:0{len(first)}}' for number in range(int(first), int(last) + step, step)]
  before, after = pattern[: found.start()], pattern[found.end() :]
  # Each once: what stands beside inner braces comes with every one of their parts.
  return list(dict.fromkeys(itertools.chain(*(_alternatives(f'{before}{part}{after}') for part in each))))


def open_file(path: str) -> BinaryIO:
  """Opens a file for reading; seekable, in a bucket too.

  Raises:
    InputError: it cannot be opened.
  """
  try:
    if '://' not in path:  # fsspec's way to a local file takes 0.2 ms.
      return open(path, 'rb')
    return fsspec.open(path, 'rb').open()
  except (OSError, ImportError, ValueError) as error:
    raise InputError(f'{path}: {getattr(error, "strerror", None) or error}: expected a readable file') from None


def local_copy(path: str, directory: str) -> str:
  """A file or folder of a bucket on the local disk, for readers that open nothing else; a local one stays where it is.

  Args:
    path: with a protocol, or local.
    directory: where copies are kept. One appears whole or not at all, and is made anew where what the bucket says of
      the file (size, checksum, generation, time) is no longer what it said; it stays if the bucket has it no more.

  Raises:
    InputError: it cannot be read, or not be written.
  """
  if '://' not in path:
    return path
  name = os.path.basename(path.rstrip('/'))
  target = os.path.join(directory, hashlib.sha256(path.encode()).hexdigest()[:16], name)
  noted = f'{target}.state'
  try:
    system, inside = fsspec.url_to_fs(path)
    state = _state(system, inside)
  except (OSError, ImportError, ValueError) as error:
    if os.path.exists(target):
      logging.warning('%s: %s: its copy is used', path, one_line(error))
      return target
    raise InputError(f'{path}: {error}: expected a file or folder to copy to {target}') from None
  if os.path.exists(target) and _read(noted) == state:
    return target
  logging.info('copying %s to %s', path, target)
  partial = f'{target}.partial'
  try:
    if os.path.isdir(partial):
      shutil.rmtree(partial)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    system.get(inside, partial, recursive=system.isdir(inside))
    if os.path.isdir(target):
      shutil.rmtree(target)
    os.replace(partial, target)
    with open(noted, 'w', encoding='utf-8') as file:
      file.write(state)
  except (OSError, ImportError, ValueError) as error:
    raise InputError(f'{path}: {error}: expected a file or folder to copy to {target}') from None
  return target


def read_text(path: str) -> str:
  """The text of a whole file, in any of the forms that `text_encodings` knows.

  Raises:
    InputError: it cannot be read, or is of no such form.
  """
  with open_file(path) as file:
    return decode_text(file.read(), path)


def _state(system: fsspec.AbstractFileSystem, path: str) -> str:
  """A digest of what a bucket says of a file, or of all files below a folder; it changes when one of them does."""
  system.invalidate_cache()
  found = system.find(path, detail=True) if system.isdir(path) else {path: system.info(path)}
  said = [(name, sorted(info.items(), key=str)) for name, info in sorted(found.items())]
  return hashlib.sha256(str(said).encode(errors='surrogateescape')).hexdigest()


def _read(path: str) -> str | None:
  try:
    with open(path, encoding='utf-8') as file:
      return file.read()
  except FileNotFoundError:
    return None
