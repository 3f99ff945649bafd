"""The key/value cache: an explicit pytree, allocated once, written in place, read only as far as it is filled.

One pair of buffers per layer, [B, K, S, H]: the keys that one kv head reads lie together. Left-padded prompts of
unequal length share a batch; which slots hold a real token is in `filled`.
"""

import flax.struct
import jax
import jax.numpy as jnp

from janus_jax.models.config import LlamaConfig


@flax.struct.dataclass
class Layer:
  """Keys and values of one layer, [B, K, S, H] each."""

  k: jax.Array
  v: jax.Array


@flax.struct.dataclass
class Readable:
  """What the queries of one layer attend to.

  Attributes:
    k: [B, K, S', H], the first S' slots.
    v: [B, K, S', H].
    mask: bool[B, T, S'], which slot each query reads.
  """

  k: jax.Array
  v: jax.Array
  mask: jax.Array

  def attend(self, q: jax.Array) -> jax.Array:
    """[B, T, N, H] -> [B, T, N, H]; softmax in float32."""
    B, T, N, H = q.shape
    K = self.k.shape[1]
    grouped = q.reshape(B, T, K, N // K, H)
    scores = jnp.einsum('btkgh,bksh->bkgts', grouped, self.k, preferred_element_type=jnp.float32) * H**-0.5
    scores = jnp.where(self.mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(self.v.dtype)
    return jnp.einsum('bkgts,bksh->btkgh', weights, self.v).reshape(B, T, N, H)


@flax.struct.dataclass
class KVCache:
  """Implements `models.attention.KeyValueStore`.

  Attributes:
    layers: one entry per decoder layer.
    filled: bool[B, S], slots that hold a real token (left padding does not).
    position: int32 scalar, the next slot to write; the same for every row.
    read_length: how many leading slots attention reads. Static, so it bounds the memory traffic of a decode step; must
      cover `position` plus what is written.
  """

  layers: tuple[Layer, ...]
  filled: jax.Array
  position: jax.Array
  read_length: int = flax.struct.field(pytree_node=False)

  def extend(self, layer: int, k: jax.Array, v: jax.Array) -> tuple['KVCache', Readable]:
    """Writes k, v [B, T, K, H] of one layer at `position`; the caller advances once all layers have written."""
    start = (0, 0, self.position, 0)
    old = self.layers[layer]
    new = Layer(
      jax.lax.dynamic_update_slice(old.k, k.swapaxes(1, 2).astype(old.k.dtype), start),
      jax.lax.dynamic_update_slice(old.v, v.swapaxes(1, 2).astype(old.v.dtype), start),
    )
    index = self.position + jnp.arange(k.shape[1])
    slots = jnp.arange(self.read_length)
    mask = self.filled[:, None, : self.read_length] & (slots <= index[:, None])
    # A padding query reads nothing real; its own slot keeps the softmax finite, and nobody reads the result.
    mask |= slots == index[:, None]
    layers = (*self.layers[:layer], new, *self.layers[layer + 1 :])
    return self.replace(layers=layers), Readable(new.k[:, :, : self.read_length], new.v[:, :, : self.read_length], mask)

  def advance(self, steps: int) -> 'KVCache':
    """After all layers have written `steps` positions."""
    return self.replace(position=self.position + steps)

  def reading(self, length: int) -> 'KVCache':
    """The same cache, read up to `length` slots."""
    return self.replace(read_length=length)


def init_cache(config: LlamaConfig, prompt_mask: jax.Array, slots: int, dtype: jnp.dtype) -> KVCache:
  """An empty cache.

  Args:
    config: of the decoder.
    prompt_mask: bool[B, T], False on left padding. Slots after the prompt will hold real tokens.
    slots: S, prompt and everything generated after it.
    dtype: of keys and values.
  """
  B, T = prompt_mask.shape
  shape = (B, config.num_kv_heads, slots, config.head_dim)
  # Zeros, not empty: uninitialised memory may hold NaN, which a masked weight of 0 does not remove.
  layers = tuple(Layer(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.depth))
  filled = jnp.concatenate([prompt_mask, jnp.ones((B, slots - T), bool)], axis=1)
  return KVCache(layers, filled, jnp.zeros((), jnp.int32), read_length=T)
