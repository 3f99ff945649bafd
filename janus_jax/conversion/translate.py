"""Applies the table of `mapping.py` to lazy arrays: torch tensors <-> our parameter tree, nothing read yet."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax.numpy as jnp
import numpy as np

from janus_jax.conversion.lazy import Index, LazyArray
from janus_jax.conversion.mapping import Layout, Piece, tensor_shape, torch_names
from janus_jax.errors import InputError
from janus_jax.models.config import ComputeConfig, JanusConfig
from janus_jax.models.janus import abstract_params

MAX_NAMES = 4  # An error message names this many offenders and counts the rest.


@functools.cache  # Tracing the whole model takes a second; a program asks about the same few configs again and again.
def _parameter_shapes(config: JanusConfig) -> tuple[tuple[str, tuple[int, ...]], ...]:
  flat = flax.traverse_util.flatten_dict(abstract_params(config, ComputeConfig()), sep='/')
  return tuple((path, leaf.shape) for path, leaf in flat.items())


def parameter_shapes(config: JanusConfig) -> dict[str, tuple[int, ...]]:
  """Path -> shape of every parameter of a model."""
  return dict(_parameter_shapes(config))


def _listed(names: list[str]) -> str:
  more = f' and {len(names) - MAX_NAMES} more' if len(names) > MAX_NAMES else ''
  return ', '.join(names[:MAX_NAMES]) + more


def check_names(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, LazyArray], source: str) -> None:
  """Raises InputError unless exactly the expected names are there, in the expected shapes."""
  missing = [name for name in expected if name not in found]
  unexpected = [name for name in found if name not in expected]
  misshapen = [
    f'{name} is {list(found[name].shape)} not {list(shape)}'
    for name, shape in expected.items()
    if name in found and tuple(found[name].shape) != tuple(shape)
  ]
  kinds = (('missing', missing), ('unexpected', unexpected), ('of another shape', misshapen))
  problems = [f'{len(names)} {kind}: {_listed(names)}' for kind, names in kinds if names]
  if problems:
    raise InputError(f'{source}: the tensors are not those of a Janus with this config: {"; ".join(problems)}')


def split_index(index: Index) -> tuple[Any, tuple[Any, ...]]:
  """An index into [L, ...] as (index into L, index into the rest)."""
  index = index if isinstance(index, tuple) else (index,)
  if not index or index[0] is Ellipsis:
    return slice(None), index or (Ellipsis,)
  return index[0], index[1:] or (Ellipsis,)


def _from_piece(tensor: LazyArray, piece: Piece, index: Index) -> np.ndarray:
  rows = slice(None)
  if piece.third is not None:
    size = piece.torch_shape[0]
    rows = slice(piece.third * size, (piece.third + 1) * size)
  elif piece.torch_shape == piece.shape:
    return tensor[index]  # The same array on both sides: read only what is asked for.
  return piece.transform.from_torch(tensor[rows], piece.shape)[index]


def _stack(tensors: list[LazyArray], pieces: list[Piece], index: Index) -> np.ndarray:
  layers, rest = split_index(index)
  chosen = range(len(pieces))[layers]
  if isinstance(chosen, int):
    return _from_piece(tensors[chosen], pieces[chosen], rest)
  first = _from_piece(tensors[chosen[0]], pieces[chosen[0]], rest)
  if len(chosen) == 1:
    return first[None]
  stacked = np.empty((len(chosen), *first.shape), first.dtype)
  stacked[0] = first
  for i, layer in enumerate(chosen[1:], start=1):
    stacked[i] = _from_piece(tensors[layer], pieces[layer], rest)
  return stacked


def params_from_tensors(
  shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, LazyArray], layout: Layout, source: str
) -> dict[str, LazyArray]:
  """Our parameters, read from torch tensors when asked.

  Args:
    shapes: path -> shape of what is wanted (a whole model or a part of it).
    tensors: exactly the tensors that these parameters are made of, by name.
    layout: whose names.
    source: file or directory, for error messages.

  Returns:
    path -> array; stacked parameters read one layer at a time.

  Raises:
    InputError: a tensor is missing, unexpected, or of another shape or type.
  """
  names = torch_names(shapes, layout)
  check_names({name: tensor_shape(pieces) for name, pieces in names.items()}, tensors, source)
  by_path: dict[str, list[tuple[Piece, LazyArray]]] = {}
  for name, pieces in names.items():
    for piece in pieces:
      by_path.setdefault(piece.path, []).append((piece, tensors[name]))

  params = {}
  for path, shape in shapes.items():
    found = sorted(by_path[path], key=lambda item: item[0].layer or 0)
    pieces, parts = [piece for piece, _ in found], [tensor for _, tensor in found]
    dtypes = {tensor.dtype for tensor in parts}
    if len(dtypes) > 1:
      raise InputError(f'{source}: the layers of {path} are of {len(dtypes)} dtypes ({parts[0].origin}): expected one')
    if pieces[0].layer is None:
      read = lambda index, tensor=parts[0], piece=pieces[0]: _from_piece(tensor, piece, index)  # noqa: E731
    else:
      read = lambda index, tensors=parts, pieces=pieces: _stack(tensors, pieces, index)  # noqa: E731
    params[path] = LazyArray(tuple(shape), parts[0].dtype, read, parts[0].origin)
  return params


def _tensor(params: Mapping[str, LazyArray], pieces: list[Piece], index: Index) -> np.ndarray:
  first = pieces[0]
  if len(pieces) == 1 and first.torch_shape == first.shape:
    array = params[first.path]
    return array[index] if first.layer is None else array[(first.layer, *_tuple(index))]
  parts = [
    piece.transform.to_torch(params[piece.path][... if piece.layer is None else piece.layer]) for piece in pieces
  ]
  return (parts[0] if len(parts) == 1 else np.concatenate(parts))[index]


def _tuple(index: Index) -> tuple[Any, ...]:
  return index if isinstance(index, tuple) else (index,)


def tensors_from_params(params: Mapping[str, LazyArray], layout: Layout) -> dict[str, LazyArray]:
  """The inverse of `params_from_tensors`: torch tensors by name, read from our parameters when asked."""
  names = torch_names({path: array.shape for path, array in params.items()}, layout)
  tensors = {}
  for name, pieces in names.items():
    array = params[pieces[0].path]
    read = lambda index, pieces=pieces: _tensor(params, pieces, index)  # noqa: E731
    tensors[name] = LazyArray(tensor_shape(pieces), array.dtype, read, array.origin)
  return tensors


def cast(array: LazyArray, dtype: np.dtype | None) -> LazyArray:
  """The same array in another floating dtype; integers, and None, leave it as it is."""
  if dtype is None or dtype == array.dtype or not jnp.issubdtype(array.dtype, jnp.floating):
    return array
  return LazyArray(array.shape, np.dtype(dtype), lambda index: array[index].astype(dtype), array.origin)
