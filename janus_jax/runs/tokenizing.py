"""Codes of a whole dataset's images, computed once and stored in ArrayRecord shards: the logic of `tokenize`.

A shard stands for a fixed run of the dataset's records, which depends on nothing but its number and the size of shards.
So hosts can share the work without talking to each other, and a run that was interrupted keeps every finished shard.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import tqdm

from janus_jax.conversion.checkpoint import open_checkpoint
from janus_jax.data.pipeline import LOGGED
from janus_jax.data.resizing import find_resize
from janus_jax.data.skipping import SkipLimit
from janus_jax.data.sources.array_record import ShardWriter, encode_example
from janus_jax.data.sources.identity import records_digest
from janus_jax.data.sources.manifest import (
  CodeSettings,
  Manifest,
  ShardCounts,
  finished_shards,
  merge_manifest,
  parameters_hash,
  start_manifest,
  write_counts,
)
from janus_jax.data.sources.records import Fields, GenerationRecord, Numbered
from janus_jax.data.workers import reason_of
from janus_jax.errors import InputError, RecordError
from janus_jax.inference.requests import check_positive
from janus_jax.models.config import VQConfig
from janus_jax.runs.image_codes import image_encoder
from janus_jax.sharding.mesh import make_mesh
from janus_jax.training.ownership import locked
from janus_jax.training.state import Placement, place_batch

CROP = 'middle square, bicubic ({})'
# Batches that are decoded while the device is busy.
AHEAD = 3


@dataclasses.dataclass(frozen=True)
class Picture:
  """A record on its way to a shard. Text is UTF-8; pixels are uint8[size, size, 3]."""

  key: bytes
  prompt: bytes
  pixels: np.ndarray


def tokenize(
  records: Sequence[Mapping[str, Any]],
  checkpoint: str,
  output: str,
  *,
  name: str,
  records_per_shard: int,
  shard: tuple[int, int],
  batch_size: int,
  max_bad_share: float,
  resize: str = 'fast',
  files: str = '',
) -> Manifest:
  """Encodes images with the frozen VQ, in float32, on all devices of this host.

  Writes `output`/NAME-00003-of-00010.array_record, each a shard of `tf.train.Example` records {'codes': little-endian
  uint16[P] as bytes, 'prompt': UTF-8, 'key': bytes} in the order of `records`, and manifest.json. Shards that are
  finished already stay as they are. Bad records are left out, counted, and the first few of each kind logged.

  Args:
    records: by index, {'prompt': str, 'image': file content, path or uint8[h, w, 1 or 3], 'key': str}. They are read in
      order by one thread, while images are opened and decoded by many. InputError, OSError or ValueError from
      reading one make it a bad record.
    checkpoint: directory of any layout.
    output: directory, made if it is not there; on a local or mounted disk.
    name: that the files of shards begin with.
    records_per_shard: how many of `records` a shard stands for.
    shard: (i, n): this host, i counted from 0, writes shards i, i + n, i + 2n, ...
    batch_size: images at a time on each device.
    max_bad_share: of bad records: more than it stops the run, once 1000 were read and at the end. So do 100 in a row.
    resize: one of `resizing.RESIZES`; training on pixels should use the same.
    files: a digest of the files that the records are read from. With one of the records themselves it is what tells the
      dataset from others.

  Returns:
    The manifest, with the shards that are finished by now, those of other hosts included.

  Raises:
    InputError: wrong arguments, no checkpoint there, shards in `output` that were made otherwise, too many bad records,
      or files that cannot be written.
  """
  _check_arguments(records, records_per_shard, shard, batch_size, max_bad_share)
  config, params = load_vq(checkpoint)
  settings = CodeSettings(
    name=name,
    num_records=len(records),
    records_per_shard=records_per_shard,
    vq_hash=parameters_hash(params),
    image_size=config.image_size,
    crop=CROP.format(resize),
    codes_per_image=config.num_tokens,
    codebook_size=config.codebook_size,
    dataset=hashlib.sha256(f'{records_digest(records)} {files}'.encode()).hexdigest()[:32],
  )
  os.makedirs(output, exist_ok=True)
  start_manifest(output, settings)
  finished = finished_shards(output, settings)
  mine = range(shard[0], settings.num_shards, shard[1])
  wanted = [index for index in mine if index not in finished]
  bad = BadRecords(SkipLimit(fraction=max_bad_share))
  for index in set(mine) & set(finished):
    bad.add(finished[index])
  if wanted:
    encode = batch_encoder(config, params, batch_size)
    rows = batch_size * jax.local_device_count()
    # Of the choices that are random in training there is none here: one prompt, one wording, never cut.
    transform = GenerationRecord(Fields(), config.image_size, find_resize(resize))
    _write_shards(records, output, settings, wanted, encode, rows, transform, bad)
  logging.info('%s: %d shards written, %d kept; %s', output, len(wanted), len(mine) - len(wanted), bad.describe())
  return merge_manifest(output, settings)


def load_vq(checkpoint: str) -> tuple[VQConfig, dict[str, np.ndarray]]:
  """The VQ of a checkpoint of any layout; nothing else of it is read.

  Returns:
    Its architecture; parameter path ('vq/codebook', ...) -> array as stored.

  Raises:
    InputError: no checkpoint there, or more codes than 16 bits can tell apart.
  """
  opened = open_checkpoint(checkpoint)
  config = opened.config.vq
  if config.codebook_size > 2**16:
    raise InputError(f'{checkpoint}: a codebook of {config.codebook_size} rows: expected at most {2**16}')
  return config, {path: leaf[...] for path, leaf in opened.params.items() if path.startswith('vq/')}


def batch_encoder(
  config: VQConfig, params: Mapping[str, np.ndarray], batch_size: int
) -> Callable[[Sequence[np.ndarray]], jax.Array]:
  """The VQ on all devices of this host, which split each batch between them.

  Args:
    config: of the VQ.
    params: from `load_vq`.
    batch_size: images at a time on each device.

  Returns:
    (at most batch_size * devices images, uint8[size, size, 3] each) -> int32[batch_size * devices, P], the first rows
    of which are theirs. It compiles once, and does not wait for the devices.
  """
  mesh = make_mesh({'data': -1}, jax.local_devices())
  tree = flax.traverse_util.unflatten_dict(dict(params), sep='/')
  encode = image_encoder(config, jax.device_put(tree['vq'], Placement(mesh, {}).everywhere))
  rows = batch_size * mesh.size

  def encode_images(images: Sequence[np.ndarray]) -> jax.Array:
    filled = np.stack([*images, *[images[-1]] * (rows - len(images))])
    return encode(place_batch({'pixels': filled}, mesh)['pixels'])

  return encode_images


class BadRecords:
  """Counts bad records by reason, logs the first few of each, and says when there are too many."""

  def __init__(self, limit: SkipLimit):
    self.reasons: collections.Counter[str] = collections.Counter()
    self._limit, self._read, self._in_a_row = limit, 0, 0

  def add(self, counts: ShardCounts) -> None:
    """Counts a shard that an earlier run finished."""
    self.reasons.update(counts.skipped)
    self._read += counts.written + sum(counts.skipped.values())

  def add_good(self) -> None:
    """Counts a record that is kept."""
    self._read += 1
    self._in_a_row = 0

  def add_bad(self, error: InputError) -> None:
    """Counts a record that is left out. Raises InputError if there are too many by now."""
    self._read += 1
    self._in_a_row += 1
    reason = reason_of(error)
    self.reasons[reason] += 1
    if self.reasons[reason] <= LOGGED:
      logging.warning('Skipped (%s): %s', reason, error)
    if self._in_a_row >= self._limit.consecutive:
      expected = f'expected fewer than {self._limit.consecutive}'
      raise InputError(f'{self._in_a_row} bad records in a row: {expected}; {self.describe()}. The last: {error}')
    if self._read >= self._limit.after:
      self.check_share()

  def check_share(self) -> None:
    """Raises InputError if more than the configured share is bad."""
    if self.reasons.total() > self._limit.fraction * self._read:
      raise InputError(f'{self.describe()}: expected at most {self._limit.fraction:.1%} (--max_bad_share)')

  def describe(self) -> str:
    """'3 of 1000 records are bad (caption 1, image 2)'."""
    reasons = ', '.join(f'{reason} {count}' for reason, count in sorted(self.reasons.items()))
    return f'{self.reasons.total()} of {self._read} records are bad' + (f' ({reasons})' if reasons else '')


def _check_arguments(
  records: Sequence[Any], records_per_shard: int, shard: tuple[int, int], batch_size: int, max_bad_share: float
) -> None:
  check_positive('records_per_shard', records_per_shard)
  check_positive('batch_size', batch_size)
  if not 0 <= shard[0] < shard[1]:
    raise InputError(f'shard is {shard[0]}/{shard[1]}: expected i/n with 0 <= i < n')
  if not 0 <= max_bad_share <= 1:
    raise InputError(f'max_bad_share is {max_bad_share}: expected a share from 0 to 1')
  if not len(records):
    raise InputError('the dataset has no records: expected at least one')


def _write_shards(
  records: Sequence[Mapping[str, Any]],
  output: str,
  settings: CodeSettings,
  wanted: Sequence[int],
  encode: Callable[[Sequence[np.ndarray]], jax.Array],
  rows: int,
  transform: GenerationRecord,
  bad: BadRecords,
) -> None:
  indices = [settings.records_of(shard) for shard in wanted]
  futures = _read_ahead(records, itertools.chain(*indices), transform, AHEAD * rows)
  with contextlib.closing(futures), _progress(sum(map(len, indices))) as bar:
    for shard, of_shard in zip(wanted, indices):
      before = bad.reasons.copy()
      pictures = _good(itertools.islice(futures, len(of_shard)), bad, bar)
      path = settings.path_of(output, shard)
      with locked(f'{path}.lock', path), ShardWriter(path) as writer:
        written = _write_records(writer, _encoded(_batches(pictures, rows), encode), bar)
        if shard == wanted[-1]:
          bad.check_share()  # Here, so that what has too many bad records does not become complete.
      counts = ShardCounts(shard, written, dict(bad.reasons - before), jax.__version__)
      write_counts(output, settings, counts)


def _progress(total: int) -> tqdm.tqdm:
  return tqdm.tqdm(total=total, desc='encoding', unit='image', dynamic_ncols=True)


def _read_ahead(
  records: Sequence[Mapping[str, Any]], indices: Iterable[int], transform: GenerationRecord, ahead: int
) -> Iterator[concurrent.futures.Future[Picture]]:
  """Pictures in order, as futures, of which `ahead` are decoded before they are asked for. Close it to end the threads.

  Pillow lets other threads run while it decodes and resizes.
  """
  numbered, waiting = Numbered(records), collections.deque()
  pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
  try:
    for index in indices:
      waiting.append(_start_reading(pool, numbered, index, transform))
      if len(waiting) > ahead:
        yield waiting.popleft()
    yield from waiting
  finally:
    pool.shutdown(cancel_futures=True)


def _start_reading(
  pool: concurrent.futures.Executor, numbered: Numbered, index: int, transform: GenerationRecord
) -> concurrent.futures.Future[Picture]:
  try:
    return pool.submit(read_picture, numbered[index], transform)
  except RecordError as error:
    future = concurrent.futures.Future()
    future.set_exception(error)
    return future


def read_picture(located: tuple[str, Mapping[str, Any]], transform: GenerationRecord) -> Picture:
  """Decodes and crops the image of a record.

  Args:
    located: where the record comes from, for messages, and the record as `tokenize` takes them.
    transform: decodes and crops.

  Raises:
    RecordError: it cannot be used.
  """
  found = transform.random_map(located, np.random.default_rng(0))
  return Picture(os.fsencode(located[1]['key']), found['prompt'].encode(), found['image'])


def _good(futures: Iterable[concurrent.futures.Future[Picture]], bad: BadRecords, bar: tqdm.tqdm) -> Iterator[Picture]:
  for future in futures:
    try:
      picture = future.result()
    except InputError as error:
      bad.add_bad(error)
      bar.update()
    else:
      bad.add_good()
      yield picture


def _batches(pictures: Iterator[Picture], rows: int) -> Iterator[list[Picture]]:
  while batch := list(itertools.islice(pictures, rows)):
    yield batch


def _encoded(
  batches: Iterable[list[Picture]], encode: Callable[[Sequence[np.ndarray]], jax.Array]
) -> Iterator[tuple[list[Picture], jax.Array]]:
  """Batches with their codes, which are on their way: the devices have the next batch before one's codes are read."""
  previous = None
  for batch in batches:
    current = batch, encode([picture.pixels for picture in batch])
    if previous is not None:
      yield previous
    previous = current
  if previous is not None:
    yield previous


def _write_records(writer: ShardWriter, encoded: Iterable[tuple[list[Picture], jax.Array]], bar: tqdm.tqdm) -> int:
  """Returns how many were written."""
  written = 0
  for batch, codes in encoded:
    for picture, row in zip(batch, np.asarray(codes).astype('<u2')):
      writer.write(encode_example({'codes': row.tobytes(), 'prompt': picture.prompt, 'key': picture.key}))
    written += len(batch)
    bar.update(len(batch))
  return written
