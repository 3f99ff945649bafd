"""Data files on local disks and in buckets (`gs://`, `s3://`, ...: whatever fsspec knows).

They are found, opened and copied here, and what is made of them (indices, plain text of compressed files) is kept for
the next start. A bucket needs its fsspec driver installed (`gcsfs` for `gs://`).
"""

import contextlib
import fcntl
import fnmatch
import glob
import hashlib
import itertools
import logging
import os
import posixpath
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

import fsspec

from janus_jax.data.text_encodings import HEAD, decode_text, is_plain, write_plain
from janus_jax.data.whole_files import replacing, write_text
from janus_jax.errors import InputError, one_line

PATTERN = re.compile(r'[*?\[{]')  # What is in the name of a pattern, and may be in that of a file.
# {a,b} and {00..12}: the innermost come first.
ALTERNATIVES = re.compile(r'\{([^{}]*,[^{}]*|\d+\.\.\d+)\}')
# What changes when a file does, as far as its file system knows it: a time stamp, a checksum, a generation.
FACTS = ('size', 'mtime', 'created', 'updated', 'etag', 'ETag', 'md5Hash', 'LastModified', 'last_modified', 'blob_id')


@contextlib.contextmanager
def errors_named(path: str, expected: str = 'a readable file') -> Iterator[None]:
  """Turns the errors of file systems, a missing driver among them, into an InputError that names the path."""
  try:
    yield
  except InputError:
    raise
  except (OSError, ImportError, ValueError) as error:
    raise InputError(f'{path}: {getattr(error, "strerror", None) or error}: expected {expected}') from None


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
    names: patterns of file names in a folder: '*.parquet'.

  Raises:
    InputError: a pattern matches no file, or its file system cannot be reached.
  """
  found = []
  for pattern in [patterns] if isinstance(patterns, str) else patterns:
    with errors_named(pattern, 'files'):
      system, path = fsspec.url_to_fs(expand_home(pattern))
      matches = _matches(system, path, names, pattern)
      found += [system.unstrip_protocol(match).removeprefix('file://') for match in matches]
  return found


def _matches(system: fsspec.AbstractFileSystem, path: str, names: Sequence[str], shown: str) -> list[str]:
  """Files that a path, a pattern or a folder stands for. Raises InputError, naming it `shown`, if there is none."""
  if system.isfile(path):
    return [path]
  if system.isdir(path):
    named = [match for match in system.ls(path, detail=False) if _is_named(match, names)]
    inside = sorted(match for match in named if system.isfile(match))
    if not inside:
      expected = f'{" or ".join(names)} in it, or ' if names else ''
      raise InputError(f'{shown}: a folder: expected {expected}a pattern such as {posixpath.join(path, "*")}')
    return inside
  folder, rest = _split_existing(system, path)
  alternatives = _alternatives(rest)
  if alternatives != [rest]:
    found = (_matches(system, posixpath.join(folder, each), names, f'{shown}: {each}') for each in alternatives)
    return list(itertools.chain.from_iterable(found))
  pattern = posixpath.join(glob.escape(folder), rest)
  hidden = posixpath.basename(rest).startswith('.')
  matches = [match for match in system.glob(pattern) if hidden or not posixpath.basename(match).startswith('.')]
  files = sorted(match for match in matches if not system.isdir(match))
  if not files:
    raise InputError(f'{shown}: no such file: expected at least one')
  return files


def _is_named(path: str, names: Sequence[str]) -> bool:
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
  """Patterns without {a,b} and {00..12} that a pattern with them stands for."""
  found = ALTERNATIVES.search(pattern)
  if not found:
    return [pattern]
  if ',' in found[1]:
    each = found[1].split(',')
  else:
    first, last = found[1].split('..')
    step = 1 if int(first) <= int(last) else -1
    each = [f'{number:0{len(first)}}' for number in range(int(first), int(last) + step, step)]
  before, after = pattern[: found.start()], pattern[found.end() :]
  # Each once: what stands beside inner braces comes with every one of their parts.
  return list(dict.fromkeys(itertools.chain(*(_alternatives(f'{before}{part}{after}') for part in each))))


def open_file(path: str) -> BinaryIO:
  """Opens a file for reading; seekable, in a bucket too. Raises InputError if it cannot be opened."""
  with errors_named(path):
    if '://' not in path:  # fsspec's way to a local file takes 0.2 ms.
      return open(path, 'rb')
    return fsspec.open(path, 'rb').open()


def read_text(path: str) -> str:
  """The text of a whole file, in any of the forms that `text_encodings` knows. Raises InputError."""
  with open_file(path) as file:
    return decode_text(file.read(), path)


def local_copy(path: str, directory: str) -> str:
  """A file or folder of a bucket on the local disk, for readers that open nothing else; a local one stays where it is.

  Args:
    path: with a protocol, or local.
    directory: root of the copies. One appears whole or not at all, and is made anew where what the bucket says of the
      file (size, checksum, generation, time) has changed; it stays if the bucket has the file no more.

  Raises:
    InputError: it cannot be read, or not be written.
  """
  if '://' not in path:
    return path
  target = os.path.join(directory, hashlib.sha256(path.encode()).hexdigest()[:16], os.path.basename(path.rstrip('/')))
  noted, partial, expected = f'{target}.state', f'{target}.partial', f'a file or folder to copy to {target}'
  try:
    with errors_named(path, expected):
      system, inside = fsspec.url_to_fs(path)
      state = _state(system, inside)
  except InputError as error:
    if not os.path.exists(target):
      raise
    logging.warning('%s: its copy is used', one_line(error))
    return target

  def is_there() -> bool:
    return os.path.exists(target) and os.path.exists(noted) and read_text(noted) == state

  if is_there():
    return target
  with errors_named(path, expected):
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(f'{target}.lock', 'w') as lock:
      fcntl.flock(lock, fcntl.LOCK_EX)
      if is_there():  # Another process of this host has copied it meanwhile.
        return target
      logging.info('copying %s to %s', path, target)
      shutil.rmtree(partial, ignore_errors=True)
      system.get(inside, partial, recursive=system.isdir(inside))
      shutil.rmtree(target, ignore_errors=True)
      os.replace(partial, target)
      write_text(noted, state)
  return target


def _state(system: fsspec.AbstractFileSystem, path: str) -> str:
  """A digest of what a bucket says of a file, or of all files below a folder; it changes when one of them does."""
  system.invalidate_cache()
  found = system.find(path, detail=True) if system.isdir(path) else {path: system.info(path)}
  said = [(name, sorted(info.items(), key=str)) for name, info in sorted(found.items())]
  return hashlib.sha256(str(said).encode(errors='surrogateescape')).hexdigest()


def file_identity(path: str, *made: object) -> str:
  """Hexadecimal digits that change when a file does, by what its file system knows of it.

  Args:
    path: local or in a bucket.
    made: kind and version of what is made of the file; other digits for others.

  Raises:
    InputError: no such file.
  """
  with errors_named(path):
    system, name = fsspec.url_to_fs(path)
    info = system.info(name)
  known = [str(info.get(fact)) for fact in FACTS]
  return hashlib.sha256('\n'.join([*map(str, made), path, *known]).encode('utf-8', 'surrogateescape')).hexdigest()[:32]


def kept_file(directory: str, name: str, write: Callable[[str], None]) -> str:
  """Path of a file that is made once, by whichever process needs it first. It appears whole or not at all.

  Args:
    directory: made if missing.
    name: file name in the directory.
    write: called with a path to write to, if the file is not there.

  Raises:
    InputError: it cannot be written.
  """
  path = os.path.join(directory, name)
  if os.path.exists(path):
    return path
  try:
    os.makedirs(directory, exist_ok=True)
    with replacing(path, shared=True) as partial:
      write(partial)
  except OSError as error:
    raise InputError(f'{path}: {error.strerror or error}: expected room for an index of the data') from None
  return path


def plain_file(path: str, directory: str) -> str:
  """Path of a text file's content as UTF-8: the file itself, or a copy in `directory`, decompressed or decoded once.

  Raises:
    InputError: it is in none of the forms that `text_encodings` knows.
  """
  with open_file(path) as file:
    if is_plain(file.read(HEAD), path):
      return path

  def write(partial: str) -> None:
    logging.info('%s: writing it as plain UTF-8 to %s', path, directory)
    with open_file(path) as source, open(partial, 'wb') as target:
      write_plain(source, target, path)

  return kept_file(directory, f'{file_identity(path)}.txt', write)
