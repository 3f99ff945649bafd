"""Packing of examples into the rows of a fixed-shape batch: which go together, the arrays, and their statistics.

Rows are filled one after another, each from the examples that wait: the oldest that fits, and those that fill up the
row best beside it (`fill_row`). `grain.experimental`'s packers never look ahead, and leave more padding
(tests/data/test_packing.py). Images have no room of their own in a row: the rows of a batch share it, so that what is
computed for images is used.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from janus_jax.data.examples import CODE, GENERATION_LOSS, TASKS, Example
from janus_jax.errors import RecordError

# Tokens, understanding images, images to generate: what a batch has limited room for.
Size = tuple[int, int, int]
Item = TypeVar('Item')
# Examples that wait for a row that they fill up well. More of them gain little, and each is held in memory.
WAITING = 16
# Why a record is skipped that no batch can hold, or that its source's policy leaves out (`examples.make_examples`).
LONG = 'long'
# Images beyond the mean of a batch that there is room for, divided by its rows. Less leaves positions of single rows
# empty: with 0.35 they are 92 % full in Janus-Pro's Stage I, with this 99 %. An empty slot costs less than that: an
# image takes a tenth of what its tokens take in the decoder. 4 rows need next to nothing (tests/data/test_packing.py).
SPARE_IMAGES = 1.2


@dataclasses.dataclass(frozen=True)
class BatchShape:
  """B `rows` of T positions (`length`), which share room for J `images` and G `generation_images`."""

  rows: int
  length: int
  images: int
  generation_images: int

  @property
  def largest(self) -> Size:
    """The largest example that a batch of its own holds."""
    return self.length, self.images, self.generation_images


@dataclasses.dataclass(frozen=True)
class MeanSize:
  """Mean size of the examples of a mixture: tokens, understanding images, images to generate."""

  tokens: float
  images: float
  generation_images: float


def batch_shape(
  rows: int, length: int, mean: MeanSize, images_per_row: float = 0.0, generation_images_per_row: float = 0.0
) -> BatchShape:
  """The shape of `rows` rows of `length` in which a mixture of this mean size fills rows and room for images.

  Room for images is `images_per_row` and `generation_images_per_row` where these are not 0.
  """

  def room(per_example: float, per_row: float) -> int:
    if not per_example:
      return 0
    expected = rows * length / mean.tokens * per_example
    return math.ceil(rows * per_row if per_row else expected + SPARE_IMAGES / rows)

  rooms = room(mean.images, images_per_row), room(mean.generation_images, generation_images_per_row)
  return BatchShape(rows, length, *rooms)


def size_of(example: Example) -> Size:
  """Tokens, understanding images, images to generate (none if codes were given)."""
  return len(example.tokens), len(example.pixels), len(example.generation_pixels)


def fits(size: Size, room: Size) -> bool:
  """True if there is room for an example of this size."""
  return all(needed <= left for needed, left in zip(size, room))


def check_fits(size: Size, shape: BatchShape, where: str = '') -> None:
  """Raises RecordError for the reason `LONG` if a batch would not hold an example alone; `where` names its record."""
  measures = (
    ('tokens', 'a row holds (sequence_length)'),
    ('understanding images', 'the rows of a stream share (images_per_row of the stage)'),
    ('images to generate', 'the rows of a stream share (generation_images_per_row of the stage)'),
  )
  for needed, room, (measure, holder) in zip(size, shape.largest, measures):
    if needed > room:
      message = f'the example has {needed} {measure}: expected at most {room}, which {holder}'
      raise RecordError(LONG, f'{where}: {message}' if where else message)


def fill_row(sizes: Sequence[Size], room: Size) -> list[int]:
  """The examples that fill a row best, in order: the first that fits, and those that leave the least room beside it.

  The first is always among them, so that none waits for more rows than examples wait. Which sums of tokens the others
  can reach is searched exactly, all sums at once: bit n of an integer says whether n tokens can be reached.

  Args:
    sizes: those of the waiting examples, the oldest first.
    room: tokens of the row, images and images to generate that the batch has left.
  """
  tokens, images, generation_images = room
  first = next((i for i, size in enumerate(sizes) if fits(size, room)), None)
  if first is None:
    return []
  order = [first, *(i for i in range(len(sizes)) if i != first)]
  n, j, g = sizes[first]
  within = (1 << (tokens + 1)) - 1
  # For the examples up to each: (images, images to generate) -> bits.
  reached = [{(j, g): 1 << n}]
  for index in order[1:]:
    n, j, g = sizes[index]
    sums = dict(reached[-1])
    for (with_images, with_generation), bits in reached[-1].items():
      key, moved = (with_images + j, with_generation + g), (bits << n) & within
      if moved and key[0] <= images and key[1] <= generation_images:
        sums[key] = sums.get(key, 0) | moved
    reached.append(sums)
  key = max(reached[-1], key=lambda key: reached[-1][key].bit_length())
  total, chosen = reached[-1][key].bit_length() - 1, [first]
  for last in range(len(order) - 1, 0, -1):
    if reached[last - 1].get(key, 0) >> total & 1:  # Also without this one, which is younger.
      continue
    n, j, g = sizes[order[last]]
    chosen.append(order[last])
    key, total = (key[0] - j, key[1] - g), total - n
  return sorted(chosen)


def fill_batch(
  waiting: list[Item], read: Callable[[], Item], size: Callable[[Item], Size], shape: BatchShape
) -> tuple[list[Item], list[int]]:
  """The examples of a batch, and the row of each.

  Args:
    waiting: examples that no row has yet, the oldest first; changed.
    read: gives the next one.
    size: gives the size of an example.
    shape: the batch's.
  """
  taken, rows, images, generation_images = [], [], shape.images, shape.generation_images
  for row in range(shape.rows):
    while len(waiting) < WAITING:
      waiting.append(read())
    sizes = list(map(size, waiting))
    chosen = fill_row(sizes, (shape.length, images, generation_images))
    for index in chosen:
      images, generation_images = images - sizes[index][1], generation_images - sizes[index][2]
    taken += [waiting[index] for index in chosen]
    rows += [row] * len(chosen)
    waiting[:] = [item for index, item in enumerate(waiting) if index not in chosen]
  return taken, rows


def make_batch(
  examples: Sequence[Example],
  rows: Sequence[int],
  shape: BatchShape,
  *,
  num_codes: int,
  image_size: int,
  generation_size: int | None,
) -> dict[str, np.ndarray]:
  """The arrays of a batch of one stream.

  Args:
    examples: in an order that they keep within a row.
    rows: the row of each example.
    shape: B, T, J and G.
    num_codes, image_size, generation_size: as in `ExampleSpec`.

  Returns:
    tokens, positions, segments, targets int32[B, T]; token_types, loss_ids uint8[B, T]; weights float32[B, T];
    pixels uint8[1, J, size, size, 3], and generation_pixels uint8[1, G, size, size, 3] unless examples hold codes.
    Positions restart at 0 in each example; segments count 1, 2, ... in a row and are 0 in padding. Images lie in the
    order of their rows, and within a row in that of the examples. With pixels to generate, a code is written as its
    index g * P + p among the codes of the batch.
  """
  B, T = shape.rows, shape.length
  batch = {name: np.zeros((B, T), np.int32) for name in ('tokens', 'positions', 'segments', 'targets')}
  batch |= {name: np.zeros((B, T), np.uint8) for name in ('token_types', 'loss_ids')}
  batch['weights'] = np.zeros((B, T), np.float32)
  batch['pixels'] = np.zeros((1, shape.images, image_size, image_size, 3), np.uint8)
  if generation_size is not None:
    batch['generation_pixels'] = np.zeros((1, shape.generation_images, generation_size, generation_size, 3), np.uint8)
  used, segments, images, generation_images = [0] * B, [0] * B, 0, 0
  for index in np.argsort(rows, kind='stable'):
    example, row = examples[index], rows[index]
    n, j, g = size_of(example)
    span = slice(used[row], used[row] + n)
    segments[row] += 1
    first_code = generation_images * num_codes if g else 0
    batch['tokens'][row, span] = example.tokens + first_code * (example.token_types == CODE)
    batch['targets'][row, span] = example.targets + first_code * (example.loss_ids == GENERATION_LOSS)
    for name in ('token_types', 'loss_ids', 'weights'):
      batch[name][row, span] = getattr(example, name)
    batch['positions'][row, span] = np.arange(n)
    batch['segments'][row, span] = segments[row]
    batch['pixels'][0, images : images + j] = example.pixels
    if generation_size is not None:
      batch['generation_pixels'][0, generation_images : generation_images + g] = example.generation_pixels
    used[row], images, generation_images = used[row] + n, images + j, generation_images + g
  return batch


def statistics(batch: dict[str, np.ndarray]) -> dict[str, float]:
  """Counts for the metrics.

  Returns:
    `packing`, the fraction of positions that are not padding; `tokens`, their number; `examples`; and
    `targets/understanding`, `targets/text`, `targets/generation`, the positions supervised in each loss.
  """
  segments = batch['segments']
  tokens, examples = int((segments > 0).sum()), int(segments.max(1).sum())
  counts = np.bincount(batch['loss_ids'].ravel(), minlength=len(TASKS) + 1)
  targets = {f'targets/{task}': int(count) for task, count in zip(TASKS, counts[1:])}
  return {'packing': tokens / segments.size, 'tokens': tokens, 'examples': examples} | targets
