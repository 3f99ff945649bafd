"""Janus prepared for decoding: the same weights with the layers apart, and the steps that all generation is made of.

In training the layers are one stacked array that a loop slices. A decode step reads every weight once, so slicing would
cost as much as the step itself; here each layer has its own arrays, and its kernels are laid out input first
(`models.layers.input_first`) or rounded to int8 (`models.quantization`), those of one input joined
(`models.layers.linears`).

A decode step takes as long as reading the weights does, so int8 pays in time what it saves in bytes: half of bfloat16.
What it costs in accuracy, `benchmark --weights=int8` measures.
"""

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from janus_jax.errors import InputError
from janus_jax.inference.cache import KVCache, init_cache
from janus_jax.inference.decode_attention import can_read, whole_parts
from janus_jax.models.attention_choice import GPUS, choose, of_text, platform_of
from janus_jax.models.config import ComputeConfig, JanusConfig
from janus_jax.models.janus import Janus
from janus_jax.models.layers import RMSNorm, input_first, joined_name, rotary_tables
from janus_jax.models.llama import LlamaBlock
from janus_jax.models.lora import is_adapter
from janus_jax.models.quantization import quantize

Params = dict[str, Any]
# What the kernels of the decoder's layers and of both heads are stored in: 'full' as they come; 'int8' rounded, for
# products in the compute dtype; 'int8_products' rounded like their inputs, for products of integers, which CPUs need
# to be faster and which cost more accuracy.
WEIGHTS = ('full', 'int8', 'int8_products')

# XLA's GPU compiler joins products of one input (of q, k and v, gate and up) where their weights are below 32 MB, as
# the 1B's are. For that it copies all of these weights in each step, which takes longer than the step itself.
COMPILER_OPTIONS = {'xla_gpu_dot_merger_threshold_mb': 0}

# Module of a layer, and those of its kernels that multiply the same input.
JOINED = (('attn', 'q', 'k', 'v'), ('mlp', 'gate', 'up'))


@dataclasses.dataclass(frozen=True)
class Spread:
  """How rows are split over a mesh of devices.

  Attributes:
    mesh: that the parameters lie on.
    computed: axes over which rows are computed apart.
    stored: axes over which their keys and values are. Where an axis splits the weights, each device multiplies all rows
      with its part of these: fewer bytes are moved than if it were given the others' parts.
  """

  mesh: jax.sharding.Mesh
  computed: tuple[str, ...]
  stored: tuple[str, ...]

  def split(self, x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """x with its first axis over these axes of the mesh, where they divide it, and else as it is."""
    if x.shape[0] % math.prod(self.mesh.shape[axis] for axis in axes):
      return x
    spec = PartitionSpec(axes, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1))
    return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))


@flax.struct.dataclass
class Decoder:
  """Weights for decoding.

  Attributes:
    layers: parameters of each decoder layer, kernels prepared.
    rest: the model's parameter tree without the stacked layers. Both heads' kernels are prepared too.
    config: architecture.
    compute: dtypes and kernels.
    cache_dtype: what keys and values are stored in, one of `cache.CACHE_DTYPES`.
    spread: splits of rows over devices; None leaves them to XLA.
  """

  layers: tuple[Params, ...]
  rest: Params
  config: JanusConfig = flax.struct.field(pytree_node=False)
  compute: ComputeConfig = flax.struct.field(pytree_node=False)
  cache_dtype: str = flax.struct.field(pytree_node=False)
  spread: Spread | None = flax.struct.field(pytree_node=False, default=None)

  def method(self, name: str, *args) -> Any:
    """Calls a method of `models.janus.Janus` that does not run the decoder's layers."""
    with self._precision():
      return Janus(self.config, self.compute).apply({'params': self.rest}, *args, method=name)

  def empty_cache(self, prompt_masks: Sequence[jax.Array], rows: int, blocks: Sequence[int]) -> KVCache:
    """`cache.init_cache` for this decoder; where attention is 'auto', with the device's kernels.

    Where a decode step's kernel reads only the slots that are filled, `blocks` become one.
    """
    llama, platform, auto = self.config.language_model, platform_of(jax.devices()[0]), self.compute.attention == 'auto'
    shape = of_text(self.config, prompt_masks[0].shape[1], self.compute.dtype, trained=False)
    kernel, step_kernel = choose(self.compute.attention, platform, shape), 'xla'
    whole = [whole_parts(sum(blocks))]
    sizes = [*(mask.shape[1] for mask in prompt_masks), *whole]
    if auto and platform in GPUS and self.cache_dtype != 'int8' and blocks and can_read(sizes, llama.head_dim):
      blocks, step_kernel = whole, 'pallas'
    keys_axis = 3 if platform == 'cpu' else 2  # So a pass over 8 codes of 8 rows takes 62 ms instead of 68.
    cache = init_cache(llama, prompt_masks, rows, blocks, self.cache_dtype, (kernel, step_kernel), keys_axis)
    if self.spread is None:
      return cache
    return cache.replace(layers=jax.tree.map(lambda x: self.spread.split(x, self.spread.stored), cache.layers))

  def hidden(self, x: jax.Array, positions: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
    """`Janus.hidden` with a cache: [B, T, D] at int32[B, T] -> [B, T, D], and the cache T positions further."""
    llama = self.config.language_model
    x = x.astype(jnp.dtype(self.compute.dtype))
    if self.spread is not None:
      x = self.spread.split(x, self.spread.computed)
    rotary = rotary_tables(positions, llama.head_dim, llama.rope_theta, x.dtype)
    with self._precision():
      for i, weights in enumerate(self.layers):
        (x, cache), _ = LlamaBlock(llama, self.compute).apply({'params': weights}, (x, cache), i, rotary, None)
    norm = RMSNorm(llama.norm_eps, self.compute)
    x = norm.apply({'params': self.rest['language_model']['final_norm']}, x)
    return x, cache.replace(position=cache.position + x.shape[1])

  def whole(self, x: jax.Array) -> jax.Array:
    """x on every device, so that each process can read it."""
    if self.spread is None:
      return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(self.spread.mesh, PartitionSpec()))

  def _precision(self) -> contextlib.AbstractContextManager:
    """Accelerators round the inputs of float32 products unless told not to."""
    exact = self.compute.dtype == 'float32'
    return jax.default_matmul_precision('highest') if exact else contextlib.nullcontext()


def is_spread(params: Params) -> bool:
  """Says whether parameters lie on several devices."""
  return any(isinstance(leaf, jax.Array) and len(leaf.devices()) > 1 for leaf in jax.tree.leaves(params))


def _prepared(params: Params, rounded: bool, joined: bool = False) -> Params:
  """A tree with `input_first`, or `int8` and `scale`, for each kernel. Where `joined`, those of JOINED become one.

  Kernels that are in int8 already, and factors of LoRA, stay as they are.
  """
  flat = {}
  for path, leaf in flax.traverse_util.flatten_dict(params).items():
    if path[-1] != 'kernel':
      flat[path] = leaf
      continue
    # Attention's output is the one product that contracts two axes, [N, H].
    matrix = input_first(leaf, 2 if path[-2:-1] == ('o',) else 1)
    if rounded:
      flat[*path[:-1], 'int8'], flat[*path[:-1], 'scale'] = quantize(matrix.T)
    else:
      flat[*path[:-1], 'input_first'] = matrix
  for parent, *names in JOINED if joined else ():
    for leaf, axis in (('int8', 0), ('scale', 0)) if rounded else (('input_first', 1),):
      parts = [flat.pop((parent, name, leaf)) for name in names]
      flat[parent, joined_name(names), leaf] = jnp.concatenate(parts, axis)
  return flax.traverse_util.unflatten_dict(flat)


def make_decoder(
  config: JanusConfig,
  compute: ComputeConfig,
  params: Params,
  weights: str = 'full',
  cache_dtype: str | None = None,
  spread: Spread | None = None,
) -> Decoder:
  """Prepares a parameter tree (as `janus_jax.load` gives it): stacked layers become arrays of their own.

  Kernels are stored as `weights` says, one of WEIGHTS (InputError for another name); keys and values in `cache_dtype`,
  one of `cache.CACHE_DTYPES`, None: as they are computed.
  """
  if weights not in WEIGHTS:
    raise InputError(f'weights are {weights!r}: expected one of {", ".join(WEIGHTS)}')
  rounded, depth = weights != 'full', config.language_model.depth
  language_model = dict(params['language_model'])
  stacked = language_model.pop('layers')
  # Joined, kernels that are split along their features would have to move in each step; factors have one kernel each.
  joined = not is_spread(params) and not any(map(is_adapter, flax.traverse_util.flatten_dict(stacked, sep='/')))
  layers = tuple(_prepared(jax.tree.map(lambda leaf, i=i: leaf[i], stacked), rounded, joined) for i in range(depth))
  language_model['lm_head'] = _prepared(language_model['lm_head'], rounded)
  rest = {**params, 'language_model': language_model, 'gen_head': _prepared(params['gen_head'], rounded)}
  compute = dataclasses.replace(compute, integer_products=weights == 'int8_products')
  return Decoder(layers, rest, config, compute, cache_dtype or compute.dtype, spread)


def prompt_positions(mask: jax.Array) -> jax.Array:
  """int32[B, T]: 0, 1, 2 ... from the first real token of each left-padded row (0 on the padding too)."""
  return jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
