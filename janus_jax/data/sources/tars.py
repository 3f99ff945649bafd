"""WebDataset and img2dataset tars, read at random by an index of the offsets of their members.

A sample is a run of members that share their path up to the first dot of the file name: `0001.jpg`, `0001.txt` and
`0001.json` are one. Members are read by their offsets and never written anywhere. As in WebDataset, a file without an
extension and one whose name begins with a dot (macOS adds `._0001.jpg`) belong to no sample. A link stands for the
member of the same tar that it leads to; any other makes its sample a bad record.
"""

import itertools
import json
import posixpath
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import tqdm

from janus_jax.data.sources.files import file_identity, kept_file, open_file
from janus_jax.data.sources.indexed import BlockRecords
from janus_jax.data.sources.lines import JsonLines
from janus_jax.errors import InputError, RecordError

VERSION = 4  # Of the index files.
# What tarfile raises on damaged headers (seen by fuzzing).
DAMAGE = (tarfile.TarError, ValueError, OverflowError, RecursionError)
LINKS = 8  # That lead to one another.


class Sample(NamedTuple):
  """Key; extension -> [offset, bytes] of each member; the sample's fault, '' if there is none."""

  key: str
  members: Mapping[str, list[int]]
  fault: str


class TarSamples(BlockRecords):
  """Samples as dicts: '__key__', and per extension ('jpg', 'txt', 'seg.png') the content as bytes."""

  def __init__(self, paths: Sequence[str], index_directory: str):
    """
    Args:
      paths: uncompressed tars, local or in a bucket.
      index_directory: for the index of each tar, made if missing; a tar that has changed is indexed anew.

    Raises:
      InputError: a file that is no uncompressed tar.
    """
    self._paths = list(paths)
    progress = tqdm.tqdm(self._paths, desc='tars', unit='tar', dynamic_ncols=True, disable=len(paths) < 2)
    # Not in memory, which a hundred million samples would fill: a line is read when its sample is.
    self._index = JsonLines([_index(path, index_directory) for path in progress], index_directory)
    super().__init__(self._index.block_sizes)

  def _sample(self, index: int) -> tuple[str, Sample]:
    """The tar of a sample, and the sample's entry in the index."""
    return self._paths[self.locate(index)[0]], Sample(*self._index[index]['sample'])

  def where(self, index: int) -> str:
    """The name of a sample in messages: 'PATH: KEY'."""
    path, sample = self._sample(index)
    return f'{path}: {sample.key}'

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Raises RecordError for a sample with a member that is no whole file in the tar."""
    path, sample = self._sample(index)
    if sample.fault:
      raise RecordError('tar member', f'{path}: {sample.key}: {sample.fault}')
    found: dict[str, Any] = {'__key__': sample.key}
    with open_file(path) as file:
      for extension, (offset, size) in sample.members.items():
        file.seek(offset)
        found[extension] = file.read(size)
        if len(found[extension]) != size:
          raise RecordError('tar member', f'{path}: {sample.key}: {extension}: cut off since {path} was indexed')
    return found


def _index(path: str, directory: str) -> str:
  """Path of the index of a tar, {'sample': Sample} a line, which is made if it is not there."""

  def write(partial: str) -> None:
    samples = _samples(path)
    with open(partial, 'w', encoding='utf-8') as file:
      file.writelines(f'{json.dumps({"sample": sample})}\n' for sample in samples)

  return kept_file(directory, f'{file_identity(path, "tar", VERSION)}.jsonl', write)


def _samples(path: str) -> list[Sample]:
  """The samples of a tar, by its headers alone."""
  with open_file(path) as file:
    try:
      tar = tarfile.open(fileobj=file, mode='r:')  # noqa: SIM115, closed with its file.
    except DAMAGE as error:
      raise InputError(f'{path}: {error}: expected an uncompressed tar') from None
    members, whole = _members(tar)
  by_name = {posixpath.normpath(member.name): member for member in members}
  in_samples = (member for member in members if _is_outside(member) or all(_split(member)[1:]))
  runs = itertools.groupby(in_samples, lambda member: posixpath.join(*_split(member)[:2]))
  samples = [_sample(key, run, by_name) for key, run in runs]
  if not whole:
    # What it was cut off from cannot be known: the last sample may lack members.
    key = samples.pop().key if samples else ''
    samples.append(Sample(key, {}, f'cut off or damaged after {len(samples)} samples: expected a whole tar'))
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


def _is_outside(member: tarfile.TarInfo) -> bool:
  return member.name.startswith('/') or '..' in member.name.split('/')


def _split(member: tarfile.TarInfo) -> tuple[str, str, str]:
  """Folder, stem and extension of a member's name."""
  folder, name = posixpath.split(member.name)
  stem, _, extension = name.partition('.')
  return folder, stem, extension.lower()


def _sample(key: str, run: Iterable[tarfile.TarInfo], by_name: Mapping[str, tarfile.TarInfo]) -> Sample:
  """The sample of a run of members. Links may lead to any member of the tar, by its normal name."""
  members, faults = {}, []
  for member in run:
    found, fault = _followed(member, by_name)
    extension = _split(member)[2]
    if _is_outside(member):
      fault = 'expected a path inside the tar'
    elif extension in members:
      fault = 'a second one of that ending: expected one of each'
    members[extension] = [found.offset_data, found.size]
    faults += [f'member {member.name!r}: {fault}'] if fault else []
  return Sample(key, members, faults[0] if faults else '')


def _followed(member: tarfile.TarInfo, by_name: Mapping[str, tarfile.TarInfo]) -> tuple[tarfile.TarInfo, str]:
  """The file that a member is or leads to, and its fault, '' if there is none."""
  found = member
  for _ in range(LINKS + 1):
    if not (found.issym() or found.islnk()):
      break
    folder = posixpath.dirname(found.name) if found.issym() else ''
    target = posixpath.normpath(posixpath.join(folder, found.linkname))
    if target not in by_name:
      return member, f'a link to {found.linkname!r}: expected one to a file in the same tar'
    found = by_name[target]
  else:
    return member, 'links that lead to one another: expected a file'
  if not found.isreg() or found.issparse():
    return member, f'{"a sparse file" if found.issparse() else "no file"}: expected a whole file'
  return found, ''
