"""The key/value cache: an explicit pytree, allocated once, written in place, read only as far as it is filled.

One pair of buffers per layer, [B, K, S, H]: the keys that one kv head reads lie together. Left-padded prompts of
unequal length share a batch; which slots hold a real token is in `filled`.

An int8 cache has about half the bytes of a bfloat16 one. Its scales are applied to scores and weights, not to keys and
values, so nothing stands between the stored bytes and the matrix products but a change of type, which is the compiler's
to fuse. XLA's CPU backend does not: there int8 saves memory and costs time.
"""

import flax.struct
import jax
import jax.numpy as jnp

from janus_jax.errors import InputError
from janus_jax.models.config import LlamaConfig

CACHE_DTYPES = ('float32', 'bfloat16', 'float16', 'int8')


def quantize(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Symmetric max-abs quantisation of each vector: x is about values * scale[..., None].

  Args:
    x: [..., H].

  Returns:
    int8[..., H] in -127..127, and float32[...], 0 for a vector of zeros. Non-finite x gives a non-finite scale.
  """
  x = x.astype(jnp.float32)
  scale = jnp.max(jnp.abs(x), axis=-1) / 127
  divisor = jnp.where(scale == 0, 1, scale)[..., None]
  return jnp.round(x / divisor).astype(jnp.int8), scale


@flax.struct.dataclass
class Buffer:
  """The keys, or the values, of one layer.

  Attributes:
    values: [B, K, S, H].
    scale: float32[B, K, S] where `values` are int8; else None.
  """

  values: jax.Array
  scale: jax.Array | None

  def write(self, x: jax.Array, position: jax.Array) -> 'Buffer':
    """Puts x [B, K, T, H] at slots `position` to `position + T`."""
    if self.scale is None:
      x, scale = x.astype(self.values.dtype), None
    else:
      x, scale = quantize(x)
      scale = jax.lax.dynamic_update_slice(self.scale, scale, (0, 0, position))
    return Buffer(jax.lax.dynamic_update_slice(self.values, x, (0, 0, position, 0)), scale)

  def read(self, length: int) -> 'Buffer':
    """The first `length` slots."""
    return jax.tree.map(lambda leaf: leaf[:, :, :length], self)

  def scaled(self, x: jax.Array) -> jax.Array:
    """[B, K, G, T, S] times the scale of each slot."""
    return x if self.scale is None else x * self.scale[:, :, None, None]


@flax.struct.dataclass
class Layer:
  """Keys and values of one layer."""

  k: Buffer
  v: Buffer


@flax.struct.dataclass
class Readable:
  """What the queries of one layer attend to.

  Attributes:
    k: the first S' slots.
    v: the first S' slots.
    mask: bool[B, T, S'], which slot each query reads.
  """

  k: Buffer
  v: Buffer
  mask: jax.Array

  def attend(self, q: jax.Array) -> jax.Array:
    """[B, T, N, H] -> [B, T, N, H] in q's dtype; softmax in float32."""
    B, T, N, H = q.shape
    keys, values = self.k.values.astype(q.dtype), self.v.values.astype(q.dtype)
    K = keys.shape[1]
    grouped = q.reshape(B, T, K, N // K, H)
    scores = jnp.einsum('btkgh,bksh->bkgts', grouped, keys, preferred_element_type=jnp.float32) * H**-0.5
    scores = jnp.where(self.mask[:, None, None], self.k.scaled(scores), jnp.finfo(jnp.float32).min)
    weights = self.v.scaled(jax.nn.softmax(scores, axis=-1)).astype(q.dtype)
    return jnp.einsum('bkgts,bksh->btkgh', weights, values).reshape(B, T, N, H)


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
    old = self.layers[layer]
    new = Layer(old.k.write(k.swapaxes(1, 2), self.position), old.v.write(v.swapaxes(1, 2), self.position))
    index = self.position + jnp.arange(k.shape[1])
    slots = jnp.arange(self.read_length)
    mask = self.filled[:, None, : self.read_length] & (slots <= index[:, None])
    # A padding query reads nothing real; its own slot keeps the softmax finite, and nobody reads the result.
    mask |= slots == index[:, None]
    layers = (*self.layers[:layer], new, *self.layers[layer + 1 :])
    return self.replace(layers=layers), Readable(new.k.read(self.read_length), new.v.read(self.read_length), mask)

  def advance(self, steps: int) -> 'KVCache':
    """After all layers have written `steps` positions."""
    return self.replace(position=self.position + steps)

  def reading(self, length: int) -> 'KVCache':
    """The same cache, read up to `length` slots."""
    return self.replace(read_length=length)


def init_cache(config: LlamaConfig, prompt_mask: jax.Array, slots: int, dtype: str) -> KVCache:
  """An empty cache.

  Args:
    config: of the decoder.
    prompt_mask: bool[B, T], False on left padding. Slots after the prompt will hold real tokens.
    slots: S, prompt and everything generated after it.
    dtype: what keys and values are stored in, one of CACHE_DTYPES.
  """
  if dtype not in CACHE_DTYPES:
    raise InputError(f'dtype of the key/value cache is {dtype!r}: expected one of {", ".join(CACHE_DTYPES)}')
  B, T = prompt_mask.shape
  shape = (B, config.num_kv_heads, slots, config.head_dim)

  def buffer() -> Buffer:
    # Zeros, not empty: uninitialised memory may hold NaN, which a masked weight of 0 does not remove.
    return Buffer(jnp.zeros(shape, dtype), jnp.zeros(shape[:3], jnp.float32) if dtype == 'int8' else None)

  layers = tuple(Layer(buffer(), buffer()) for _ in range(config.depth))
  filled = jnp.concatenate([prompt_mask, jnp.ones((B, slots - T), bool)], axis=1)
  return KVCache(layers, filled, jnp.zeros((), jnp.int32), read_length=T)
