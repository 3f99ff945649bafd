"""Digests of records and files by which datasets are told apart; moving the files does not change them.

A digest takes seconds for any size: of many records some are read, spread evenly, and of large files some pieces.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import fsspec
import numpy as np

from janus_jax.data.sources.files import errors_named, open_file
from janus_jax.data.sources.folder import ENDINGS, list_folder
from janus_jax.errors import InputError, RecordError

RECORDS_READ = 1024
PIECES, PIECE_BYTES = 16, 1 << 16  # Of a file; a smaller one is read whole.
# Facts about an object in a bucket that change with its content. A time would change as well where it is copied.
CHECKSUMS = ('md5Hash', 'crc32c', 'ETag', 'etag', 'content_md5')


def records_digest(records: Sequence[Mapping[str, Any]]) -> str:
  """A digest of keys, texts and images of records {'key', 'prompt', 'image'}, of RECORDS_READ of them at most.

  A record that cannot be read counts by the reason.
  """
  count = len(records)
  read = min(count, RECORDS_READ)
  indices = (number * (count - 1) // max(read - 1, 1) for number in range(read))
  parts = (part for index in indices for part in _parts(records, index))
  return _digest(len(part).to_bytes(8, 'little') + part for part in parts)


def _parts(records: Sequence[Mapping[str, Any]], index: int) -> tuple[bytes, ...]:
  try:
    record = records[index]
    image = record['image']
    if isinstance(image, str):
      with open_file(image) as file:
        image = file.read()
  except RecordError as error:
    return (error.reason.encode(),)
  except (InputError, OSError, ValueError) as error:
    return (type(error).__name__.encode(),)
  content = image if isinstance(image, bytes) else np.ascontiguousarray(image).tobytes()
  texts = (os.fsencode(record['key']), str(record['prompt']).encode(errors='surrogatepass'))
  return *texts, bytes.fromhex(_digest([content]))


def files_digest(paths: Iterable[str]) -> str:
  """A digest of names (without their folders), sizes and content of files in order, local or in buckets.

  Raises:
    InputError: one cannot be read.
  """
  return _digest(f'{os.path.basename(path)}\0{_content(path)}\n' for path in paths)


def folder_digest(directory: str) -> str:
  """A digest of the paths and sizes of the images and captions below a folder, local or in a bucket.

  Raises:
    InputError: it cannot be read.
  """
  _, sizes = list_folder(directory)
  named = (name for name in sizes if name.lower().endswith((*ENDINGS, '.txt')))
  return _digest(f'{name}\0{sizes[name]}\n' for name in named)


def _digest(parts: Iterable[bytes | str]) -> str:
  digest = hashlib.blake2b(digest_size=16)
  for part in parts:
    digest.update(part.encode(errors='surrogateescape') if isinstance(part, str) else part)
  return digest.hexdigest()


def _content(path: str) -> str:
  """Size of a file and a checksum of its content: the bucket's, or one of some pieces."""
  if '://' in path:
    with errors_named(path):
      system, inside = fsspec.url_to_fs(path)
      info = system.info(inside)
    known = [f'{name} {info[name]}' for name in CHECKSUMS if info.get(name)]
    if known:
      return f'{info["size"]} {known[0]}'
  with open_file(path) as file:
    return f'{file.seek(0, os.SEEK_END)} {_digest(_pieces(file))}'


def _pieces(file: BinaryIO) -> Iterator[bytes]:
  size = file.seek(0, os.SEEK_END)
  starts, length = [0], size
  if size > PIECES * PIECE_BYTES:
    starts, length = [number * (size - PIECE_BYTES) // (PIECES - 1) for number in range(PIECES)], PIECE_BYTES
  for start in starts:
    file.seek(start)
    yield file.read(length)
