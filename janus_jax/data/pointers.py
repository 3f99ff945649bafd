"""Git-LFS pointers: what `git clone` leaves where the content of large files was not fetched."""

import os

from janus_jax.errors import InputError

# git-lfs/docs/spec.md: a pointer begins with one of these versions and is shorter than 1024 bytes.
VERSIONS = (b'version https://git-lfs.github.com/spec/', b'version https://hawser.github.com/spec/')
LONGEST = 1024
HEAD = max(map(len, VERSIONS))  # Bytes that tell.


def check_content(head: bytes, name: str) -> None:
  """Raises InputError if a file is a pointer of Git LFS, by its first bytes, HEAD or more of them."""
  if head.startswith(VERSIONS):
    raise InputError(f'{name}: a Git-LFS pointer, not the file itself: expected its content; run `git lfs pull`')


def check_files(paths: list[str]) -> None:
  """Raises InputError if one of the files is a pointer; leaves out those in buckets and those that are not there."""
  for path in paths:
    if '://' not in path and os.path.isfile(path) and os.path.getsize(path) < LONGEST:
      with open(path, 'rb') as file:
        check_content(file.read(HEAD), path)
