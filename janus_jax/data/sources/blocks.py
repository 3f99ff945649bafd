"""Shuffling records that are stored in blocks, where reading one record costs decoding its block."""

import functools
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np


class BlockDataset(grain.MapDataset):
  """Records of which neighbours are cheap to read together: it shuffles the blocks, and the records within each.

  A block is read once in an epoch, however many records there are. Records of one block stay together, so a dataset
  whose blocks are not mixed themselves (all of one class, say) should be mixed when it is written.
  """

  def __init__(self, parent: grain.MapDataset, block_sizes: Sequence[int]):
    """`block_sizes` are the records of each block, in order; their sum is the number of records."""
    super().__init__(parent)
    self._sizes = tuple(block_sizes)

  @property
  def block_size(self) -> int:
    """Records of a typical block, at least 1."""
    return max(int(np.median(self._sizes)), 1) if self._sizes else 1

  def __len__(self) -> int:
    return len(self._parent)

  def __getitem__(self, index: int) -> Any:
    return self._parent[index]

  def shuffle(self, seed: int | None = None) -> grain.MapDataset:
    """The records in another order in each epoch."""
    return _Shuffled(self._parent, self._sizes, seed or 0)


class _Shuffled(grain.MapDataset):
  def __init__(self, parent: grain.MapDataset, sizes: tuple[int, ...], seed: int):
    super().__init__(parent)
    self._sizes, self._seed = np.array(sizes), seed
    self._starts = np.cumsum([0, *sizes[:-1]])
    self._blocks = functools.lru_cache(2)(self._shuffled_blocks)
    self._within = functools.lru_cache(4)(self._shuffled_within)

  def __reduce__(self):  # Caches stay behind.
    return _Shuffled, (self._parent, tuple(self._sizes.tolist()), self._seed)

  def __len__(self) -> int:
    return len(self._parent)

  def __getitem__(self, index: int) -> Any:
    epoch, position = divmod(index, len(self))
    order, ends = self._blocks(epoch)
    number = int(np.searchsorted(ends, position, side='right'))
    block = int(order[number])
    offset = self._within(epoch, block)[position - (ends[number] - self._sizes[block])]
    return self._parent[epoch * len(self) + int(self._starts[block] + offset)]

  def _shuffled_blocks(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """The blocks in the order of an epoch, and the position in the epoch behind each."""
    order = np.random.default_rng([self._seed, epoch]).permutation(len(self._sizes))
    return order, np.cumsum(self._sizes[order])

  def _shuffled_within(self, epoch: int, block: int) -> np.ndarray:
    return np.random.default_rng([self._seed, epoch, block]).permutation(self._sizes[block])
