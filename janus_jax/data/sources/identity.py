"""What datasets are told apart by: digests of their records and files, which moving them does not change.

A digest takes seconds for any size: of many records some are read, spread evenly, and of large files some pieces.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import fsspec
import numpy as np

from janus_jax.data.sources.files import open_file
from janus_jax.data.sources.folder import ENDINGS
from janus_jax.errors import InputError, RecordError

RECORDS_READ = 1024
PIECES, PIECE_BYTES = 16, 1 << 16  # Of a file; a smaller one is read whole.
# What buckets know of an object that changes with its content. A time would change as well where it is copied.
CHECKSUMS = ('md5Hash', 'crc32c', 'ETag', 'etag', 'content_md5')


def records_digest(records: Sequence[Mapping[str, Any]]) -> str:
  """A digest of keys, texts and images of records {'key', 'prompt', 'image'}, of RECORDS_READ of them at most.

  Args:
    records: as `tokenizing.tokenize` takes them. Of one that cannot be read the reason counts.
  """
  digest, count = hashlib.blake2b(digest_size=16), len(records)
  read = min(count, RECORDS_READ)
  for number in range(read):
    for part in _parts(records, number * (count - 1) // max(read - 1, 1)):
      digest.update(len(part).to_bytes(8, 'little') + part)
  return digest.hexdigest()


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
  return *texts, hashlib.blake2b(content, digest_size=16).digest()


def files_digest(paths: Iterable[str]) -> str:
  """A digest of names (without their folders), sizes and content of files in order, local or in buckets.

  Raises:
    InputError: one cannot be read.
  """
  digest = hashlib.blake2b(digest_size=16)
  for path in paths:
    digest.update(f'{os.path.basename(path)}\0{_content(path)}\n'.encode(errors='surrogateescape'))
  return digest.hexdigest()


def _content(path: str) -> str:
  if '://' in path:
    try:
      system, inside = fsspec.url_to_fs(path)
      info = system.info(inside)
    except (OSError, ImportError, ValueError) as error:
      raise InputError(f'{path}: {error}: expected a readable file') from None
    known = [f'{name} {info[name]}' for name in CHECKSUMS if info.get(name)]
    if known:
      return f'{info["size"]} {known[0]}'
  with open_file(path) as file:
    size = file.seek(0, os.SEEK_END)
    if size <= PIECES * PIECE_BYTES:
      starts, length = [0], size
    else:
      starts, length = [number * (size - PIECE_BYTES) // (PIECES - 1) for number in range(PIECES)], PIECE_BYTES
    digest = hashlib.blake2b(digest_size=16)
    for start in starts:
      file.seek(start)
      digest.update(file.read(length))
  return f'{size} {digest.hexdigest()}'


def folder_digest(directory: str) -> str:
  """A digest of the paths and sizes of the images and captions below a folder, local or in a bucket.

  Raises:
    InputError: it cannot be read.
  """
  digest = hashlib.blake2b(digest_size=16)
  try:
    system, root = fsspec.url_to_fs(directory)
    found = system.find(root, detail=True)
  except (OSError, ImportError) as error:
    raise InputError(f'{directory}: {error}: expected a folder of images') from None
  for path in sorted(found):
    name = os.path.relpath(path, root)
    if name.lower().endswith((*ENDINGS, '.txt')) and not os.path.basename(name).startswith('.'):
      digest.update(f'{name}\0{found[path]["size"]}\n'.encode(errors='surrogateescape'))
  return digest.hexdigest()
