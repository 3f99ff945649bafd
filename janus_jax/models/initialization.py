"""Fresh parameters, sampled leaf by leaf: on the host to train, on the devices to measure.

On the host they are the same numbers on any mesh, device and jax version, and nothing is compiled. On the devices the
7B's take seconds instead of minutes. Either way never more than one leaf is in memory beside the tree. The scales are
those of the modules' own initialisers: matrices fan_in ** -0.5, tables 0.02, codebook rows 1, norms 1, biases 0.
"""

import functools
import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.models.config import ComputeConfig, JanusConfig
from janus_jax.models.janus import abstract_params

INT8_STD = 40.0  # Of values that stand for a kernel in int8, on devices.


def _fan_in(path: str, shape: tuple[int, ...]) -> int:
  """Product of the contracted axes of a kernel."""
  if re.search(r'/(conv\w*|downsample|upsample)/kernel$', path) and len(shape) == 4:
    return math.prod(shape[:3])  # [3, 3, in, out]
  if path.endswith('/attn/o/kernel'):
    return math.prod(shape[-2:])  # [..., D, N, H]
  if path.endswith('/patch_embed/kernel'):
    return math.prod(shape[-3:])  # [D, 3, p, p]
  return shape[-1]  # [..., out, in]


def initial_std(path: str, shape: tuple[int, ...]) -> float:
  """Standard deviation of a fresh parameter; 0 for a constant one."""
  if path.endswith(('/bias', '/scale', '/lora_scale', '/lora_b')):
    return 0.0
  if path.endswith('/int8'):
    return INT8_STD
  if path.endswith(('/kernel', '/lora_a')):
    return _fan_in(path, shape) ** -0.5
  if path.endswith('/pos_embed'):
    return shape[-1] ** -0.5
  if path.endswith('/codebook'):
    return 1.0
  if path.endswith('/table'):
    return 0.02
  raise ValueError(f'no initial scale is known for parameter {path}')


def initial_value(path: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
  """A fresh parameter, float32; depends on nothing but the arguments."""
  std = initial_std(path, shape)
  if std == 0.0:
    return np.full(shape, 1.0 if path.endswith('/scale') else 0.0, np.float32)
  values = np.random.Generator(np.random.Philox(key=_key(path, seed))).standard_normal(shape, np.float32)
  values *= np.float32(std)
  return values


def _key(path: str, seed: int) -> int:
  """128 bits."""
  return int.from_bytes(hashlib.sha256(f'{seed}/{path}'.encode()).digest()[:16], 'little')


def initial_params(config: JanusConfig, seed: int, dtype: str = 'float32') -> dict[str, Any]:
  """A whole fresh parameter tree of numpy arrays, for models that fit the host."""
  shapes = flax.traverse_util.flatten_dict(abstract_params(config, ComputeConfig()), sep='/')
  flat = {path: initial_value(path, leaf.shape, seed).astype(dtype) for path, leaf in shapes.items()}
  return flax.traverse_util.unflatten_dict(flat, sep='/')


def sample_on_devices(
  shapes: Mapping[str, tuple[int, ...]],
  seed: int,
  dtypes: Mapping[str, str],
  shardings: Mapping[str, jax.sharding.Sharding],
) -> dict[str, Any]:
  """A whole fresh parameter tree where it is to lie; other numbers than `initial_params`, and on each kind of device.

  Args:
    shapes: path -> shape of each parameter.
    seed: the same seed gives the same numbers on one kind of device.
    dtypes: path -> dtype of each parameter.
    shardings: path -> sharding of each parameter.
  """
  flat = {}
  for path, shape in shapes.items():
    sample = _sampler(shape, dtypes[path], shardings[path])
    key = np.frombuffer(_key(path, seed).to_bytes(16, 'little'), np.uint32)
    mean, rounded = float(path.endswith('scale')), shapes.get(f'{path.removesuffix("scale")}int8')
    if rounded:  # Then the kernel has about the scale of a fresh one.
      mean = rounded[-1] ** -0.5 / INT8_STD
    flat[path] = sample(key, mean, initial_std(path, shape))
  return flax.traverse_util.unflatten_dict(flat, sep='/')


@functools.cache
def _sampler(shape: tuple[int, ...], dtype: str, sharding: jax.sharding.Sharding) -> Any:
  """The compiled (key uint32[4], mean, standard deviation) -> array; leaves that are alike share it."""

  def sample(key: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    # XLA's own generator: one instruction, whatever the size.
    computed = jnp.float32 if dtype == 'int8' else dtype
    values = jax.random.normal(jax.random.wrap_key_data(key, impl='rbg'), shape, computed)
    return (mean.astype(computed) + values * std.astype(computed)).astype(dtype)

  return jax.jit(sample, out_shardings=sharding)
