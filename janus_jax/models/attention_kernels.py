"""Attention in plain JAX: with all scores at once, and in blocks of queries and keys.

Where a sequence is split over devices, `offset` is the index of a device's first query among the keys.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

BLOCK = 128  # Queries or keys of a block: fewer do not fill a matrix product, more leave the caches of a core.
MAX_BLOCKS = 16  # Longer sequences have longer blocks. With 16, 6 % of the work is above the diagonal.
RESULTS = 'attention'  # The name of what a forward pass hands to the backward one besides its operands, for `remat`.
MASKED = -1e30  # A score that weighs nothing; the difference of two is no NaN.


class Operands(NamedTuple):
  """Queries, keys and values that one device holds, and the segments that restrict what may attend to what.

  Attributes:
    q: [B, T, N, H]; where a sequence is split over devices, a part of it.
    k: [B, S, K, H], all keys that the queries may attend to; K divides N, query head n reads kv head n // (N / K).
    v: [B, S, K, H].
    query_segments: int32[B, T], each lying together, not negative; attention stays within them. None: one.
    key_segments: int32[B, S], or None.
  """

  q: jax.Array
  k: jax.Array
  v: jax.Array
  query_segments: jax.Array | None
  key_segments: jax.Array | None


def attention_mask(
  query_segments: jax.Array, key_segments: jax.Array, *, causal: bool, offset: jax.Array | int = 0
) -> jax.Array:
  """bool[B, T, S]: same segment, and (if causal) key index <= offset + query index."""
  mask = query_segments[:, :, None] == key_segments[:, None, :]
  if causal:
    query_index = jnp.arange(query_segments.shape[1])[:, None] + offset
    mask &= jnp.arange(key_segments.shape[1])[None, :] <= query_index
  return mask


def masked_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
  """softmax(q kᵀ / sqrt(H)) v with the softmax in float32.

  Args:
    q: [B, T, N, H].
    k: [B, S, K, H], K dividing N (query head n reads kv head n // (N / K)).
    v: [B, S, K, H].
    mask: bool[B, T, S] or None for no mask.

  Returns:
    [B, T, N, H] in q's dtype.
  """
  B, T, N, H = q.shape
  K = k.shape[2]
  grouped = q.reshape(B, T, K, N // K, H)
  scores = jnp.einsum('btkgh,bskh->bkgts', grouped, k, preferred_element_type=jnp.float32) * H**-0.5
  if mask is not None:
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  return jnp.einsum('bkgts,bskh->btkgh', weights, v).reshape(B, T, N, H)


def plain_attention(operands: Operands, *, causal: bool, offset: jax.Array | int = 0) -> jax.Array:
  """`masked_attention` by segments; arguments and result as of `chunked_attention`."""
  q, k, v, query_segments, key_segments = operands
  if query_segments is None and not causal:
    return masked_attention(q, k, v, None)
  if query_segments is None:
    query_segments, key_segments = (jnp.ones(x.shape[:2], jnp.int32) for x in (q, k))
  return masked_attention(q, k, v, attention_mask(query_segments, key_segments, causal=causal, offset=offset))


def block_size(length: int) -> int:
  """Positions of a block, so that all blocks together hold `length` and few more."""
  blocks = min(max(1, -(-length // BLOCK)), MAX_BLOCKS)
  return -(-length // blocks)


def chunked_attention(operands: Operands, *, causal: bool, offset: jax.Array | int = 0) -> jax.Array:
  """`masked_attention` without holding its scores: for a block of queries and a block of keys at a time.

  Blocks of keys that come after all queries of a block are left out. The backward pass computes the scores again from
  the inputs, the output and the logarithm of each softmax's sum (FlashAttention, arXiv 2205.14135).

  Args:
    operands: what one device holds.
    causal: whether a query attends only to keys up to its own index.
    offset: index among the keys of the first query.

  Returns:
    [B, T, N, H] in q's dtype.
  """
  q, k, v, query_segments, key_segments = operands
  (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
  blocks = Blocks(block_size(T), block_size(S), causal)
  if query_segments is None:
    query_segments, key_segments = (jnp.zeros((1, size), jnp.int32) for size in (T, S))
  # What fills up the last blocks is a segment of its own.
  query_segments = _filled(query_segments, 1, blocks.queries, -1)
  key_segments = _filled(key_segments, 1, blocks.keys, -1)
  # Heads first: what is multiplied lies together.
  grouped = (q * H**-0.5).astype(q.dtype).reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
  grouped = _filled(grouped, 3, blocks.queries, 0)
  k, v = (_filled(x.swapaxes(1, 2), 2, blocks.keys, 0) for x in (k, v))
  attended = _in_blocks(blocks, Operands(grouped, k, v, query_segments, key_segments), jnp.int32(offset))
  return attended[:, :, :, :T].transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


@dataclasses.dataclass(frozen=True)
class Blocks:
  """Numbers of queries and of keys in a block of `chunked_attention`, and whether it is causal."""

  queries: int
  keys: int
  causal: bool

  def reachable(self, i: jax.Array, offset: jax.Array, length: int) -> jax.Array:
    """Number of blocks of keys that the i-th block of queries may attend to, int32; `length` keys in all."""
    if not self.causal:
      return jnp.int32(length // self.keys)
    last = offset + (i + 1) * self.queries - 1
    return jnp.minimum(last // self.keys + 1, length // self.keys)

  def mask(self, query_segments: jax.Array, key_segments: jax.Array, i, j, offset: jax.Array) -> jax.Array:
    """bool[B, 1, 1, t, s] for the i-th block of queries and the j-th of keys."""
    segments = _block(query_segments, i, self.queries, 1), _block(key_segments, j, self.keys, 1)
    between = offset + i * self.queries - j * self.keys
    return attention_mask(*segments, causal=self.causal, offset=between)[:, None, None]


# Below: q [B, K, G, T, H] with the scale in it, k and v [B, K, S, H], lengths multiples of the blocks.


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_blocks(blocks: Blocks, operands: Operands, offset: jax.Array) -> jax.Array:
  return _forward(blocks, operands, offset)[0]


def _forward(blocks, operands, offset):
  q, k, v, query_segments, key_segments = operands
  B, K, G, T, H = q.shape

  def of_queries(i):
    part = _block(q, i, blocks.queries, 3)

    def add_keys(j, carry):
      largest, total, attended = carry
      scores = _product('bkgth,bksh->bkgts', part, _block(k, j, blocks.keys, 2))
      scores = jnp.where(blocks.mask(query_segments, key_segments, i, j, offset), scores, MASKED)
      new = jnp.maximum(largest, jnp.max(scores, axis=-1, keepdims=True))
      weights, shrink = jnp.exp(scores - new), jnp.exp(largest - new)
      more = _product('bkgts,bksh->bkgth', weights.astype(v.dtype), _block(v, j, blocks.keys, 2))
      return new, total * shrink + jnp.sum(weights, axis=-1, keepdims=True), attended * shrink + more

    column = (B, K, G, blocks.queries, 1)
    # What a query has added up before it meets a key that it may attend to shrinks to nothing there.
    start = (jnp.full(column, MASKED), jnp.zeros(column), jnp.zeros((*column[:4], H)))
    largest, total, attended = jax.lax.fori_loop(0, blocks.reachable(i, offset, k.shape[2]), add_keys, start)
    return (attended / total).astype(q.dtype), largest + jnp.log(total)

  parts = jax.lax.map(of_queries, jnp.arange(T // blocks.queries))
  output, log_sum = (checkpoint_name(_joined(part), RESULTS) for part in parts)
  return output, (operands, offset, output, log_sum)


def _backward(blocks, kept, gradient):
  (q, k, v, query_segments, key_segments), offset, output, log_sum = kept
  # Of weights w = exp(s - log_sum): ds = w * (dw - sum(w * dw)), and that sum is the output times its gradient.
  shift = jnp.sum(output.astype(jnp.float32) * gradient.astype(jnp.float32), axis=-1, keepdims=True)

  def of_queries(sums, i):
    part, dpart, log, less = (_block(x, i, blocks.queries, 3) for x in (q, gradient, log_sum, shift))

    def add_keys(j, carry):
      dq, dk, dv = carry
      keys, values = (_block(x, j, blocks.keys, 2) for x in (k, v))
      weights = jnp.exp(_product('bkgth,bksh->bkgts', part, keys) - log)
      weights = jnp.where(blocks.mask(query_segments, key_segments, i, j, offset), weights, 0)
      dscores = (weights * (_product('bkgth,bksh->bkgts', dpart, values) - less)).astype(q.dtype)
      dq += _product('bkgts,bksh->bkgth', dscores, keys)
      dk = _added(dk, _product('bkgts,bkgth->bksh', dscores, part), j)
      dv = _added(dv, _product('bkgts,bkgth->bksh', weights.astype(v.dtype), dpart), j)
      return dq, dk, dv

    start = (jnp.zeros(part.shape, jnp.float32), *sums)
    dq, *sums = jax.lax.fori_loop(0, blocks.reachable(i, offset, k.shape[2]), add_keys, start)
    return tuple(sums), dq.astype(q.dtype)

  zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (k, v))
  (dk, dv), dq = jax.lax.scan(of_queries, zeros, jnp.arange(q.shape[3] // blocks.queries))
  return Operands(_joined(dq), dk.astype(k.dtype), dv.astype(v.dtype), None, None), None


_in_blocks.defvjp(_forward, _backward)


def _product(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
  return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)


def _block(x: jax.Array, i: jax.Array, size: int, axis: int) -> jax.Array:
  return jax.lax.dynamic_slice_in_dim(x, i * size, size, axis)


def _added(x: jax.Array, block: jax.Array, j: jax.Array) -> jax.Array:
  """x [B, K, S, H] with its j-th block more by `block`."""
  size = block.shape[2]
  return jax.lax.dynamic_update_slice_in_dim(x, _block(x, j, size, 2) + block, j * size, 2)


def _joined(blocks: jax.Array) -> jax.Array:
  """[blocks, B, K, G, t, H] -> [B, K, G, T, H]."""
  B, K, G = blocks.shape[1:4]
  return jnp.moveaxis(blocks, 0, 3).reshape(B, K, G, -1, blocks.shape[-1])


def _filled(x: jax.Array, axis: int, size: int, value: int) -> jax.Array:
  """x with `value` up to a multiple of `size` positions."""
  missing = -x.shape[axis] % size
  widths = [(0, missing if i == axis else 0) for i in range(x.ndim)]
  return jnp.pad(x, widths, constant_values=value) if missing else x
