"""Codes of a whole dataset's images, computed once and stored in ArrayRecord shards: the logic of `tokenize`.

A shard stands for consecutive records of the dataset, which depend on its number and the size of shards alone. So hosts
share the work without talking to each other, and an interrupted run keeps every finished shard.
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
from janus_jax.data.aspects import aspect_buckets
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
from janus_jax.runs.image_codes import image_encoder, vq_arrays
from janus_jax.sharding.mesh import make_mesh
from janus_jax.training.ownership import locked
from janus_jax.training.state import Placement, place_batch

# By `TokenizeSettings.aspects`.
CROPS = {False: 'middle square, bicubic ({})', True: 'middle of the nearest aspect, bicubic ({})'}
AHEAD = 3  # Batches that are decoded while the device is busy.


@dataclasses.dataclass(frozen=True)
class EncodableImage:
  """A record on its way to a shard. Text is UTF-8; pixels are uint8[h, w, 3]."""

  key: bytes
  prompt: bytes
  pixels: np.ndarray


@dataclasses.dataclass(frozen=True)
class TokenizeSettings:
  """Settings of `tokenize`. Raises InputError where one is out of range.

  Attributes:
    name: beginning of the files' names.
    records_per_shard: records of the dataset that a shard stands for.
    shard: (i, n): this host, i counted from 0, writes shards i, i + n, i + 2n, ...
    batch_size: images at a time on each device.
    max_bad_fraction: a larger fraction of bad records stops the run, once 1000 were read and at the end. So do 100 bad
      ones in a row.
    resize: one of `resizing.RESIZES`; training on pixels should use the same.
    image_size: pixels along one side of the encoded square; None: as the checkpoint's.
    aspects: whether images keep their aspect as nearly as a grid of at most as many codes can (`data.aspects`).
    files: a digest of the files that the records are read from: tells the dataset from others, with the records'.
  """

  name: str
  records_per_shard: int
  shard: tuple[int, int]
  batch_size: int
  max_bad_fraction: float
  resize: str = 'fast'
  image_size: int | None = None
  aspects: bool = False
  files: str = ''

  def __post_init__(self) -> None:
    check_positive('records_per_shard', self.records_per_shard)
    check_positive('batch_size', self.batch_size)
    if not 0 <= self.shard[0] < self.shard[1]:
      raise InputError(f'shard is {self.shard[0]}/{self.shard[1]}: expected i/n with 0 <= i < n')
    if not 0 <= self.max_bad_fraction <= 1:
      raise InputError(f'max_bad_fraction is {self.max_bad_fraction}: expected a fraction from 0 to 1')


def tokenize(
  records: Sequence[Mapping[str, Any]], checkpoint: str, output: str, settings: TokenizeSettings
) -> Manifest:
  """Encodes images with the frozen VQ, in float32, on all devices of this host. Returns the manifest.

  Writes `output`/NAME-00003-of-00010.array_record, each a shard of `tf.train.Example` records {'codes': little-endian
  uint16[P] as bytes, 'prompt': UTF-8, 'key': bytes} in the order of `records`, and manifest.json. Where aspects are
  kept, a record also has 'grid': rows and columns of its codes. Finished shards stay as they are. Bad records are left
  out, counted, and the first few of each reason logged.

  Args:
    records: by index, {'prompt': str, 'image': file content, path or uint8[h, w, 1 or 3], 'key': str}. They are read in
      order by one thread, while images are opened and decoded by many. InputError, OSError or ValueError from
      reading one make it a bad record.
    checkpoint: directory of any layout.
    output: directory on a local or mounted disk, made if missing.

  Raises:
    InputError: no records or checkpoint, other shards in `output`, too many bad records, files that cannot be written.
  """
  if not len(records):
    raise InputError('the dataset has no records: expected at least one')
  config, params = load_vq(checkpoint, settings.image_size)
  made = _code_settings(records, settings, config, parameters_hash(params))
  os.makedirs(output, exist_ok=True)
  start_manifest(output, made)
  finished = finished_shards(output, made)
  mine = range(settings.shard[0], made.num_shards, settings.shard[1])
  bad = BadRecords(SkipLimit(fraction=settings.max_bad_fraction))
  for index in set(mine) & set(finished):
    bad.add(finished[index])
  wanted = {index: made.records_of(index) for index in mine if index not in finished}
  if wanted:
    encode = batch_encoder(config, params, settings.batch_size)
    rows = settings.batch_size * jax.local_device_count()
    # Nothing is random here, unlike in training: one prompt, one phrasing, never cut.
    grids = aspect_buckets(config.grid) if settings.aspects else ()
    shapes = tuple((rows * config.downsampling, columns * config.downsampling) for rows, columns in grids)
    transform = GenerationRecord(Fields(), config.image_size, find_resize(settings.resize), shapes)
    futures = _read_ahead(records, itertools.chain(*wanted.values()), transform, AHEAD * rows)
    progress = tqdm.tqdm(total=sum(map(len, wanted.values())), desc='encoding', unit='image', dynamic_ncols=True)
    with contextlib.closing(futures), progress as bar:
      for index, indices in wanted.items():
        before = bad.reasons.copy()
        images = _good(itertools.islice(futures, len(indices)), bad, bar)
        path = made.path_of(output, index)
        with locked(f'{path}.lock', path), ShardWriter(path) as writer:
          encoded = _records(_encoded(images, rows, encode), config.downsampling if settings.aspects else None)
          written = _write_records(writer, encoded, bar)
          if index == max(wanted):
            bad.check_fraction()  # Here, so that a dataset with too many bad records does not become complete.
        write_counts(output, made, ShardCounts(index, written, dict(bad.reasons - before), jax.__version__))
  logging.info('%s: %d shards written, %d kept; %s', output, len(wanted), len(mine) - len(wanted), bad.describe())
  return merge_manifest(output, made)


def _code_settings(
  records: Sequence[Mapping[str, Any]], settings: TokenizeSettings, config: VQConfig, vq_hash: str
) -> CodeSettings:
  dataset = hashlib.sha256(f'{records_digest(records)} {settings.files}'.encode()).hexdigest()[:32]
  return CodeSettings(
    settings.name,
    len(records),
    settings.records_per_shard,
    vq_hash,
    config.image_size,
    CROPS[settings.aspects].format(settings.resize),
    codes_per_image=config.num_tokens,
    codebook_size=config.codebook_size,
    dataset=dataset,
    aspects=settings.aspects,
  )


def load_vq(checkpoint: str, image_size: int | None = None) -> tuple[VQConfig, dict[str, np.ndarray]]:
  """Architecture and `vq_arrays` of the VQ of a checkpoint of any layout; nothing else of it is read.

  Args:
    checkpoint: directory, or a name on the hub.
    image_size: of the images to encode, in pixels; None: as the checkpoint's.

  Raises:
    InputError: no checkpoint there, more codes than 16 bits can tell apart, a size that the VQ does not divide.
  """
  opened = open_checkpoint(checkpoint).resized(generation_size=image_size or 0)
  config = opened.config.vq
  if config.codebook_size > 2**16:
    raise InputError(f'{checkpoint}: a codebook of {config.codebook_size} rows: expected at most {2**16}')
  return config, vq_arrays(opened)


def batch_encoder(
  config: VQConfig, params: Mapping[str, np.ndarray], batch_size: int
) -> Callable[[Sequence[np.ndarray]], jax.Array]:
  """The VQ of `load_vq` on all devices of this host, `batch_size` images at a time on each.

  Returns:
    (at most batch_size * devices images of one shape, uint8[h, w, 3] each) -> int32[batch_size * devices, P], the first
    rows of which are theirs. It compiles once for each shape, and does not wait for the devices.
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
  """Counts bad records by reason, logs the first few of each, and stops the run where there are too many."""

  def __init__(self, limit: SkipLimit):
    self.reasons: collections.Counter[str] = collections.Counter()
    self._limit, self._read, self._consecutive = limit, 0, 0

  def add(self, counts: ShardCounts) -> None:
    """Counts a shard that an earlier run finished."""
    self.reasons.update(counts.skipped)
    self._read += counts.written + sum(counts.skipped.values())

  def add_good(self) -> None:
    self._read += 1
    self._consecutive = 0

  def add_bad(self, error: InputError) -> None:
    """Raises InputError if there are too many by now."""
    self._read += 1
    self._consecutive += 1
    reason = reason_of(error)
    self.reasons[reason] += 1
    if self.reasons[reason] <= LOGGED:
      logging.warning('Skipped (%s): %s', reason, error)
    if self._consecutive >= self._limit.consecutive:
      expected = f'expected fewer than {self._limit.consecutive}'
      raise InputError(f'{self._consecutive} bad records in a row: {expected}; {self.describe()}. The last: {error}')
    if self._read >= self._limit.after:
      self.check_fraction()

  def check_fraction(self) -> None:
    """Raises InputError if a larger fraction is bad than is allowed."""
    if self.reasons.total() > self._limit.fraction * self._read:
      raise InputError(f'{self.describe()}: expected at most {self._limit.fraction:.1%} (--max_bad_fraction)')

  def describe(self) -> str:
    """'3 of 1000 records are bad (caption 1, image 2)'."""
    reasons = ', '.join(f'{reason} {count}' for reason, count in sorted(self.reasons.items()))
    return f'{self.reasons.total()} of {self._read} records are bad' + (f' ({reasons})' if reasons else '')


def _read_ahead(
  records: Sequence[Mapping[str, Any]], indices: Iterable[int], transform: GenerationRecord, ahead: int
) -> Iterator[concurrent.futures.Future[EncodableImage]]:
  """Images in order, as futures, `ahead` of which are decoded before they are asked for. Close it to end the threads.

  Pillow lets other threads run while it decodes and resizes.
  """
  numbered, waiting = Numbered(records), collections.deque()
  pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
  try:
    for index in indices:
      try:
        waiting.append(pool.submit(read_image, numbered[index], transform))
      except RecordError as error:
        waiting.append(concurrent.futures.Future())
        waiting[-1].set_exception(error)
      if len(waiting) > ahead:
        yield waiting.popleft()
    yield from waiting
  finally:
    pool.shutdown(cancel_futures=True)


def read_image(located: tuple[str, Mapping[str, Any]], transform: GenerationRecord) -> EncodableImage:
  """Decodes and crops the image of (origin for messages, record as of `tokenize`). Raises RecordError."""
  found = transform.random_map(located, np.random.default_rng(0))
  return EncodableImage(os.fsencode(located[1]['key']), found['prompt'].encode(), found['image'])


def _good(
  futures: Iterable[concurrent.futures.Future[EncodableImage]], bad: BadRecords, bar: tqdm.tqdm
) -> Iterator[EncodableImage]:
  for future in futures:
    try:
      image = future.result()
    except InputError as error:
      bad.add_bad(error)
      bar.update()
    else:
      bad.add_good()
      yield image


def _batches(images: Iterable[EncodableImage], size: int) -> Iterator[dict[int, EncodableImage]]:
  """Images of one shape, at most `size`, by their number among all. Each shape's last batch may have fewer."""
  waiting: dict[tuple[int, ...], dict[int, EncodableImage]] = {}
  for number, image in enumerate(images):
    batch = waiting.setdefault(image.pixels.shape, {})
    batch[number] = image
    if len(batch) == size:
      yield waiting.pop(image.pixels.shape)
  yield from waiting.values()


def _encoded(
  images: Iterable[EncodableImage], size: int, encode: Callable[[Sequence[np.ndarray]], jax.Array]
) -> Iterator[tuple[dict[int, EncodableImage], jax.Array]]:
  """Batches and their codes. The devices are given the next batch before the codes of one are read."""
  started = ((batch, encode([image.pixels for image in batch.values()])) for batch in _batches(images, size))
  for current, _ in itertools.pairwise(itertools.chain(started, [None])):
    yield current


def _records(
  encoded: Iterable[tuple[dict[int, EncodableImage], jax.Array]], downsampling: int | None
) -> Iterator[dict[int, bytes]]:
  """Records of each batch by number; with their grids where the pixels along a code are given."""
  for batch, codes in encoded:
    found = {}
    for (number, image), row in zip(batch.items(), np.asarray(codes).astype('<u2')):
      grid = {'grid': [side // downsampling for side in image.pixels.shape[:2]]} if downsampling else {}
      found[number] = encode_example({'codes': row.tobytes(), **grid, 'prompt': image.prompt, 'key': image.key})
    yield found


def _write_records(writer: ShardWriter, batches: Iterable[dict[int, bytes]], bar: tqdm.tqdm) -> int:
  """Writes records in the order of their numbers, each as soon as those before it are there. Returns how many."""
  waiting: dict[int, bytes] = {}
  written = 0
  for batch in batches:
    waiting |= batch
    bar.update(len(batch))
    while written in waiting:
      writer.write(waiting.pop(written))
      written += 1
  return written
