"""Attention by kernels that are written for one kind of accelerator: splash for TPUs, three for NVIDIA GPUs.

By formula, for 8 packed rows of 4,096 positions in a layer of the 1B (16 heads of 128 dimensions, bfloat16): the
forward pass multiplies 2 B T² N H = 0.55 TFLOP below the diagonal and moves at least 4 B T N H elements, 0.54 GB; the
backward pass multiplies 1.37 TFLOP, or 1.92 in kernels that compute dq apart from dk and dv, as both Pallas ones do.
cuDNN takes segments as a mask of B T² elements that it adds to the scores: 0.27 GB written, and read in both passes by
each head, and 0.27 GB of its gradient, which nobody wants, written in the backward one.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from janus_jax.errors import InputError
from janus_jax.models.attention_kernels import RESULTS, Operands, attention_mask

LANES = 128  # Of a TPU's vector unit: splash works on blocks of multiples of it, and the Pallas kernel divides by it.
MAX_BLOCK = 640  # Queries or keys of a block: with more, its scores and their gradients crowd a TPU's fast memory.
PADDING_SEGMENT = -1  # Of positions that only fill a block up.


def padded_length(length: int) -> int:
  """The number of positions that splash and the Pallas kernel take for so many."""
  return -(-length // LANES) * LANES


def splash_block(length: int) -> int:
  """The largest block of positions that fits and divides a multiple of LANES."""
  return max(size for size in range(LANES, MAX_BLOCK + 1, LANES) if length % size == 0)


def splash_kernel(heads: int, length: int, *, causal: bool, parts: int = 1, interpret: bool = False) -> Any:
  """The splash kernel with the blocks that it visits, which no value decides. A pytree of small arrays.

  Args:
    heads: number of query heads.
    length: positions of the whole sequence.
    causal: whether a query attends only to keys up to its own index.
    parts: number of equal parts into which devices split the queries; each a multiple of LANES if more than one.
    interpret: whether to interpret the kernel, on any device: slow, for tests.
  """
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  padded = padded_length(length)
  shape, block_q, block_kv = (padded, padded), splash_block(padded // parts), splash_block(padded)
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
  options = {'head_shards': 1, 'q_seq_shards': parts, 'residual_checkpoint_name': RESULTS, 'interpret': interpret}
  return splash.make_splash_mha(masks, block_sizes=sizes, **options)


def splash_attention(operands: Operands, *, kernel: Any) -> jax.Array:
  """softmax(q kᵀ / sqrt(H)) v, [B, T, N, H], by splash attention (jax.experimental.pallas.ops.tpu.splash_attention).

  Args:
    operands: the whole sequence or one of its parts.
    kernel: `splash_kernel` for N, T and S.
  """
  from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

  q, k, v, query_segments, key_segments = operands
  (B, T, _, H), S = q.shape, k.shape[1]
  filled = padded_length(T) != T or padded_length(S) != S
  if query_segments is None and filled:
    query_segments, key_segments = (jnp.zeros((B, size), jnp.int32) for size in (T, S))
  segments = None
  if query_segments is not None:
    segments = SegmentIds(*(_padded(x, 1, PADDING_SEGMENT) for x in (query_segments, key_segments)))
  # The kernel takes [heads, positions, H] and no scale.
  q, k, v = (_padded(x.swapaxes(1, 2), 2, 0) for x in ((q * H**-0.5).astype(q.dtype), k, v))
  attended = jax.vmap(kernel, in_axes=(0, 0, 0, None if segments is None else 0))(q, k, v, segments)
  return attended[:, :, :T].swapaxes(1, 2)


def _padded(x: jax.Array, axis: int, value: int) -> jax.Array:
  missing = padded_length(x.shape[axis]) - x.shape[axis]
  widths = [(0, missing if i == axis else 0) for i in range(x.ndim)]
  return jnp.pad(x, widths, constant_values=value) if missing else x


def cudnn_attention(operands: Operands, *, causal: bool) -> jax.Array:
  """softmax(q kᵀ / sqrt(H)) v, [B, T, N, H], by cuDNN's fused attention; float16 or bfloat16.

  Of its ways to mask, segments take the full one, bool[B, 1, T, S] (sequence lengths can say only where one example
  ends); causality is told apart from it, so that blocks above the diagonal are skipped.
  """
  q, k, v, query_segments, key_segments = operands
  mask = None
  if query_segments is not None:
    mask = attention_mask(query_segments, key_segments, causal=False)[:, None]
  return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal, implementation='cudnn')


def pallas_attention(operands: Operands, *, causal: bool, interpret: bool = False) -> jax.Array:
  """softmax(q kᵀ / sqrt(H)) v, [B, T, N, H], by JAX's Triton kernel (jax.experimental.pallas.ops.gpu.attention).

  For whole sequences in float16 or bfloat16. Segments are compared within a block of scores, so nothing of T x T
  elements exists. Blocks above the diagonal are left out. `interpret` runs it on any device: slow, for tests.
  """
  from jax.experimental.pallas.ops.gpu.attention import BlockSizes, mha

  q, k, v, segments, _ = operands
  (B, T, N, H), K = q.shape, k.shape[2]
  if segments is None:
    segments = jnp.zeros((B, T), jnp.int32)
  # It knows no grouped queries.
  k, v = (jnp.repeat(x, N // K, axis=2) for x in (k, v))
  q, k, v = (_padded(x, 1, 0) for x in (q, k, v))
  # Two stages of 64 keys and values fit the shared memory of any card (64 KB for heads of 128). The sums that a block
  # of 64 keys keeps in the backward pass fill half of its warps' registers; of 128, all.
  sizes = BlockSizes(block_q=128, block_k=64, block_q_dkv=32, block_kv_dkv=64, block_q_dq=64, block_kv_dq=32)
  attended = mha(q, k, v, _padded(segments, 1, PADDING_SEGMENT), H**-0.5, causal, sizes, interpret=interpret)
  return attended[:, :T]


def segment_starts(segments: jax.Array) -> jax.Array:
  """int32[B, T] -> int32[B, T]: the index at which the segment of each position begins; a segment lies together."""
  index = jnp.arange(segments.shape[1], dtype=jnp.int32)
  begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
  return jax.lax.cummax(jnp.where(begins, index, 0), axis=1)


def tokamax_attention(operands: Operands, *, causal: bool) -> jax.Array:
  """softmax(q kᵀ / sqrt(H)) v, [B, T, N, H], by tokamax's flash attention for Hopper and Blackwell (in Mosaic).

  For whole sequences in float16 or bfloat16. A query is told the first key that it may attend to. Both passes leave out
  blocks above the diagonal; the forward one also blocks of keys before all that a block of queries may attend to.

  Raises:
    InputError: segments, and not causal.
  """
  from tokamax.ops.gpu import PallasMosaicFlashAttention

  q, k, v, segments, _ = operands
  kernel = PallasMosaicFlashAttention()
  # tokamax has no public name for its masks: this one says only that it is causal, or nothing.
  mask = kernel.bind(q, k, v, is_causal=causal).arguments['mask']
  if segments is not None:
    if not causal:
      raise InputError("attention is 'tokamax': expected another for segments without causality")
    mask = dataclasses.replace(mask, k_start=segment_starts(segments)[:, None])
  return kernel(q, k, v, mask=mask)
