"""Applies the table of `mapping.py` to lazy arrays: torch tensors <-> our parameter tree, nothing read yet."""

import functools
from collections.abc import Mapping

import flax.traverse_util
import numpy as np

from janus_jax.conversion.lazy import Index, LazyArray, index_tuple, read_layers
from janus_jax.conversion.mapping import SAME, Layout, Piece, tensor_shape, torch_names
from janus_jax.errors import InputError
from janus_jax.models.config import ComputeConfig, JanusConfig
from janus_jax.models.janus import abstract_params
from janus_jax.models.lora import NO_LORA, LoraConfig, adapted_shapes

MAX_NAMES = 4  # An error message names this many offenders and counts the rest.


@functools.cache  # Tracing the whole model takes a second; a program asks about the same few configs again and again.
def _parameter_shapes(config: JanusConfig) -> tuple[tuple[str, tuple[int, ...]], ...]:
  flat = flax.traverse_util.flatten_dict(abstract_params(config, ComputeConfig()), sep='/')
  return tuple((path, leaf.shape) for path, leaf in flat.items())


def parameter_shapes(config: JanusConfig, lora: LoraConfig = NO_LORA) -> dict[str, tuple[int, ...]]:
  """Path -> shape of every parameter of a model, with the factors of LoRA where there are any."""
  return adapted_shapes(dict(_parameter_shapes(config)), lora)


def check_names(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, LazyArray], source: str) -> None:
  """Raises InputError unless exactly the expected names are there, in the expected shapes."""
  offenders = {
    'missing': [name for name in expected if name not in found],
    'unexpected': [name for name in found if name not in expected],
    'of another shape': [
      f'{name} is {list(found[name].shape)} not {list(shape)}'
      for name, shape in expected.items()
      if name in found and tuple(found[name].shape) != tuple(shape)
    ],
  }
  problems = []
  for problem, names in offenders.items():
    more = f' and {len(names) - MAX_NAMES} more' if len(names) > MAX_NAMES else ''
    if names:
      problems.append(f'{len(names)} {problem}: {", ".join(names[:MAX_NAMES])}{more}')
  if problems:
    raise InputError(f'{source}: the tensors are not those of a Janus with this config: {"; ".join(problems)}')


def _from_piece(tensor: LazyArray, piece: Piece, index: Index) -> np.ndarray:
  rows = slice(None)
  if piece.third is not None:
    size = piece.torch_shape[0]
    rows = slice(piece.third * size, (piece.third + 1) * size)
  elif piece.transform is SAME:
    return tensor[index]  # Reads only what is asked for.
  return piece.transform.from_torch(tensor[rows], piece.shape)[index]


def _from_layers(parts: list[tuple[LazyArray, Piece]], index: Index) -> np.ndarray:
  """A part of a stacked parameter [L, ...], each layer of which is (in) a tensor of its own."""
  return read_layers(lambda layer, rest: _from_piece(*parts[layer], rest), len(parts), index)


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
  sources: dict[str, list[tuple[LazyArray, Piece]]] = {path: [] for path in shapes}
  for name, pieces in names.items():  # Layers are in order.
    for piece in pieces:
      sources[piece.path].append((tensors[name], piece))
  params = {}
  for path, parts in sources.items():
    first, piece = parts[0]
    dtypes = {tensor.dtype for tensor, _ in parts}
    if len(dtypes) > 1:
      raise InputError(f'{source}: the layers of {path} are of {len(dtypes)} dtypes ({first.origin}): expected one')
    stacked = piece.layer is not None
    read = functools.partial(_from_layers, parts) if stacked else functools.partial(_from_piece, first, piece)
    params[path] = LazyArray(tuple(shapes[path]), first.dtype, read, first.origin)
  return params


def _tensor(params: Mapping[str, LazyArray], pieces: list[Piece], index: Index) -> np.ndarray:
  first = pieces[0]
  if len(pieces) == 1 and first.transform is SAME:
    array = params[first.path]
    return array[index] if first.layer is None else array[(first.layer, *index_tuple(index))]
  parts = [
    piece.transform.to_torch(params[piece.path][... if piece.layer is None else piece.layer]) for piece in pieces
  ]
  return (parts[0] if len(parts) == 1 else np.concatenate(parts))[index]


def tensors_from_params(params: Mapping[str, LazyArray], layout: Layout) -> dict[str, LazyArray]:
  """The inverse of `params_from_tensors`: torch tensors by name, read from our parameters when asked."""
  tensors = {}
  for name, pieces in torch_names({path: array.shape for path, array in params.items()}, layout).items():
    array = params[pieces[0].path]
    read = functools.partial(_tensor, params, pieces)
    tensors[name] = LazyArray(tensor_shape(pieces), array.dtype, read, array.origin)
  return tensors
