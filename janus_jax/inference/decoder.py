"""Janus prepared for decoding: the same weights with the layers apart, and the steps that all generation is made of.

In training the layers are one stacked array that a loop slices. A decode step reads every weight once, so slicing would
cost as much as the step itself; here each layer has its own arrays.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from janus_jax.inference.cache import KVCache
from janus_jax.models.config import ComputeConfig, JanusConfig
from janus_jax.models.janus import Janus
from janus_jax.models.layers import RMSNorm, rotary_tables
from janus_jax.models.llama import LlamaBlock

Params = dict[str, Any]


@flax.struct.dataclass
class Decoder:
  """Weights for decoding.

  Attributes:
    layers: parameters of each decoder layer.
    rest: the model's parameter tree without the stacked layers.
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


def make_decoder(config: JanusConfig, compute: ComputeConfig, params: Params) -> Decoder:
  """Splits the stacked layers of a parameter tree (as `janus_jax.load` gives it) into arrays of their own."""
  language_model = dict(params['language_model'])
  stacked = language_model.pop('layers')
  layers = tuple(jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(config.language_model.depth))
  return Decoder(layers, {**params, 'language_model': language_model}, config, compute)


def prompt_positions(mask: jax.Array) -> jax.Array:
  """int32[B, T]: 0, 1, 2 ... from the first real token of each left-padded row (0 on the padding too)."""
  return jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
