"""The key/value cache: an explicit pytree, allocated once, written in place, read only as far as it is filled.

Its slots are cut into blocks: one or two of the prompt, then stretches of what is generated. Each layer has a pair of
buffers per block, in which what one kv head reads lies together, and attention reads whole blocks, those up to the one
being written. A slice of one large buffer would read as little, but XLA copies a slice before it multiplies with it: on
CPU that was a third of a decode step. A prompt that nothing precedes is read by its own positions alone, so that the
kernels of training do it.

A block of the prompt may hold fewer rows than the batch: U rows, each read by B / U consecutive rows of the batch. The
queries of those rows are laid side by side, so that the keys are read once for all of them and never repeated.

An int8 cache has about half the bytes of a bfloat16 one. Its scales are applied to scores and weights, not to keys and
values, so nothing stands between the stored bytes and the matrix products but a change of type, which is the compiler's
to fuse. XLA's CPU backend does not: there int8 saves memory and costs time.
"""

import functools
import itertools
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp

from janus_jax.errors import InputError
from janus_jax.inference.decode_attention import decode_attention, whole_parts
from janus_jax.models.attention import attention
from janus_jax.models.config import LlamaConfig
from janus_jax.models.quantization import quantize

CACHE_DTYPES = ('float32', 'bfloat16', 'float16', 'int8')


@flax.struct.dataclass
class Buffer:
  """The keys, or the values, of one layer in one block. Each of its U rows is read by B / U consecutive rows.

  Attributes:
    values: [U, K, S, H]; or [U, K, H, S], as XLA's CPU backend multiplies keys with several queries faster.
    scale: float32[U, K, S] where `values` are int8; else None.
    axis: of the slots in `values`, 2 or 3. Static.
  """

  values: jax.Array
  scale: jax.Array | None
  axis: int = flax.struct.field(pytree_node=False, default=2)

  @property
  def size(self) -> int:
    return self.values.shape[self.axis]

  def write(self, x: jax.Array, slot: jax.Array) -> 'Buffer':
    """Puts x [U, K, T, H] at `slot` to `slot + T` of this block; int32[U] for rows that stand at different ones."""
    if self.scale is None:
      x, scale = x.astype(self.values.dtype), None
    else:
      x, scale = quantize(x)
      scale = _put(self.scale, scale, slot, 2)
    return self.replace(values=_put(self.values, x.swapaxes(2, self.axis), slot, self.axis), scale=scale)

  def products(self, q: jax.Array) -> jax.Array:
    """Products of queries and keys, [B, T, K, G, H] -> float32[B, K, G, T, S]."""
    keys, contracted = self.values.astype(q.dtype), 5 - self.axis
    folded = jnp.einsum('urtkgh->ukrgth', self._folded(q))
    # Not einsums, here and below: they may put what is stored first, and XLA's CPU backend then transposes it.
    products = jax.lax.dot_general(
      _flat(folded), keys, (((3,), (contracted,)), ((0, 1), (0, 1))), preferred_element_type=jnp.float32
    )
    products = self._scaled(products).reshape(*folded.shape[:-1], -1).swapaxes(1, 2)
    return products.reshape(-1, *products.shape[2:])

  def attended(self, weights: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Sums of values by weight, float32[B, K, G, T, S] -> [B, T, K, G, H] in `dtype`."""
    folded = self._folded(weights).swapaxes(1, 2)
    weights = self._scaled(_flat(folded)).astype(dtype)
    attended = jax.lax.dot_general(weights, self.values.astype(dtype), (((3,), (2,)), ((0, 1), (0, 1))))
    attended = jnp.einsum('ukrgth->urtkgh', attended.reshape(*folded.shape[:-1], -1))
    return attended.reshape(-1, *attended.shape[2:])

  def _folded(self, x: jax.Array) -> jax.Array:
    """[B, ...] -> [U, B / U, ...]."""
    return x.reshape(len(self.values), -1, *x.shape[1:])

  def positions(self, dtype: jnp.dtype) -> jax.Array:
    """The stored numbers as [U, S, K, H] in `dtype`."""
    values = self.values.swapaxes(2, self.axis).astype(dtype)
    return (values if self.scale is None else values * self.scale[..., None].astype(dtype)).swapaxes(1, 2)

  def resized(self, start: int, stop: int) -> 'Buffer':
    """The slots from `start` to `stop`; those beyond the last are empty."""

    def part(x: jax.Array, axis: int) -> jax.Array:
      x = jax.lax.slice_in_dim(x, start, min(stop, self.size), axis=axis)
      return jnp.pad(x, [(0, stop - start - x.shape[axis] if i == axis else 0) for i in range(x.ndim)])

    scale = None if self.scale is None else part(self.scale, 2)
    return self.replace(values=part(self.values, self.axis), scale=scale)

  def _scaled(self, x: jax.Array) -> jax.Array:
    """[U, K, M, S] times the scale of each slot."""
    return x if self.scale is None else x * self.scale[:, :, None]


def _flat(x: jax.Array) -> jax.Array:
  """[U, K, r, G, T, X] -> [U, K, r G T, X]."""
  return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _put(stored: jax.Array, x: jax.Array, slot: jax.Array, axis: int) -> jax.Array:
  """[U, ...] with x [U, ...] along `axis`, from `slot` on, which is one for all rows, or int32[U]."""
  if slot.ndim == 0:
    return jax.lax.dynamic_update_slice_in_dim(stored, x, slot, axis)
  return jax.vmap(functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=axis - 1))(stored, x, slot)


@flax.struct.dataclass
class Block:
  """Keys and values of one layer in one block of slots."""

  k: Buffer
  v: Buffer

  @property
  def size(self) -> int:
    return self.k.size


def attend_to_blocks(q: jax.Array, blocks: Sequence[Block], mask: jax.Array) -> jax.Array:
  """[B, T, N, H] -> [B, T, N, H] in q's dtype; softmax in float32. Each query reads those of S slots that bool[B, T, S]
  says.
  """
  B, T, N, H = q.shape
  K = blocks[0].k.values.shape[1]
  grouped = q.reshape(B, T, K, N // K, H)
  scores = jnp.concatenate([block.k.products(grouped) for block in blocks], axis=-1) * H**-0.5
  scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
  bounds = list(itertools.accumulate(block.size for block in blocks))[:-1]
  weights = jnp.split(jax.nn.softmax(scores, axis=-1), bounds, axis=-1)
  return sum(block.v.attended(part, q.dtype) for block, part in zip(blocks, weights)).reshape(B, T, N, H)


def attend_to_prompt(q: jax.Array, block: Block, mask: jax.Array, kernel: str) -> jax.Array:
  """[U, T, N, H] -> [U, T, N, H] in q's dtype: each position of a prompt reads itself and what comes before it.

  Left padding, False in bool[U, T], reads itself. `kernel` is one of `attention.IMPLEMENTATIONS`.
  """
  k, v = block.k.positions(q.dtype), block.v.positions(q.dtype)
  return attention(q, k, v, segments=mask.astype(jnp.int32), causal=True, implementation=kernel)


@flax.struct.dataclass
class KVCache:
  """Implements `models.attention.KeyValueStore`.

  Attributes:
    layers: per decoder layer, its blocks.
    prompt_masks: bool[U, T] of each block of the prompt, which come first, False on left padding. U is the block's own.
    position: int32 scalar, the next slot to write, counted over all blocks; or int32[B], that of each row.
    current: the block that is written; it and those before it are read. Static, so it bounds the memory traffic of a
      decode step. What is written must lie within it.
    kernels: one of `attention.IMPLEMENTATIONS`, for a prompt that fills the first block in one pass; and 'xla', or
      'pallas' for `decode_attention`, for a single step into the one block that follows prompts. Static.
  """

  layers: tuple[tuple[Block, ...], ...]
  prompt_masks: tuple[jax.Array, ...]
  position: jax.Array
  current: int = flax.struct.field(pytree_node=False)
  kernels: tuple[str, str] = flax.struct.field(pytree_node=False)

  @property
  def generated_blocks(self) -> list[int]:
    """Sizes of the blocks that follow the prompt."""
    return [block.size for block in self.layers[0][len(self.prompt_masks) :]]

  def attend(self, layer: int, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, 'KVCache']:
    """`KeyValueStore.attend`, with as many rows as the current block holds: U where it is shared. The caller advances
    `position` once all layers have written.
    """
    blocks, steps = self.layers[layer], k.shape[1]
    stored, block = blocks[: self.current], blocks[self.current]
    start = sum(block.size for block in stored)
    slot = self.position - start
    if self.kernels[1] == 'pallas' and steps == 1 and self.current >= len(self.prompt_masks):
      attended, keys, values = decode_attention(
        q[:, 0],
        (k[:, 0], v[:, 0]),
        [(block.k.values, block.v.values, mask) for block, mask in zip(stored, self.prompt_masks)],
        (block.k.values, block.v.values),
        slot,
      )
      attended, block = attended[:, None], Block(Buffer(keys, None), Buffer(values, None))
    else:
      block = Block(block.k.write(k.swapaxes(1, 2), slot), block.v.write(v.swapaxes(1, 2), slot))
      if self.current == 0 and steps == block.size:
        attended = attend_to_prompt(q, block, self.prompt_masks[0], self.kernels[0])
      else:
        attended = attend_to_blocks(q, (*stored, block), self._mask(start + block.size, len(k), steps))
    blocks = (*stored, block, *blocks[self.current + 1 :])
    return attended, self.replace(layers=(*self.layers[:layer], blocks, *self.layers[layer + 1 :]))

  def _mask(self, length: int, rows: int, steps: int) -> jax.Array:
    """bool[rows, steps, length]: the slots, of the first `length`, that each of the next `steps` queries reads."""
    masks = self.prompt_masks[: self.current + 1]
    prompt = [jnp.repeat(mask, rows // len(mask), axis=0) for mask in masks]
    generated = jnp.ones((rows, length - sum(mask.shape[1] for mask in masks)), bool)
    filled = jnp.concatenate([*prompt, generated], axis=1)
    index, slots = self.position[..., None] + jnp.arange(steps), jnp.arange(length)
    mask = filled[:, None] & (slots <= index[..., None])
    # A padding query reads nothing real; its own slot keeps the softmax finite, and nobody reads the result.
    return mask | (slots == index[..., None])

  def cut(self, sizes: Sequence[int]) -> 'KVCache':
    """The cache with the block that follows the prompts cut into blocks of so many slots; what is left over is dropped,
    what is missing is empty.

    One whose steps read only the slots that are filled stays whole, and grows where that is too little.
    """
    if self.kernels[1] == 'pallas':
      sizes = [max(self.generated_blocks[0], whole_parts(sum(sizes)))]
    prompts, bounds = len(self.prompt_masks), list(itertools.accumulate(sizes, initial=0))

    def parts(block: Block) -> list[Block]:
      return [Block(block.k.resized(a, b), block.v.resized(a, b)) for a, b in itertools.pairwise(bounds)]

    layers = tuple((*blocks[:prompts], *parts(blocks[prompts])) for blocks in self.layers)
    return self.replace(layers=layers)

  def writing(self, block: int) -> 'KVCache':
    """The cache about to write into `block`, once the ones before it are full."""
    return self.replace(current=block)


def init_cache(
  config: LlamaConfig,
  prompt_masks: Sequence[jax.Array],
  rows: int,
  blocks: Sequence[int],
  dtype: str,
  kernels: tuple[str, str] = ('xla', 'xla'),
  keys_axis: int = 2,
) -> KVCache:
  """An empty cache.

  Args:
    config: the decoder's architecture.
    prompt_masks: bool[U, T] of each block of the prompt, False on left padding; U divides `rows`.
    rows: B.
    blocks: sizes of the blocks for what is generated after the prompt.
    dtype: what keys and values are stored in, one of CACHE_DTYPES, else InputError.
    kernels: see `KVCache`.
    keys_axis: of the slots of keys, 2 or 3 (`Buffer`).
  """
  if dtype not in CACHE_DTYPES:
    raise InputError(f'dtype of the key/value cache is {dtype!r}: expected one of {", ".join(CACHE_DTYPES)}')

  def buffer(held: int, slots: int, axis: int) -> Buffer:
    # Zeros, not empty: uninitialised memory may hold NaN, which a masked weight of 0 does not remove.
    values = jnp.zeros((held, config.num_kv_heads, slots, config.head_dim), dtype)
    scale = jnp.zeros(values.shape[:3], jnp.float32) if dtype == 'int8' else None
    return Buffer(values.swapaxes(2, axis), scale, axis)

  shapes = [*(mask.shape for mask in prompt_masks), *((rows, slots) for slots in blocks)]
  layers = tuple(
    tuple(Block(buffer(*shape, keys_axis), buffer(*shape, 2)) for shape in shapes) for _ in range(config.depth)
  )
  return KVCache(layers, tuple(prompt_masks), jnp.zeros((), jnp.int32), current=0, kernels=kernels)
