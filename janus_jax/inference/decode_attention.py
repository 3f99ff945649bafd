"""Attention of a decode step on an NVIDIA GPU: one Triton kernel, in Pallas, that reads the filled slots only.

XLA makes eight kernels of it, which take longer than reading the cache does. Slots are cut into parts; each part of
each head is a program of its own, so that a single row fills the card as well, and their results are put together as
in flash attention. On an H100, with heads as the 1B's and 340 slots filled, a layer takes 8.5 us for 2 rows and 46 us
for 32, which is 2 TB/s.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

# Slots of a program, at most, and the warps that it has. 16 to 64 slots and 2 to 8 warps took 8.5 to 9.8 us for 2 rows
# and 46 to 49 for 32.
PART, WARPS = 32, 2
LEAST = 8  # With fewer, putting parts together costs more than reading them.
NOTHING = float(jnp.finfo(jnp.float32).min)  # The largest score of a part of which no slot is read.


def part_size(slots: int) -> int:
  """Slots of a program: the most that divide a block of the cache; a power of two, as Triton wants it."""
  return math.gcd(PART, slots)


def whole_parts(slots: int) -> int:
  """So many slots or a few more: whole programs of the kernel."""
  return -(-slots // PART) * PART


def can_read(sizes: Sequence[int], head_dim: int) -> bool:
  """Says whether the kernel takes blocks of so many slots."""
  return all(part_size(slots) >= LEAST for slots in sizes) and head_dim & (head_dim - 1) == 0


def decode_attention(
  q: jax.Array,
  new: tuple[jax.Array, jax.Array],
  prompts: Sequence[tuple[jax.Array, jax.Array, jax.Array]],
  generated: tuple[jax.Array, jax.Array],
  slot: jax.Array,
  *,
  interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """softmax(q kᵀ / sqrt(H)) v of one query of each row, the softmax in float32, and its key and value stored.

  Args:
    q: [B, N, H].
    new: the key and the value of the query's own position, [B, K, H]; K divides N.
    prompts: keys and values [U, K, S, H] of each block of the prompt, and bool[U, S], which slots are read; U divides
      B, and each of its rows is read by B / U consecutive rows.
    generated: keys and values [B, K, S, H] of what follows, of which slots up to `slot` are read.
    slot: int32, where `new` goes.
    interpret: whether to interpret the kernel, on any device: slow, for tests.

  Returns:
    [B, N, H] in q's dtype; `generated` with `new`, in the same memory where the caller gives it up.
  """
  # As one array, XLA computes what goes in with one kernel.
  own = jnp.concatenate([q, *(x.astype(q.dtype) for x in new)], axis=1)
  attended, tops, totals, keys, values = _attend_in_parts(own, prompts, generated, slot, interpret)
  factors = jnp.exp(tops - tops.max(-1, keepdims=True))
  summed = jnp.sum(attended * factors[..., None], axis=2)
  return (summed / jnp.sum(totals * factors, axis=-1, keepdims=True)).astype(q.dtype), keys, values


def _attend_in_parts(
  own: jax.Array, prompts: Sequence, generated: Sequence[jax.Array], slot: jax.Array, interpret: bool
) -> list[jax.Array]:
  """Calls the kernel on own [B, N + 2 K, H]: queries, keys and values. Returns what `_part` writes of each part."""
  from jax.experimental import pallas as pl  # Half a second that no other device needs.
  from jax.experimental.pallas import triton

  (B, heads, H), K = own.shape, generated[0].shape[1]
  N = heads - 2 * K
  blocks = [keys for keys, *_ in (*prompts, generated)]
  sizes = [part_size(keys.shape[2]) for keys in blocks]
  counts = [keys.shape[2] // size for keys, size in zip(blocks, sizes)]
  firsts = [sum(counts[:i]) for i in range(len(counts))]

  def stored(block: int, *shape: int) -> pl.BlockSpec:
    """[S, ...] of a row, or of a head where there is a shape; programs of other blocks do not read what they get."""

    def index(b: jax.Array, n: jax.Array, p: jax.Array) -> tuple[jax.Array | int, ...]:
      part = jnp.clip(p - firsts[block], 0, counts[block] - 1)
      return b // (B // len(blocks[block])), *(n // (N // K) for _ in shape), part, *(0 for _ in shape)

    return pl.BlockSpec((*(None for _ in range(1 + len(shape))), sizes[block], *shape), index)

  def head(index: Callable[[jax.Array], jax.Array]) -> pl.BlockSpec:
    return pl.BlockSpec((None, None, H), lambda b, n, p: (b, index(n), 0))

  def result(*shape: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, None, None, *shape), lambda b, n, p: (b, n, p, *(0 for _ in shape)))

  queries = [head(lambda n: n), head(lambda n: N + n // (N // K)), head(lambda n: N + K + n // (N // K))]
  operands = [array for keys, values, mask in prompts for array in (keys, values, mask.astype(jnp.int32))]
  specs = [spec for i in range(len(prompts)) for spec in (stored(i, H), stored(i, H), stored(i))]
  written = [stored(len(prompts), H)] * 2
  parts = (B, N, sum(counts))
  return pl.pallas_call(
    functools.partial(_part, firsts=firsts, counts=counts),
    grid=parts,
    in_specs=[pl.BlockSpec((1,), lambda b, n, p: (0,)), *queries, *specs, *written],
    out_specs=[result(H), result(), result(), *written],
    out_shape=[
      *(jax.ShapeDtypeStruct((*parts, *shape), jnp.float32) for shape in ((H,), (), ())),
      *(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in generated),
    ],
    input_output_aliases={4 + len(operands): 3, 5 + len(operands): 4},
    compiler_params=triton.CompilerParams(num_warps=WARPS),
    interpret=interpret,
    name='decode_attention',
  )(slot.reshape(1), own, own, own, *operands, *generated)


def _part(slot_ref, q_ref, key_ref, value_ref, *refs, firsts: Sequence[int], counts: Sequence[int]) -> None:
  """One part of one head: values by exp(score - top) [H], top and the sum of exp(score - top) []."""
  from jax.experimental import pallas as pl

  *prompts, keys_ref, values_ref, attended_ref, top_ref, total_ref, new_keys_ref, new_values_ref = refs
  part, size, H = pl.program_id(2), keys_ref.shape[0], q_ref.shape[-1]
  slot = slot_ref[0] - (part - firsts[-1]) * size  # Counted in the part, if that is of what is generated.

  def attend(keys: jax.Array, values: jax.Array, is_read: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    q = q_ref[...].astype(jnp.float32) * H**-0.5
    scores = jnp.where(is_read, jnp.sum(keys.astype(jnp.float32) * q[None], axis=1), NOTHING)
    top = jnp.max(scores)
    weights = jnp.where(is_read, jnp.exp(scores - top), 0.0)
    return jnp.sum(weights[:, None] * values.astype(jnp.float32), axis=0), top, jnp.sum(weights)

  def attend_prompt(keys_ref, values_ref, mask_ref) -> tuple[jax.Array, jax.Array, jax.Array]:
    return attend(keys_ref[...], values_ref[...], mask_ref[...] != 0)

  def attend_generated() -> tuple[jax.Array, jax.Array, jax.Array]:
    index = jnp.arange(size)
    own = (index == slot)[:, None]
    keys = jnp.where(own, key_ref[...][None].astype(keys_ref.dtype), keys_ref[...])
    values = jnp.where(own, value_ref[...][None].astype(values_ref.dtype), values_ref[...])
    return attend(keys, values, index <= slot)

  # Computed, as Pallas's Triton takes no constants out of a condition.
  zero = 0.0 * part.astype(jnp.float32)
  nothing = jnp.zeros((H,), jnp.float32) + zero, NOTHING + zero, zero
  found = functools.partial(jax.lax.cond, (part >= firsts[-1]) & (slot >= 0), attend_generated, lambda: nothing)
  for block, (first, count) in enumerate(zip(firsts[:-1], counts[:-1])):
    attend_own = functools.partial(attend_prompt, *prompts[3 * block : 3 * block + 3])
    found = functools.partial(jax.lax.cond, (part >= first) & (part < first + count), attend_own, found)
  attended_ref[...], top_ref[...], total_ref[...] = found()

  @pl.when((part >= firsts[-1]) & (slot >= 0) & (slot < size))
  def store() -> None:
    new_keys_ref[pl.ds(slot, 1), :] = key_ref[...][None].astype(new_keys_ref.dtype)
    new_values_ref[pl.ds(slot, 1), :] = value_ref[...][None].astype(new_values_ref.dtype)
