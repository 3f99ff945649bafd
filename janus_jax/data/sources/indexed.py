"""Records stored in consecutive blocks (files, row groups of files), found by one index."""

import bisect
import itertools
from collections.abc import Iterable
from typing import SupportsIndex


class BlockRecords:
  """Lengths and offsets of a source whose records lie block after block; a subclass reads them.

  Attributes:
    block_sizes: records of each block, in order.
  """

  def __init__(self, block_sizes: Iterable[int]):
    self.block_sizes = tuple(block_sizes)
    self._ends = list(itertools.accumulate(self.block_sizes))

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def locate(self, index: SupportsIndex) -> tuple[int, int]:
    """The block of a record and its index in the block. Raises IndexError if there is no such record."""
    number = range(len(self))[index]
    block = bisect.bisect_right(self._ends, number)
    return block, number - (self._ends[block] - self.block_sizes[block])
