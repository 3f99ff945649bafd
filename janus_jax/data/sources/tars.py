"""WebDataset and img2dataset tars, read at random by an index of where each member lies.

A sample is a run of members that share their path up to the first dot of the file name: `0001.jpg`, `0001.txt` and
`0001.json` are one. Members are read by their offsets and never written anywhere. As in WebDataset, a file without an
extension and one whose name begins with a dot (macOS adds `._0001.jpg`) belong to no sample. A link is what it leads to
where that is a member of the same tar; any other makes its sample a bad record.
"""

import bisect
import hashlib
import itertools
import json
import os
import posixpath
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

import fsspec
import tqdm

from janus_jax.data.sources.files import open_file
from janus_jax.data.sources.lines import JsonLines
from janus_jax.data.whole_files import replacing
from janus_jax.errors import InputError, RecordError

VERSION = 4  # Of the index files.
# What tarfile raises on damaged headers (seen by fuzzing).
DAMAGE = (tarfile.TarError, ValueError, OverflowError, RecursionError)
# Key; extension -> [offset, bytes] of each member; what is wrong with the sample, '' if nothing.
Sample = tuple[str, dict[str, list[int]], str]
LINKS = 8  # That lead to one another.


class TarSamples:
  """Samples as dicts: '__key__', and per extension ('jpg', 'txt', 'seg.png') the content as bytes.

  Attributes:
    block_sizes: samples of each tar, in order.
  """

  def __init__(self, paths: Sequence[str], index_directory: str):
    """
    Args:
      paths: of uncompressed tars, local or in a bucket.
      index_directory: where the index of each tar is kept, made if missing; a tar that has changed is indexed anew.

    Raises:
      InputError: a file that is no uncompressed tar.
    """
    os.makedirs(index_directory, exist_ok=True)
    self._paths = list(paths)
    progress = tqdm.tqdm(self._paths, desc='tars', unit='tar', dynamic_ncols=True, disable=len(paths) < 2)
    # Not in memory, which a hundred million samples would fill: a line is read when its sample is.
    self._index = JsonLines([_index(path, index_directory) for path in progress], index_directory)
    self.block_sizes = self._index.block_sizes
    self._ends = list(itertools.accumulate(self.block_sizes))

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Raises RecordError for a sample with a member that is no whole file in the tar."""
    path, (key, members, wrong) = self._sample(index)
    if wrong:
      raise RecordError('tar member', f'{self.where(index)}: {wrong}')
    found: dict[str, Any] = {'__key__': key}
    with open_file(path) as file:
      for extension, (offset, size) in members.items():
        file.seek(offset)
        found[extension] = file.read(size)
        if len(found[extension]) != size:
          raise RecordError('tar member', f'{self.where(index)}: {extension}: cut off since {path} was indexed')
    return found

  def where(self, index: int) -> str:
    """What messages call a sample: 'PATH: KEY'."""
    path, (key, _, _) = self._sample(index)
    return f'{path}: {key}'

  def _sample(self, index: int) -> tuple[str, Sample]:
    """The tar of a sample, and its entry in the index."""
    number = range(len(self))[index]
    return self._paths[bisect.bisect_right(self._ends, number)], self._index[number]['sample']


def _index(path: str, directory: str) -> str:
  """Path of the index of a tar, {'sample': Sample} a line, which is made if it is not there."""
  stored = os.path.join(directory, f'{_identity(path)}.jsonl')
  if not os.path.exists(stored):
    samples = _samples(path)
    with replacing(stored, shared=True) as partial, open(partial, 'w', encoding='utf-8') as file:
      file.writelines(f'{json.dumps({"sample": sample})}\n' for sample in samples)
  return stored


def _identity(path: str) -> str:
  """Changes when the file does: by its size and its time stamp or checksum, whichever its file system has."""
  try:
    system, name = fsspec.url_to_fs(path)
    facts = system.info(name)
  except (OSError, ImportError, ValueError) as error:
    raise InputError(f'{path}: {getattr(error, "strerror", None) or error}: expected a tar') from None
  known = [str(facts.get(fact)) for fact in ('size', 'mtime', 'etag', 'ETag', 'md5Hash', 'created')]
  return hashlib.sha256('\n'.join([str(VERSION), path, *known]).encode()).hexdigest()[:32]


def _samples(path: str) -> list[Sample]:
  """Walks over the headers of a tar."""
  with open_file(path) as file:
    try:
      tar = tarfile.open(fileobj=file, mode='r:')  # noqa: SIM115, closed with its file.
    except DAMAGE as error:
      raise InputError(f'{path}: {error}: expected an uncompressed tar') from None
    members, whole = _members(tar)
  named = {_normal(member.name): member for member in members}
  samples: list[Sample] = []
  for member in members:
    _add(samples, member, named)
  if not whole:
    # What it was cut off from cannot be known: the last sample may lack members.
    key = samples.pop()[0] if samples else ''
    samples.append((key, {}, f'cut off or damaged after {len(samples)} samples: expected a whole tar'))
  return samples


def _members(tar: tarfile.TarFile) -> tuple[list[tarfile.TarInfo], bool]:
  """The members of a tar but folders, and whether it is whole: tarfile takes a damaged header for the end."""
  members = []
  try:
    for member in tar:
      if member.size < 0:  # The next header would be this one again (CVE-2025-8194).
        return members, False
      if not member.isdir():
        members.append(member)
  except DAMAGE:
    return members, False
  tar.fileobj.seek(tar.offset)
  return members, tar.fileobj.read(tarfile.BLOCKSIZE) == tarfile.NUL * tarfile.BLOCKSIZE


def _normal(name: str) -> str:
  """The name of a member, by which links find it."""
  return posixpath.normpath(name)


def _add(samples: list[Sample], member: tarfile.TarInfo, named: Mapping[str, tarfile.TarInfo]) -> None:
  """Adds a member to the last sample, or begins another.

  Args:
    samples: so far.
    member: of the tar.
    named: all members by name, to which links may lead.
  """
  folder, name = posixpath.split(member.name)
  stem, _, extension = name.partition('.')
  outside = member.name.startswith('/') or '..' in member.name.split('/')
  if not outside and not (stem and extension):
    return
  key = posixpath.join(folder, stem)
  if not samples or samples[-1][0] != key:
    samples.append((key, {}, ''))
  _, members, wrong = samples[-1]
  found, fault = _followed(member, named)
  if outside:
    fault = f'member {member.name!r}: expected a path inside the tar'
  elif extension.lower() in members:
    fault = f'member {member.name!r}: a second one of that ending: expected one of each'
  members[extension.lower()] = [found.offset_data, found.size]
  samples[-1] = (key, members, wrong or fault)


def _followed(member: tarfile.TarInfo, named: Mapping[str, tarfile.TarInfo]) -> tuple[tarfile.TarInfo, str]:
  """The file that a member is or leads to, and what is wrong with it, '' if nothing."""
  found = member
  for _ in range(LINKS):
    if not (found.issym() or found.islnk()):
      break
    target = posixpath.join(posixpath.dirname(found.name), found.linkname) if found.issym() else found.linkname
    if _normal(target) not in named:
      return member, f'member {member.name!r}: a link to {found.linkname!r}: expected one to a file in the same tar'
    found = named[_normal(target)]
  if found.issym() or found.islnk():
    return member, f'member {member.name!r}: links that lead to one another: expected a file'
  if not found.isreg() or found.issparse():
    return (
      member,
      f'member {member.name!r}: {"a sparse file" if found.issparse() else "no file"}: expected a whole file',
    )
  return found, ''
