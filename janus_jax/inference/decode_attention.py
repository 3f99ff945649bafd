"""Attention of a decode step on an NVIDIA GPU: one Triton kernel, in Pallas, that reads the filled slots only.

XLA makes six kernels of it, which take longer than reading the cache does: of 24 layers of the 1B and one image, 18 of
the 72 us that a layer takes on an H100. Slots are cut into parts; each part of each head is a program of its own, so
that a single row fills the card as well, and their results are put together as in flash attention.
"""

import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

PART = 64  # Slots of a program, at most: 16 KB of keys of heads of 128 in bfloat16, and as much of values.
LEAST = 8  # With fewer, putting parts together costs more than reading them.
NOTHING = float(jnp.finfo(jnp.float32).min)  # The largest score of a part without a slot that is read.


def part_size(slots: int) -> int:
  """Slots of a program: the most that divide a block of the cache; a power of two, as Triton wants it."""
  return math.gcd(PART, slots)


def can_read(sizes: Sequence[int], head_dim: int) -> bool:
  """Says whether the kernel takes blocks of so many slots."""
  return all(part_size(slots) >= LEAST for slots in sizes) and head_dim & (head_dim - 1) == 0


def decode_attention(
  q: jax.Array,
  blocks: Sequence[tuple[jax.Array, jax.Array]],
  mask: jax.Array,
  *,
  interpret: bool = False,
) -> jax.Array:
  """softmax(q kᵀ / sqrt(H)) v of one query of each row, the softmax in float32.

  Args:
    q: [B, N, H].
    blocks: keys and values [U, K, S, H] of each block of the cache; U divides B, and each of its rows is read by B / U
      consecutive rows. K divides N.
    mask: bool[B, sum of S], which slots a row reads; at least one.
    interpret: whether to interpret the kernel, on any device: slow, for tests.

  Returns:
    [B, N, H] in q's dtype.
  """
  B, N, H = q.shape
  sizes = [part_size(keys.shape[2]) for keys, _ in blocks]
  counts = [keys.shape[2] // size for (keys, _), size in zip(blocks, sizes)]
  firsts = [sum(counts[:i]) for i in range(len(counts))]
  bounds = list(itertools.accumulate(keys.shape[2] for keys, _ in blocks))[:-1]
  masks = jnp.split(mask.astype(jnp.int32), bounds, axis=1)

  def spec(block: int, shared: int, kv_heads: int | None) -> pl.BlockSpec:
    """Of a part of a block: [size] of the mask, [size, H] of keys or values. Programs of other blocks read nothing."""
    place = lambda p: jnp.clip(p - firsts[block], 0, counts[block] - 1)  # noqa: E731
    if kv_heads is None:
      return pl.BlockSpec((None, sizes[block]), lambda b, n, p: (b, place(p)))
    index = lambda b, n, p: (b // shared, n // (N // kv_heads), place(p), 0)  # noqa: E731
    return pl.BlockSpec((None, None, sizes[block], H), index)

  operands, specs = [], []
  for block, (part_mask, (keys, values)) in enumerate(zip(masks, blocks, strict=True)):
    of_stored = spec(block, B // len(keys), keys.shape[1])
    operands += [part_mask, keys, values]
    specs += [spec(block, 1, None), of_stored, of_stored]
  head = lambda *shape: pl.BlockSpec((None, None, None, *shape), lambda b, n, p: (b, n, p, *(0 for _ in shape)))  # noqa: E731
  attended, tops, totals = pl.pallas_call(
    functools.partial(_part, firsts=firsts, counts=counts),
    grid=(B, N, sum(counts)),
    in_specs=[pl.BlockSpec((None, None, H), lambda b, n, p: (b, n, 0)), *specs],
    out_specs=[head(H), head(), head()],
    out_shape=[jax.ShapeDtypeStruct((B, N, sum(counts), *shape), jnp.float32) for shape in ((H,), (), ())],
    interpret=interpret,
    name='decode_attention',
  )(q, *operands)
  factors = jnp.exp(tops - tops.max(-1, keepdims=True))
  summed = jnp.sum(attended * factors[..., None], axis=2)
  return (summed / jnp.sum(totals * factors, axis=-1, keepdims=True)).astype(q.dtype)


def _part(q_ref, *refs, firsts: Sequence[int], counts: Sequence[int]) -> None:
  """One part of one head: values by exp(score - top) [H], top and the sum of exp(score - top) []."""
  *stored, attended_ref, top_ref, total_ref = refs
  part, H = pl.program_id(2), q_ref.shape[-1]

  def of_block(mask_ref, keys_ref, values_ref) -> tuple[jax.Array, jax.Array, jax.Array]:
    q = q_ref[...].astype(jnp.float32) * H**-0.5
    is_read = mask_ref[...] != 0
    scores = jnp.where(is_read, jnp.sum(keys_ref[...].astype(jnp.float32) * q[None], axis=1), NOTHING)
    top = jnp.max(scores)
    weights = jnp.where(is_read, jnp.exp(scores - top), 0.0)
    attended = jnp.sum(weights[:, None] * values_ref[...].astype(jnp.float32), axis=0)
    return attended, top, jnp.sum(weights)

  # Computed, as Pallas's Triton takes no constants out of a condition.
  zero = 0.0 * part.astype(jnp.float32)
  nothing = jnp.zeros((H,), jnp.float32) + zero, NOTHING + zero, zero
  found = lambda: nothing  # noqa: E731
  for block, (first, count) in enumerate(zip(firsts, counts)):
    mask_ref, keys_ref, values_ref = stored[3 * block : 3 * block + 3]
    is_here = (part >= first) & (part < first + count) & (jnp.max(mask_ref[...]) > 0)
    found = functools.partial(jax.lax.cond, is_here, functools.partial(of_block, mask_ref, keys_ref, values_ref), found)
  attended_ref[...], top_ref[...], total_ref[...] = found()
