"""Janus prepared for decoding: the same weights with the layers apart, and the steps that all generation is made of.

In training the layers are one stacked array that a loop slices. A decode step reads every weight once, so slicing would
cost as much as the step itself; here each layer has its own arrays, and its kernels lie input first
(`models.layers.input_first`).
"""

from typing import Any

import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp

from janus_jax.inference.cache import KVCache
from janus_jax.models.config import ComputeConfig, JanusConfig
from janus_jax.models.janus import Janus
from janus_jax.models.layers import RMSNorm, input_first, rotary_tables
from janus_jax.models.llama import LlamaBlock

Params = dict[str, Any]


@flax.struct.dataclass
class Decoder:
  """Weights for decoding.

  Attributes:
    layers: parameters of each decoder layer, kernels input first.
    rest: the model's parameter tree without the stacked layers. Both heads' kernels lie input first too.
    config: architecture.
    compute: dtypes.
  """

  layers: tuple[Params, ...]
  rest: Params
  config: JanusConfig = flax.struct.field(pytree_node=False)
  compute: ComputeConfig = flax.struct.field(pytree_node=False)

  def method(self, name: str, *args) -> Any:
    """Calls a method of `models.janus.Janus` that does not run the decoder's layers."""
    return Janus(self.config, self.compute).apply({'params': self.rest}, *args, method=name)

  def hidden(self, x: jax.Array, positions: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
    """`Janus.hidden` with a cache: [B, T, D] at int32[B, T] -> [B, T, D], and the cache T positions further."""
    llama = self.config.language_model
    x = x.astype(jnp.dtype(self.compute.dtype))
    rotary = rotary_tables(positions, llama.head_dim, llama.rope_theta, x.dtype)
    steps = x.shape[1]
    for i, weights in enumerate(self.layers):
      (x, cache), _ = LlamaBlock(llama, self.compute).apply({'params': weights}, (x, cache), i, rotary, None)
    norm = RMSNorm(llama.norm_eps, self.compute)
    return norm.apply({'params': self.rest['language_model']['final_norm']}, x), cache.advance(steps)


def _turned(params: Params) -> Params:
  """The same tree with the kernel of each `Linear` replaced by its `input_first` form."""
  flat = {}
  for path, leaf in flax.traverse_util.flatten_dict(params).items():
    if path[-1] == 'kernel':
      # Attention's output is the one product that contracts two axes, [N, H].
      path, leaf = (*path[:-1], 'input_first'), input_first(leaf, 2 if path[-2:-1] == ('o',) else 1)
    flat[path] = leaf
  return flax.traverse_util.unflatten_dict(flat)


def make_decoder(config: JanusConfig, compute: ComputeConfig, params: Params) -> Decoder:
  """Prepares a parameter tree (as `janus_jax.load` gives it): stacked layers become arrays of their own."""
  language_model = dict(params['language_model'])
  stacked = language_model.pop('layers')
  layers = tuple(_turned(jax.tree.map(lambda leaf, i=i: leaf[i], stacked)) for i in range(config.language_model.depth))
  language_model['lm_head'] = _turned(language_model['lm_head'])
  rest = {**params, 'language_model': language_model, 'gen_head': _turned(params['gen_head'])}
  return Decoder(layers, rest, config, compute)


def prompt_positions(mask: jax.Array) -> jax.Array:
  """int32[B, T]: 0, 1, 2 ... from the first real token of each left-padded row (0 on the padding too)."""
  return jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
