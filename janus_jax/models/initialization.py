"""Fresh parameters, drawn on the host leaf by leaf.

Same numbers on any mesh, device and jax version; nothing to compile (XLA takes minutes over some 150 draws of
different shapes) and never more than one leaf in memory beside the tree. The scales are those of the modules' own
initialisers: matrices fan_in ** -0.5, tables 0.02, codebook rows 1, norms 1, biases 0.
"""

import hashlib
import math
import re
from typing import Any

import flax.traverse_util
import numpy as np

from janus_jax.models.config import ComputeConfig, JanusConfig
from janus_jax.models.janus import abstract_params


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
  if path.endswith(('/bias', '/scale')):
    return 0.0
  if path.endswith('/kernel'):
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
  digest = hashlib.sha256(f'{seed}/{path}'.encode()).digest()
  draws = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], 'little')))
  values = draws.standard_normal(shape, np.float32)
  values *= np.float32(std)
  return values


def initial_params(config: JanusConfig, seed: int, dtype: str = 'float32') -> dict[str, Any]:
  """A whole fresh parameter tree of numpy arrays, for models that fit the host."""
  shapes = flax.traverse_util.flatten_dict(abstract_params(config, ComputeConfig()), sep='/')
  flat = {path: initial_value(path, leaf.shape, seed).astype(dtype) for path, leaf in shapes.items()}
  return flax.traverse_util.unflatten_dict(flat, sep='/')
