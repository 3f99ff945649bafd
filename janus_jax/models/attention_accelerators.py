"""Attention by kernels that are written for one kind of accelerator: splash for TPUs, cuDNN's for NVIDIA GPUs."""

from typing import Any

import jax
import jax.numpy as jnp

from janus_jax.models.attention_kernels import attention_mask

LANES = 128  # Of a TPU's vector unit: splash works on blocks of multiples of it.
MAX_BLOCK = 640  # Queries or keys of a block: with more, its scores and their gradients crowd a TPU's fast memory.
PADDING_SEGMENT = -1  # Of positions that only fill a block up.


def padded_length(length: int) -> int:
  """The number of positions that splash takes for so many."""
  return -(-length // LANES) * LANES


def splash_block(length: int) -> int:
  """The largest block of positions that fits and divides a multiple of LANES."""
  return max(size for size in range(LANES, MAX_BLOCK + 1, LANES) if length % size == 0)


def splash_kernel(heads: int, queries: int, keys: int, *, causal: bool, parts: int = 1, interpret: bool = False) -> Any:
  """What of the splash kernel does not depend on values: which blocks it visits. A pytree of small arrays.

  Args:
    heads: query heads.
    queries: of the whole sequence.
    keys: of the whole sequence.
    causal: whether a query attends only to keys up to its own index.
    parts: into how many equal parts devices split the queries; each a multiple of LANES if more than one.
    interpret: whether to interpret the kernel, on any device: slow, for tests.
  """
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  shape = (padded_length(queries), padded_length(keys))
  block_q, block_kv = splash_block(shape[0] // parts), splash_block(shape[1])
  sizes = splash.BlockSizes(
    block_q=block_q,
    block_kv=block_kv,
    block_q_dkv=block_q,
    block_kv_dkv=block_kv,
    block_q_dq=block_q,
    block_kv_dq=block_kv,
  )
  mask = splash.CausalMask(shape) if causal else splash.FullMask(shape)
  masks = splash.MultiHeadMask([mask] * heads)
  return splash.make_splash_mha(masks, block_sizes=sizes, head_shards=1, q_seq_shards=parts, interpret=interpret)


def splash_attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  query_segments: jax.Array | None,
  key_segments: jax.Array | None,
  *,
  kernel: Any,
) -> jax.Array:
  """softmax(q kᵀ / sqrt(H)) v by splash attention (jax.experimental.pallas.ops.tpu.splash_attention).

  Args:
    q: [B, T, N, H], the whole sequence or one of its parts.
    k: [B, S, K, H], K dividing N.
    v: [B, S, K, H].
    query_segments: int32[B, T], not negative; attention stays within equal segments. None: one segment.
    key_segments: int32[B, S], or None.
    kernel: of `splash_kernel` for N, T and S.

  Returns:
    [B, T, N, H] in q's dtype.
  """
  from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

  (B, T, _, H), S = q.shape, k.shape[1]
  filled = padded_length(T) != T or padded_length(S) != S
  if query_segments is None and filled:
    query_segments, key_segments = (jnp.zeros((B, size), jnp.int32) for size in (T, S))
  segments = None
  if query_segments is not None:
    segments = SegmentIds(*(_padded(x, 1, PADDING_SEGMENT) for x in (query_segments, key_segments)))
  # The kernel takes [heads, positions, H] and no scale.
  q, k, v = (_padded(x.swapaxes(1, 2), 2, 0) for x in ((q * H**-0.5).astype(q.dtype), k, v))
  mixed = jax.vmap(kernel, in_axes=(0, 0, 0, None if segments is None else 0))(q, k, v, segments)
  return mixed[:, :, :T].swapaxes(1, 2)


def _padded(x: jax.Array, axis: int, value: int) -> jax.Array:
  missing = padded_length(x.shape[axis]) - x.shape[axis]
  widths = [(0, missing if i == axis else 0) for i in range(x.ndim)]
  return jnp.pad(x, widths, constant_values=value) if missing else x


def cudnn_attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  query_segments: jax.Array | None,
  key_segments: jax.Array | None,
  *,
  causal: bool,
) -> jax.Array:
  """softmax(q kᵀ / sqrt(H)) v by cuDNN's fused attention.

  Of its ways to mask, segments take the full one, bool[B, 1, T, S] (sequence lengths can say only where one example
  ends); causality is told apart from it, so that what is above the diagonal is skipped.

  Args:
    q: [B, T, N, H], float16 or bfloat16.
    k: [B, T, K, H], K dividing N.
    v: [B, T, K, H].
    query_segments: int32[B, T]; attention stays within equal segments. None: one segment.
    key_segments: int32[B, T], or None.
    causal: whether a query attends only to keys up to its own index.

  Returns:
    [B, T, N, H] in q's dtype.
  """
  mask = None
  if query_segments is not None:
    mask = attention_mask(query_segments, key_segments, causal=False)[:, None]
  return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal, implementation='cudnn')
