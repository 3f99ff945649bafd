"""Adapters: LoRA factors, and parts trained in full, over a base that stays where it is (`peft_files.py` has files)."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np

from janus_jax.conversion.buckets import is_url
from janus_jax.conversion.config_section import read_json
from janus_jax.conversion.lazy import Index, LazyArray, from_numpy, index_tuple, read_layers
from janus_jax.conversion.translate import check_names
from janus_jax.conversion.workdir import split_ema
from janus_jax.data.whole_files import write_json
from janus_jax.errors import InputError
from janus_jax.models import lora
from janus_jax.models.files import ADAPTER_FILE
from janus_jax.models.lora import FACTORS, SCALE, LoraConfig

Arrays = Mapping[str, LazyArray]  # Parameter path -> array.


@dataclasses.dataclass(frozen=True)
class Adapter:
  """Parts of an adapter, and the base that it is for.

  Attributes:
    base: path or name of the base, absolute if it is local.
    base_params: the base's parameters.
    factors: paths of `models.lora`: A, B and scale of each module that has them.
    full: parameters in place of the base's.
  """

  base: str
  base_params: Arrays
  factors: Arrays
  full: Arrays

  @property
  def params(self) -> dict[str, LazyArray]:
    """The whole tree with the factors merged into their kernels, as they are read."""
    merged = {**self.base_params, **self.full}
    for path in self.factors:
      if path.endswith(FACTORS[0]):
        module = path.rpartition('/')[0]
        merged[f'{module}/kernel'] = _merged(module, merged[f'{module}/kernel'], self.factors)
    return merged


@dataclasses.dataclass(frozen=True)
class _Merged(LazyArray):
  """A kernel plus the product of its factors, in float32, rounded to `dtype` once."""

  cast: Callable[[np.dtype], LazyArray] = None

  def astype(self, dtype: np.dtype) -> LazyArray:
    return self.cast(dtype)


def _merged(module: str, kernel: LazyArray, factors: Arrays, dtype: np.dtype | None = None) -> LazyArray:
  a, b, scale = (factors[f'{module}/{name}'] for name in (*FACTORS, SCALE))
  layers, *_ = lora.matrix_shape(module, kernel.shape)
  dtype, shape = dtype or kernel.dtype, kernel.shape[len(layers) :]

  def one(layer: tuple[int, ...], rest: Index) -> np.ndarray:
    parts = [np.asarray(part[layer], np.float32) for part in (a, b, scale)]
    change = (parts[2] * (parts[1] @ parts[0])).reshape(shape)[rest]
    return (kernel[(*layer, *rest)].astype(np.float32) + change).astype(dtype)

  def read(index: Index) -> np.ndarray:
    if not layers:
      return one((), index_tuple(index))
    return read_layers(lambda layer, rest: one((layer,), rest), layers[0], index)

  return _Merged(kernel.shape, dtype, read, kernel.origin, lambda other: _merged(module, kernel, factors, other))


def split_base(path: str | os.PathLike) -> tuple[str | None, str]:
  """('BASE', 'ADAPTER') of BASE+ADAPTER; (None, path) of any other path, and of one that has a plus and is there.

  A plus in a URL is a part of it unless a URL or an existing directory follows.
  """
  path = os.fspath(path)
  base, _, adapter = path.rpartition('+')
  if not base or not adapter or _exists(path) or (is_url(base) and not is_url(adapter) and not _exists(adapter)):
    return None, path
  return base, adapter


def _exists(path: str) -> bool:
  return os.path.lexists(os.path.expanduser(split_ema(path)[0]))


def fingerprint(shapes: lora.Shapes, params: Arrays) -> str:
  """Tells bases apart: a digest of all shapes and of values of the decoder and the image head, in bfloat16."""
  found = hashlib.sha256(json.dumps(sorted((path, list(shape)) for path, shape in shapes.items())).encode())
  pieces = {'language_model/final_norm/scale': ..., 'language_model/layers/attn_norm/scale': ...}
  pieces |= {'language_model/layers/mlp/down/kernel': (0, slice(4)), 'gen_head/fc1/kernel': slice(4)}
  for path, index in pieces.items():
    found.update(np.ascontiguousarray(params[path][index].astype(ml_dtypes.bfloat16)).tobytes())
  return found.hexdigest()[:32]


def write_base(directory: str, base: str, digest: str) -> None:
  """Writes which base an adapter is for: its path or name, and its `fingerprint`."""
  write_json(os.path.join(directory, ADAPTER_FILE), {'base': base, 'fingerprint': digest})


def read_base(directory: str) -> dict[str, str]:
  """Reads what `write_base` wrote; {} where it wrote nothing."""
  path = os.path.join(directory, ADAPTER_FILE)
  return read_json(path) if os.path.exists(path) else {}


def check_base(directory: str, shapes: lora.Shapes, params: Arrays, base: str) -> None:
  """Raises InputError where an adapter was trained on another base; one of other programs does not say."""
  expected = read_base(directory).get('fingerprint')
  if expected and expected != fingerprint(shapes, params):
    raise InputError(f'{directory}: an adapter for another base than {base}: expected the model that it was trained on')


def factors_of(arrays: Arrays, shapes: lora.Shapes, source: str, base: str) -> tuple[Arrays, Arrays]:
  """Splits arrays by path into factors and parameters in full.

  Args:
    arrays: what an adapter holds.
    shapes: path -> shape of each parameter of the base.
    source: adapter, for messages.
    base: path of the base, for messages.

  Raises:
    InputError: they do not fit the base.
  """
  factors = {path: array for path, array in arrays.items() if lora.is_adapter(path)}
  full = {path: array for path, array in arrays.items() if path not in factors}
  expected = {path: shapes[path] for path in full if path in shapes}
  for module in {path.rpartition('/')[0] for path in factors}:
    rank = factors[f'{module}/{FACTORS[0]}'].shape[-2] if f'{module}/{FACTORS[0]}' in factors else 0
    if f'{module}/kernel' in shapes:
      expected |= lora.factor_shapes(module, shapes[f'{module}/kernel'], rank)
  try:
    check_names(expected, arrays, source)
  except InputError as error:
    raise InputError(f'{one_cause(error)}: expected an adapter of {base}') from None
  return factors, full


def one_cause(error: InputError) -> str:
  """The message of `check_names` with what it says of a config left out."""
  return str(error).replace('the tensors are not those of a Janus with this config', 'an adapter for another base')


def training_params(
  adapter: Adapter, shapes: lora.Shapes, config: LoraConfig, seed: int, source: str
) -> dict[str, LazyArray]:
  """The tree that a run with factors starts from: the adapter's factors, and new ones where it has none.

  Args:
    adapter: what the run begins with; one without factors is a base alone.
    shapes: path -> shape of each parameter of the base.
    config: factors of the run, with a rank.
    seed: seed of new factors.
    source: path of the adapter, for messages.

  Raises:
    InputError: the adapter has another rank, alpha or other targets.
  """
  found = {**adapter.base_params, **adapter.full, **adapter.factors}
  targets = lora.target_modules(shapes, config.targets)
  _check_same(adapter.factors, targets, config, source)
  for module in targets:
    kernel = found[f'{module}/kernel']
    if f'{module}/{FACTORS[0]}' not in found:
      new = lora.new_factors(module, kernel.shape, config, seed)
      found |= {path: from_numpy(value, 'new') for path, value in new.items()}
    layers, *sizes = lora.matrix_shape(module, kernel.shape)
    if config.base_dtype == 'int8' and layers:
      del found[f'{module}/kernel']
      found |= _rounded(module, kernel, (*layers, *sizes))
    elif config.base_dtype and layers:
      found[f'{module}/kernel'] = kernel.astype(np.dtype(config.base_dtype))
  return found


def stored_dtypes(dtypes: Mapping[str, str], shapes: lora.Shapes, config: LoraConfig) -> dict[str, str]:
  """Path -> name of the dtype in `training_params`, by those of the base."""
  found = {path: dtypes.get(path, 'float32') for path in lora.adapted_shapes(shapes, config)}
  for path in found:
    module, _, name = path.rpartition('/')
    if name == 'int8':
      found[path] = 'int8'
    elif name == 'kernel' and '/layers/' in path and config.base_dtype and f'{module}/{FACTORS[0]}' in found:
      found[path] = config.base_dtype
  return found


def _check_same(factors: Arrays, targets: list[str], config: LoraConfig, source: str) -> None:
  for path, array in factors.items():
    module, _, name = path.rpartition('/')
    if module not in targets:
      raise InputError(f'{source}: has factors of {module}: expected lora.targets that match it too')
    if name == FACTORS[0] and array.shape[-2] != config.rank:
      raise InputError(f'lora.rank is {config.rank}: expected {array.shape[-2]}, the rank of {source}')
    if name == SCALE and not np.allclose(array[...], config.scale):
      alpha = float(np.max(array[...])) * config.rank
      raise InputError(f'lora.alpha is {config.alpha:g}: expected {alpha:g}, that of {source}')


def _rounded(module: str, kernel: LazyArray, shape: tuple[int, ...]) -> dict[str, LazyArray]:
  """A kernel [L, F, D] as `models.quantization.quantize` rounds it, a layer at a time."""

  def read(is_scale: bool, index: Index) -> np.ndarray:
    def one(layer: int, rest: Index) -> np.ndarray:
      return _quantized(kernel[layer].reshape(shape[1:]))[is_scale][rest]

    return read_layers(one, shape[0], index)

  def lazy(name: str, sizes: tuple[int, ...], dtype: type) -> LazyArray:
    return LazyArray(sizes, np.dtype(dtype), lambda index: read(name == 'scale', index), kernel.origin)

  return {f'{module}/int8': lazy('int8', shape, np.int8), f'{module}/scale': lazy('scale', shape[:2], np.float32)}


def _quantized(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """`models.quantization.quantize` in numpy."""
  matrix = matrix.astype(np.float32)
  scale = np.abs(matrix).max(-1) / np.float32(127)
  return np.rint(matrix / np.where(scale == 0, np.float32(1), scale)[:, None]).astype(np.int8), scale
