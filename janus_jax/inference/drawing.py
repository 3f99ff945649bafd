"""Draws the codes of images: one compiled program per shape, which runs the prompts and loops over codes.

Conditional and unconditional rows of classifier-free guidance (Janus paper section 3.4) run as one batch. Each pass
costs the decoder's layers and the image head only: neither `lm_head` nor the token table is touched. Images of one
prompt share it: it runs once, and is stored once.

A pass may draw more than one code. The noise of each position is fixed before anything is drawn (`sampling.sample`),
so a code is a function of the codes before it. A pass over a window feeds the last code that is known and guesses of
those that follow; what it draws is right up to and including the first code that was guessed wrong, as everything
before that was right. Guesses are what the pass before drew for the same positions, which is Jacobi iteration: the
sequence of codes drawn one at a time is its only fixed point. So nothing is accepted or rejected by chance, and in
float32 the codes are the same. Each image advances by itself: windows of 8 took four images 118, 95, 135 and 107
passes, where all advanced as the slowest of each pass did, 164.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import TypeVar

import flax.struct
import jax
import jax.numpy as jnp

from janus_jax.inference.cache import KVCache
from janus_jax.inference.decoder import COMPILER_OPTIONS, Decoder, prompt_positions
from janus_jax.inference.sampling import Sampling, sample

# The loop over single codes is cut into this many loops, one per block of the cache, each reading the blocks filled so
# far. Reading all of it all the time would move 1.85 times the bytes (50 tokens of prompt); four blocks move 1.2 times.
NUM_BLOCKS = 4
# Where windows do not pay, the rest of the image is drawn one code at a time once they have lost so much of its time.
ALLOWANCE = 0.01

_Row = TypeVar('_Row')


def has_guidance(guidance: float) -> bool:
  """Says whether both kinds of rows decide: weight 1 needs the conditional ones alone, 0 the unconditional ones."""
  return guidance not in (0.0, 1.0)


def guided_prompts(conditional: Sequence[_Row], unconditional: Sequence[_Row], guidance: float) -> list[_Row]:
  """The prompts that `generate_codes` reads: both kinds, or the one kind that decides (`has_guidance`)."""
  if has_guidance(guidance):
    return [*conditional, *unconditional]
  return list(conditional if guidance else unconditional)


def guided_logits(logits: jax.Array, guidance: float) -> jax.Array:
  """unconditional + guidance (conditional - unconditional), as DeepSeek's `generation_inference.py`.

  float32[B, C], rows as `guided_prompts` orders them -> float32[N, C]; N = B / 2 where both kinds decide, else B.
  """
  if not has_guidance(guidance):
    return logits
  conditional, unconditional = jnp.split(logits, 2)
  return unconditional + guidance * (conditional - unconditional)


@flax.struct.dataclass
class Drawn:
  """Codes of N images, P each, and what they took.

  Attributes:
    codes: int32[N, P].
    passes: int32[N], passes of the decoder until the last code of each image was known, the prompt's included.
  """

  codes: jax.Array
  passes: jax.Array


@flax.struct.dataclass
class Window:
  """Codes of a pass.

  Attributes:
    size: at most so many, 1 to P. Static.
    pass_cost: duration of such a pass in passes over one code, where windows are to end once they turn out to take
      longer (`ALLOWANCE`); None: they never end.
  """

  size: int = flax.struct.field(pytree_node=False, default=1)
  pass_cost: float | None = None


ONE_BY_ONE = Window()


@functools.partial(
  jax.jit, static_argnames=('guidance', 'sampling', 'on_pass', 'num_codes'), compiler_options=COMPILER_OPTIONS
)
def generate_codes(
  decoder: Decoder,
  tokens: jax.Array,
  mask: jax.Array,
  keys: jax.Array,
  *,
  guidance: float,
  sampling: Sampling,
  window: Window = ONE_BY_ONE,
  on_pass: Callable[[jax.Array], None] | None = None,
  num_codes: int | None = None,
) -> Drawn:
  """Samples the codes of N images.

  Args:
    decoder: weights (`make_decoder`).
    tokens: int32[R, T], U prompts that end in `<begin_of_image>`, left-padded, each of N / U consecutive images. With
      guidance R = 2U, the conditional prompts first and then their unconditional counterparts
      (`data.prompts.unconditional_ids`) in the same order; else R = U (`guided_prompts`).
    mask: bool[R, T], False on left padding.
    keys: key[N], one per image (`sampling.row_key`).
    guidance: weight.
    sampling: how codes are chosen.
    window: codes that a pass draws at most.
    on_pass: called on the host in each pass with an int32 scalar, how many codes are known of every image. Each
      function compiles anew.
    num_codes: P, codes of an image; None: those of the model's square.
  """
  P, N = num_codes or decoder.config.vq.num_tokens, len(keys)
  rows = N * (2 if has_guidance(guidance) else 1)
  # Codes 0 to P - 2 are fed, in steps 1 to P - 1; the last one is sampled but never fed.
  bounds = [1 + (P - 1) * block // NUM_BLOCKS for block in range(NUM_BLOCKS + 1)]
  sizes = [stop - start for start, stop in itertools.pairwise(bounds) if start < stop]
  # Windows are drawn with one block, which grows.
  cache = decoder.empty_cache((mask,), rows, sizes if window.size == 1 else [_slots(bounds[1], window.size)])
  positions = prompt_positions(mask)
  hidden, cache = decoder.hidden(decoder.method('embed_text', tokens), positions, cache)
  hidden, last = (jnp.repeat(x[:, -1:], rows // len(tokens), axis=0) for x in (hidden, positions))
  draw = _Pass(decoder, keys, last, cache.position, guidance, sampling, on_pass)
  known = jnp.ones((N,), jnp.int32)
  codes = draw.codes(hidden, known - 1, ahead=2 * window.size - 2)
  codes, passes = jnp.pad(codes, ((0, 0), (0, P - 1))), known
  if window.size > 1:
    codes, known, passes, cache = _in_windows(draw, codes, cache.writing(1), window, bounds[1:])
    if window.pass_cost is None:
      return Drawn(decoder.whole(codes[:, :P]), decoder.whole(passes))
    cache = cache.cut(sizes)
  first = known.min()
  codes = _one_by_one(draw, codes[:, :P].T, cache, first).T
  return Drawn(decoder.whole(codes), decoder.whole(jnp.where(known < P, passes + P - first, passes)))


@dataclasses.dataclass(frozen=True)
class _Pass:
  """A pass over some codes, which draws those that follow each.

  Attributes:
    decoder: weights.
    keys: key[N].
    last: int32[R, 1], position of the last token of each row's prompt.
    start: int32 scalar, slot of the first code in the cache.
    guidance: weight.
    sampling: how codes are chosen.
    on_pass: told how many codes are known of every image.
  """

  decoder: Decoder
  keys: jax.Array
  last: jax.Array
  start: jax.Array
  guidance: float
  sampling: Sampling
  on_pass: Callable[[jax.Array], None] | None

  def __call__(self, codes: jax.Array, index: jax.Array, cache: KVCache, ahead: int = 0) -> tuple[jax.Array, KVCache]:
    """Feeds codes int32[N, W] and draws those from `index` on, one place further, and guesses: int32[N, W + ahead].

    `index` is an int32 scalar, or int32[N]; the cache is written from there on.
    """
    if self.on_pass is not None:
      jax.debug.callback(self.on_pass, jnp.min(index))
    W, copies = codes.shape[1], len(self.last) // len(codes)
    x = jnp.tile(self.decoder.method('embed_codes', codes), (copies, 1, 1))
    row_index = jnp.tile(index, copies) if index.ndim else index
    positions = self.last + row_index[..., None] + jnp.arange(W)
    hidden, cache = self.decoder.hidden(x, positions, cache.replace(position=self.start + row_index - 1))
    return self.codes(hidden, index, ahead), cache.replace(position=self.start)

  def codes(self, hidden: jax.Array, index: jax.Array, ahead: int = 0) -> jax.Array:
    """[R, W, D], index as above -> int32[N, W + ahead] (`draw_codes`)."""
    return draw_codes(
      self.decoder, hidden, self.keys, index, guidance=self.guidance, sampling=self.sampling, ahead=ahead
    )


def draw_codes(
  decoder: Decoder,
  hidden: jax.Array,
  keys: jax.Array,
  index: jax.Array | int,
  *,
  guidance: float,
  sampling: Sampling,
  ahead: int = 0,
) -> jax.Array:
  """Draws the codes from `index` on, an int32 scalar or int32[N], and guesses those that follow.

  A guess is what the noise of its position makes of the last logits that there are: of 576 codes, windows of 8 then
  took 101 passes (mean of four images of the toy world, guidance 5); guessing the code before it, they took 114, the
  code above it, 123.

  Args:
    decoder: weights.
    hidden: [R, W, D], final hidden states.
    keys: key[N].
    index: of the first code.
    guidance: weight.
    sampling: how codes are chosen.
    ahead: codes to guess.

  Returns:
    int32[N, W + ahead].
  """
  N, W = len(keys), hidden.shape[1]
  logits = decoder.method('image_logits', hidden.reshape(-1, hidden.shape[-1]))
  logits = guided_logits(logits, guidance).reshape(N, W, -1)
  logits = jnp.concatenate([logits, jnp.repeat(logits[:, -1:], ahead, axis=1)], axis=1)
  steps = jnp.broadcast_to(jnp.asarray(index)[..., None] + jnp.arange(W + ahead), (N, W + ahead))
  keys = jnp.repeat(keys, W + ahead)
  return sample(logits.reshape(-1, logits.shape[-1]), keys, steps.reshape(-1), sampling).reshape(N, -1)


def _one_by_one(draw: _Pass, codes: jax.Array, cache: KVCache, first: jax.Array) -> jax.Array:
  """Draws codes from `first` on, which is 1 or more, into int32[P, N], with the cache cut into blocks."""

  def step(i: jax.Array, carry: tuple[jax.Array, KVCache]) -> tuple[jax.Array, KVCache]:
    codes, cache = carry
    drawn, cache = draw(codes[i - 1][:, None], i, cache)
    return codes.at[i].set(drawn[:, 0]), cache

  stops = itertools.accumulate(cache.generated_blocks, initial=1)
  for block, (start, stop) in enumerate(itertools.pairwise(stops), start=1):
    cache = cache.writing(block)
    codes, cache = jax.lax.fori_loop(jnp.maximum(first, start), min(stop, len(codes)), step, (codes, cache))
  return codes


def _slots(codes: int, size: int) -> int:
  """Slots of a cache for windows, of which one may begin at the last code but one of so many."""
  return codes - 2 + size


def _in_windows(
  draw: _Pass, codes: jax.Array, cache: KVCache, window: Window, stops: Sequence[int]
) -> tuple[jax.Array, jax.Array, jax.Array, KVCache]:
  """Draws codes into int32[N, P + 2 size - 2], of which the first is known and the others are guesses.

  In as many loops as there are `stops`, the last of which is P: each runs until an image has so many codes, with a
  cache that has room for them. Returns codes, how many are known of each image, passes until they were (int32[N]), and
  the cache.
  """
  P = stops[-1]

  def is_going(stop: int, carry: tuple) -> jax.Array:
    _, known, passes, _ = carry
    going = (known.min() if stop == P else known.max()) < stop
    if window.pass_cost is None:
      return going
    return going & ((passes.max() - 1) * window.pass_cost - (known.min() - 1) <= ALLOWANCE * P)

  def step(carry: tuple) -> tuple:
    codes, known, passes, cache = carry
    index = jnp.minimum(known, P - 1)  # An image that is done repeats its last pass, until all are.
    fed = _take(codes, index - 1, window.size)
    drawn, cache = draw(fed, index, cache, ahead=window.size - 1)
    right = jnp.cumprod(fed[:, 1:] == drawn[:, : window.size - 1], axis=1).sum(axis=1)
    codes = _put(codes, drawn, index)
    return codes, jnp.minimum(index + 1 + right, P), passes + (known < P), cache

  known = jnp.ones((len(codes),), jnp.int32)
  carry = codes, known, known, cache
  for stop in stops:
    carry = *carry[:3], carry[3].cut([_slots(stop, window.size)])
    carry = jax.lax.while_loop(functools.partial(is_going, stop), step, carry)
  return carry


def _take(x: jax.Array, starts: jax.Array, size: int) -> jax.Array:
  """[N, M], int32[N] -> [N, size]."""
  return jax.vmap(lambda row, start: jax.lax.dynamic_slice_in_dim(row, start, size))(x, starts)


def _put(x: jax.Array, values: jax.Array, starts: jax.Array) -> jax.Array:
  """[N, M] with [N, size] from int32[N] on."""
  return jax.vmap(functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=0))(x, values, starts)
