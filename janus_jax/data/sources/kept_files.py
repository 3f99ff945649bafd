"""Files made of data files once and kept for the next start: indices, and plain text of what is compressed."""

import hashlib
import logging
import os
from collections.abc import Callable

import fsspec

from janus_jax.data.sources.files import open_file
from janus_jax.data.text_encodings import HEAD, is_plain, write_plain
from janus_jax.data.whole_files import replacing
from janus_jax.errors import InputError

# What changes when a file does, as far as its file system knows it: a time stamp, a checksum, a generation.
FACTS = ('size', 'mtime', 'created', 'updated', 'etag', 'ETag', 'md5Hash', 'LastModified', 'last_modified', 'blob_id')


def identity(path: str, *of: object) -> str:
  """Hexadecimal digits that change when a file does, by what its file system knows of it.

  Args:
    path: local or in a bucket.
    of: what else they depend on: the kind and version of what is made of the file.

  Raises:
    InputError: no such file.
  """
  try:
    system, name = fsspec.url_to_fs(path)
    facts = system.info(name)
  except (OSError, ImportError, ValueError) as error:
    raise InputError(f'{path}: {getattr(error, "strerror", None) or error}: expected a readable file') from None
  known = [str(facts.get(fact)) for fact in FACTS]
  return hashlib.sha256('\n'.join([*map(str, of), path, *known]).encode('utf-8', 'surrogateescape')).hexdigest()[:32]


def kept_file(directory: str, name: str, write: Callable[[str], None]) -> str:
  """Path of a file that is made once, by whichever process needs it first. It appears whole or not at all.

  Args:
    directory: where it lies, made if missing.
    name: of the file.
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
  """Path of a text file's content as UTF-8: the file itself, or what it is decompressed or decoded to, once.

  Args:
    path: of text in any of the forms that `text_encodings` knows.
    directory: where copies are kept.

  Raises:
    InputError: it is of no such form.
  """
  with open_file(path) as file:
    if is_plain(file.read(HEAD), path):
      return path

  def write(partial: str) -> None:
    logging.info('%s: writing it as plain UTF-8 to %s', path, directory)
    with open_file(path) as source, open(partial, 'wb') as target:
      write_plain(source, target, path)

  return kept_file(directory, f'{identity(path)}.txt', write)
