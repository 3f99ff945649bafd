"""Arrays that are read when asked: what lets a checkpoint be converted one tensor at a time."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

Index = Any  # What numpy accepts between brackets: integers, slices, Ellipsis, tuples of them.


@dataclasses.dataclass(frozen=True)
class LazyArray:
  """Shape and dtype now, values later. `array[index]` reads (only) what the index asks for.

  Attributes:
    shape: shape of the whole array.
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
    return math.prod(self.shape) * self.dtype.itemsize

  def astype(self, dtype: np.dtype) -> 'LazyArray':
    """The same array, cast as it is read."""
    if self.dtype == dtype:
      return self
    return LazyArray(self.shape, dtype, lambda index: self[index].astype(dtype), self.origin)


def from_numpy(array: np.ndarray, origin: str) -> LazyArray:
  """An array that is already there."""
  return LazyArray(array.shape, array.dtype, lambda index: array[index], origin)


def index_tuple(index: Index) -> tuple[Any, ...]:
  return index if isinstance(index, tuple) else (index,)


def read_layers(read: Callable[[int, Index], np.ndarray], depth: int, index: Index) -> np.ndarray:
  """Reads a part of a stacked array [L, ...] whose layers are read one by one.

  Args:
    read: (layer, index into it) -> numpy array.
    depth: number of layers.
    index: index into the stacked array.
  """
  layers, *rest = index_tuple(index) or (...,)
  if layers is Ellipsis:
    layers, rest = slice(None), [..., *rest]
  rest, chosen = tuple(rest) or (...,), range(depth)[layers]
  if isinstance(chosen, int):
    return read(chosen, rest)
  first = read(chosen[0], rest)
  if len(chosen) == 1:
    return first[None]
  stacked = np.empty((len(chosen), *first.shape), first.dtype)  # No list of layers beside it: memory.
  stacked[0] = first
  for i, layer in enumerate(chosen[1:], start=1):
    stacked[i] = read(layer, rest)
  return stacked


def row_slices(shape: tuple[int, ...], rows: int) -> list[Index]:
  """Indices that read an array in order, `rows` of its first axis at a time. A scalar is one slice."""
  if not shape:
    return [...]
  return [slice(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows)]
