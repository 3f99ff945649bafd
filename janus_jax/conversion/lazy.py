"""Arrays that are read when asked: what lets a checkpoint be converted one tensor at a time."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

Index = Any  # What numpy accepts between brackets: integers, slices, Ellipsis, tuples of them.


@dataclasses.dataclass(frozen=True)
class LazyArray:
  """Shape and dtype now, values later. `array[index]` reads (only) what the index asks for.

  Attributes:
    shape: of the whole array.
    dtype: numpy dtype; bfloat16 is `ml_dtypes.bfloat16`.
    read: index -> numpy array of that part. Every call reads anew; nothing is cached.
    origin: where it comes from, for error messages ("model.safetensors: lm_head.weight").
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[Index], np.ndarray]
  origin: str = ''

  def __getitem__(self, index: Index) -> np.ndarray:
    return self.read(index)

  @property
  def nbytes(self) -> int:
    return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def from_numpy(array: np.ndarray, origin: str) -> LazyArray:
  """An array that is already there."""
  return LazyArray(array.shape, array.dtype, lambda index: array[index], origin)
