"""Records kept out of training to measure the loss on: spread over a source by a hash, the same ones every time.

They depend on the number of records alone (and on the sizes of blocks), not on seeds, hosts, or what is read first.
"""

from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from janus_jax.data.sources.blocks import BlockDataset

BLOCKS = 16  # That hold the records where reading one costs decoding its block.
CHUNK = 1 << 20  # Records that are hashed at a time.


def split(
  records: grain.MapDataset, count: int, block_sizes: Sequence[int] | None = None
) -> tuple[grain.MapDataset, grain.MapDataset]:
  """Records to train on and `count` records, fewer than there are, that are held out in the order of the hash.

  Where reading a record costs decoding its block, `block_sizes` are the records of each block in order; both datasets
  are then `BlockDataset`s, in the order of the blocks.
  """
  if block_sizes is None:
    chosen = _lowest(len(records), count)
    return (_Others(records, np.sort(chosen)) if count else records), _Chosen(records, chosen)
  sizes = np.array(block_sizes, np.int64)
  chosen = _in_few_blocks(sizes, count)
  held = np.bincount(np.searchsorted(np.cumsum(sizes), chosen, side='right'), minlength=len(sizes))
  kept = _Others(records, chosen) if count else records
  return _blocks(kept, sizes - held), _blocks(_Chosen(records, chosen), held)


def _blocks(records: grain.MapDataset, sizes: np.ndarray) -> BlockDataset:
  return BlockDataset(records, sizes[sizes > 0].tolist())


def _in_few_blocks(sizes: np.ndarray, count: int) -> np.ndarray:
  """Positions in order, int64[count], in the first BLOCKS blocks by their hash, or as many more as are needed."""
  order = np.argsort(_hashes(np.arange(len(sizes))), kind='stable')
  order = order[sizes[order] > 0]
  enough = int(np.searchsorted(np.cumsum(sizes[order]), count)) + 1
  ends = np.cumsum(sizes)
  inside = [np.arange(ends[block] - sizes[block], ends[block]) for block in order[: max(BLOCKS, enough)]]
  inside = np.concatenate([np.zeros(0, np.int64), *inside])
  return np.sort(inside[np.argsort(_hashes(inside), kind='stable')[:count]])


def _lowest(total: int, count: int) -> np.ndarray:
  """Positions below `total` of the lowest hashes, in the order of these, int64[count]."""
  best = np.zeros(0, np.int64)
  for start in range(0, total if count else 0, CHUNK):
    best = np.concatenate([best, np.arange(start, min(start + CHUNK, total))])
    best = best[np.argsort(_hashes(best), kind='stable')[:count]]
  return best


def _hashes(positions: np.ndarray) -> np.ndarray:
  """Splitmix64 of each position, uint64[n], which no version of numpy changes, unlike its random numbers."""
  mixed = (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
  mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return mixed ^ (mixed >> np.uint64(31))


class _Chosen(grain.MapDataset):
  """The records at some positions. An index beyond them counts epochs on, as in all of Grain's."""

  def __init__(self, parent: grain.MapDataset, positions: np.ndarray):
    super().__init__(parent)
    self._positions = positions

  def __len__(self) -> int:
    return len(self._positions)

  def __getitem__(self, index: int) -> Any:
    epoch, number = divmod(index, len(self))
    return self._parent[epoch * len(self._parent) + int(self._positions[number])]


class _Others(grain.MapDataset):
  """All records but those at some positions, which are sorted."""

  def __init__(self, parent: grain.MapDataset, positions: np.ndarray):
    super().__init__(parent)
    # Number of records that stay before each one that is left out.
    self._before = positions - np.arange(len(positions))

  def __len__(self) -> int:
    return len(self._parent) - len(self._before)

  def __getitem__(self, index: int) -> Any:
    epoch, number = divmod(index, len(self))
    number += int(np.searchsorted(self._before, number, side='right'))
    return self._parent[epoch * len(self._parent) + number]
