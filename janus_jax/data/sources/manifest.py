"""Manifest of shards of codes: the VQ that made them, of what dataset, and how many. JSON, used without JAX.

`manifest.json` describes the whole; each finished shard has a small file of its own beside it, so that hosts which
write shards side by side share no file while they work.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from janus_jax.data.sources.array_record import count_records, shard_path
from janus_jax.data.whole_files import write_json
from janus_jax.errors import InputError, one_line

FILE = 'manifest.json'
FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class CodeSettings:
  """Settings that determine the shards of a dataset; the same for every host and every run into one directory.

  Attributes:
    name: prefix of the names of shard files.
    num_records: records of the dataset, bad ones included.
    records_per_shard: records of the dataset that a shard stands for; it holds fewer if some are bad.
    vq_hash: `parameters_hash` of the VQ.
    image_size: side of the encoded square in pixels.
    crop: how an image became that square.
    codes_per_image: P; at most so many where aspects were kept.
    codebook_size: codes are 0 to this - 1.
    dataset: a digest of what was encoded (`sources/identity.py`); '' in older manifests.
    aspects: whether images have the bucket nearest to their own aspect (`data.aspects`), and records a 'grid'.
    format_version: version of manifest and records.
  """

  name: str
  num_records: int
  records_per_shard: int
  vq_hash: str
  image_size: int
  crop: str
  codes_per_image: int
  codebook_size: int
  dataset: str = ''
  aspects: bool = False
  format_version: int = FORMAT_VERSION

  @property
  def num_shards(self) -> int:
    return -(-self.num_records // self.records_per_shard)

  def records_of(self, shard: int) -> range:
    """Indices into the dataset."""
    start = shard * self.records_per_shard
    return range(start, min(start + self.records_per_shard, self.num_records))

  def path_of(self, directory: str, shard: int) -> str:
    """Path of a shard's file."""
    return shard_path(directory, self.name, shard, self.num_shards)


@dataclasses.dataclass(frozen=True)
class ShardCounts:
  """A finished shard.

  Attributes:
    index: its number, from 0.
    written: records in it.
    skipped: reason -> bad records that were left out.
    jax_version: the JAX that encoded it.
  """

  index: int
  written: int
  skipped: Mapping[str, int]
  jax_version: str


@dataclasses.dataclass(frozen=True)
class Manifest:
  """The content of the manifest.json at `path`, with the finished shards in order."""

  path: str
  settings: CodeSettings
  shards: tuple[ShardCounts, ...]

  @property
  def complete(self) -> bool:
    """True if every shard of the dataset is finished."""
    return len(self.shards) == self.settings.num_shards


def parameters_hash(params: Mapping[str, np.ndarray]) -> str:
  """SHA-256, in hexadecimal, over names, shapes and values in the order of the names.

  Values are hashed as float32, whatever they are stored in: a VQ computes in float32, so a checkpoint that holds
  bfloat16 and one that holds the same numbers as float32 give the same codes, and the same hash.

  Args:
    params: parameter path ('vq/codebook', ...) -> array.
  """
  digest = hashlib.sha256()
  for path in sorted(params):
    array = np.ascontiguousarray(params[path], '<f4')
    digest.update(f'{path} {array.shape}\n'.encode())
    digest.update(array.tobytes())
  return digest.hexdigest()


def read_manifest(directory: str) -> Manifest:
  """The manifest of a directory of codes.

  Raises:
    InputError: none there, damaged, or of another format version.
  """
  path = os.path.join(directory, FILE)
  try:
    values = _read_json(path)
  except OSError as error:
    raise InputError(f'{path}: {error.strerror}: expected the output of janus_jax.tokenize') from None
  except ValueError as error:
    raise InputError(f'{path}: not JSON ({error})') from None
  version = values.get('format_version') if isinstance(values, dict) else None
  if version != FORMAT_VERSION:
    raise InputError(f'{path}: format_version is {version!r}: expected {FORMAT_VERSION}')
  try:
    return Manifest(path, _settings(values), tuple(ShardCounts(**shard) for shard in values['shards']))
  except (KeyError, TypeError) as error:
    raise InputError(f'{path}: not the manifest of codes ({one_line(error)})') from None


def check_manifest(manifest: Manifest, vq_hash: str, image_size: int, codebook_size: int) -> None:
  """Checks that codes are complete and were made by a run's VQ, with the `parameters_hash` and sizes given.

  Raises:
    InputError: naming what differs.
  """
  expected = {'image_size': image_size, 'codebook_size': codebook_size, 'vq_hash': vq_hash}
  for name, value in expected.items():
    found = getattr(manifest.settings, name)
    if found != value:
      raise InputError(f'{manifest.path}: {name} is {found!r}: expected {value!r}, that of the model; encode it again')
  if not manifest.complete:
    finished, count = len(manifest.shards), manifest.settings.num_shards
    raise InputError(f'{manifest.path}: {finished} of {count} shards: expected all; run janus_jax.tokenize again')


def start_manifest(directory: str, settings: CodeSettings) -> None:
  """Writes a manifest without shards, unless there is one already, which then must have the same settings.

  Raises:
    InputError: it has others.
  """
  path = os.path.join(directory, FILE)
  if os.path.exists(path):
    _check_same(path, read_manifest(directory).settings, settings)
  else:
    _write(Manifest(path, settings, ()))


def write_counts(directory: str, settings: CodeSettings, counts: ShardCounts) -> None:
  """Writes the file beside a shard, which makes it count as finished."""
  write_json(_counts_path(directory, settings, counts.index), dataclasses.asdict(settings) | dataclasses.asdict(counts))


def finished_shards(directory: str, settings: CodeSettings) -> dict[int, ShardCounts]:
  """Finished shards by index: those whose file holds as many records as the file beside it says.

  Raises:
    InputError: one that another host wrote with other settings.
  """
  found = (_read_counts(directory, settings, shard) for shard in range(settings.num_shards))
  return {counts.index: counts for counts in found if counts is not None}


def merge_manifest(directory: str, settings: CodeSettings) -> Manifest:
  """Writes the manifest anew with all shards that are finished by now, and returns it."""
  path, written = os.path.join(directory, FILE), None
  # Another host may finish its last shard meanwhile, and write its manifest before this one is.
  while (found := tuple(finished_shards(directory, settings).values())) != written:
    manifest = Manifest(path, settings, found)
    _write(manifest)
    written = found
  return manifest


def _counts_path(directory: str, settings: CodeSettings, shard: int) -> str:
  return settings.path_of(directory, shard).removesuffix('.array_record') + '.json'


def _read_counts(directory: str, settings: CodeSettings, shard: int) -> ShardCounts | None:
  path = _counts_path(directory, settings, shard)
  if not os.path.exists(path):
    return None
  try:
    values = _read_json(path)
    there = _settings(values)
    counts = ShardCounts(**{field.name: values[field.name] for field in dataclasses.fields(ShardCounts)})
    whole = count_records(settings.path_of(directory, shard)) == counts.written
  except (InputError, ValueError, LookupError, TypeError):  # One of the two was damaged or lost: to be written again.
    return None
  _check_same(path, there, settings)
  return counts if whole else None


def _check_same(path: str, found: CodeSettings, expected: CodeSettings) -> None:
  for name, value in dataclasses.asdict(expected).items():
    if (there := getattr(found, name)) != value:
      if name == 'dataset':
        of = 'codes of an unknown dataset' if there == '' else 'codes of another dataset with as many records'
        raise InputError(f'{path}: {of}: expected those of --input as it is now; choose another --output')
      raise InputError(f'{path}: {name} is {there!r}: expected {value!r} as in this run; choose another --output')


def _read_json(path: str) -> Any:
  with open(path, encoding='utf-8') as file:
    return json.load(file)


def _settings(values: Mapping[str, Any]) -> CodeSettings:
  known = {'dataset': '', 'aspects': False, **values}
  return CodeSettings(**{field.name: known[field.name] for field in dataclasses.fields(CodeSettings)})


def _write(manifest: Manifest) -> None:
  shards = [dataclasses.asdict(shard) for shard in manifest.shards]
  values = dataclasses.asdict(manifest.settings) | {'complete': manifest.complete, 'shards': shards}
  write_json(manifest.path, values)
