"""Examples into the rows of a fixed-shape batch: where each goes, the arrays, and what the batch holds.

A batch takes consecutive examples for as long as one more fits, moving those it has: `grain.experimental`'s packers
never move one, which leaves up to four points more padding (tests/data/test_packing.py).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from janus_jax.data.examples import CODE, GENERATION_LOSS, KINDS, Example
from janus_jax.errors import InputError

# Sizes and capacities count these, in this order.
MEASURES = ('tokens', 'understanding images', 'images to draw')


@dataclasses.dataclass(frozen=True)
class BatchShape:
  """B `rows` of T positions (`length`), at most J `images` and G `drawings` in a row."""

  rows: int
  length: int
  images: int
  drawings: int

  @property
  def capacity(self) -> tuple[int, int, int]:
    return self.length, self.images, self.drawings


def size_of(example: Example) -> tuple[int, int, int]:
  """Tokens, understanding images, images to draw (none if codes were given): what a row has limited room for."""
  return len(example.tokens), len(example.pixels), len(example.generation_pixels)


def check_fits_a_row(example: Example, shape: BatchShape) -> None:
  """Raises InputError if no row of its own would hold the example."""
  for needed, room, measure in zip(size_of(example), shape.capacity, MEASURES):
    if needed > room:
      raise InputError(f'the example has {needed} {measure}: expected at most {room}, which is what a row holds')


class Packer:
  """Keeps a batch's examples assigned to rows, for as long as one more still fits."""

  def __init__(self, shape: BatchShape):
    self._shape = shape
    self._sizes: list[tuple[int, int, int]] = []
    self._free = _empty(shape)
    self.rows: list[int] = []  # Of each example added so far.

  def add(self, size: tuple[int, int, int]) -> bool:
    """Takes one more example, moving others where needed. False, and nothing changes, if it does not fit."""
    if (self._free.sum(0) < size).any():
      return False
    row = _tightest(self._free, size)
    if row is not None:
      self._free[row] -= size
      self.rows.append(row)
    elif (repacked := pack([*self._sizes, size], self._shape)) is not None:
      self.rows, self._free = repacked
    else:
      return False
    self._sizes.append(size)
    return True


def pack(sizes: Sequence[tuple[int, int, int]], shape: BatchShape) -> tuple[list[int], np.ndarray] | None:
  """Rows for examples of these sizes, and what stays free in each row; None if no way was found.

  Largest first, into the fullest row that has room; where that fails, into the emptiest.
  """
  order = sorted(range(len(sizes)), key=lambda index: sizes[index], reverse=True)
  for choose in (_tightest, _emptiest):
    rows, free = [0] * len(sizes), _empty(shape)
    for index in order:
      row = choose(free, sizes[index])
      if row is None:
        break
      rows[index] = row
      free[row] -= sizes[index]
    else:
      return rows, free
  return None


def _empty(shape: BatchShape) -> np.ndarray:
  return np.tile(np.array(shape.capacity, np.int64), (shape.rows, 1))


def _tightest(free: np.ndarray, size: tuple[int, int, int]) -> int | None:
  room = (free >= size).all(1)
  return int(np.where(room, free[:, 0], np.iinfo(np.int64).max).argmin()) if room.any() else None


def _emptiest(free: np.ndarray, size: tuple[int, int, int]) -> int | None:
  room = (free >= size).all(1)
  return int(np.where(room, free[:, 0], -1).argmax()) if room.any() else None


def make_batch(
  examples: Sequence[Example],
  rows: Sequence[int],
  shape: BatchShape,
  *,
  num_codes: int,
  image_size: int,
  generation_size: int | None,
) -> dict[str, np.ndarray]:
  """The arrays of a batch.

  Args:
    examples: in the order of the mixture, which they keep within a row.
    rows: of each example.
    shape: B, T, J and G.
    num_codes: P, codes per drawn image.
    image_size: side of the understanding images in pixels.
    generation_size: side of the drawn images; None if the examples hold codes.

  Returns:
    tokens, positions, segments, targets int32[B, T]; kinds, losses uint8[B, T]; weights float32[B, T];
    pixels uint8[B, J, size, size, 3], and generation_pixels uint8[B, G, size, size, 3] unless examples hold codes.
    Positions restart at 0 in each example; segments count 1, 2, ... in a row and are 0 in padding. With pixels to draw,
    a code is written as its place g * P + p among the codes of the row.
  """
  B, T = shape.rows, shape.length
  batch = {name: np.zeros((B, T), np.int32) for name in ('tokens', 'positions', 'segments', 'targets')}
  batch |= {name: np.zeros((B, T), np.uint8) for name in ('kinds', 'losses')}
  batch['weights'] = np.zeros((B, T), np.float32)
  batch['pixels'] = np.zeros((B, shape.images, image_size, image_size, 3), np.uint8)
  if generation_size is not None:
    batch['generation_pixels'] = np.zeros((B, shape.drawings, generation_size, generation_size, 3), np.uint8)
  used = np.zeros((B, len(MEASURES)), np.int64)
  segments = [0] * B
  for example, row in zip(examples, rows):
    start, first_image, first_drawing = used[row]
    n, j, g = size_of(example)
    span = slice(start, start + n)
    segments[row] += 1
    first_code = first_drawing * num_codes if g else 0
    batch['tokens'][row, span] = example.tokens + first_code * (example.kinds == CODE)
    batch['targets'][row, span] = example.targets + first_code * (example.losses == GENERATION_LOSS)
    batch['kinds'][row, span] = example.kinds
    batch['losses'][row, span] = example.losses
    batch['weights'][row, span] = example.weights
    batch['positions'][row, span] = np.arange(n)
    batch['segments'][row, span] = segments[row]
    batch['pixels'][row, first_image : first_image + j] = example.pixels
    if generation_size is not None:
      batch['generation_pixels'][row, first_drawing : first_drawing + g] = example.generation_pixels
    used[row] += (n, j, g)
  return batch


def statistics(batch: dict[str, np.ndarray]) -> dict[str, float]:
  """What a batch holds, for the metrics.

  Returns:
    `packing`, the share of positions that are not padding; `tokens`, their number; `examples`; and per kind of loss
    `targets/understanding`, `targets/text`, `targets/generation`, how many positions are supervised.
  """
  tokens = int((batch['segments'] > 0).sum())
  result = {
    'packing': tokens / batch['segments'].size,
    'tokens': tokens,
    'examples': int(batch['segments'].max(1).sum()),
  }
  counts = np.bincount(batch['losses'].ravel(), minlength=len(KINDS) + 1)
  return result | {f'targets/{kind}': int(count) for kind, count in zip(KINDS, counts[1:])}
