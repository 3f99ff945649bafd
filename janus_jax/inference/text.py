"""Answers: a prompt with any number of images to text tokens, in compiled chunks.

A chunk of steps is one compiled loop that ends early when every row has ended. Between chunks the host sees the new
tokens, so that text can be streamed; within one there is no traffic with the host.

Rows whose prompts begin alike, as questions about one image do, have that beginning run once for all of them.
"""

import functools
from collections.abc import Iterator

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.inference.cache import KVCache
from janus_jax.inference.decoder import COMPILER_OPTIONS, Decoder, prompt_positions
from janus_jax.inference.sampling import Sampling, sample

CHUNK = 32  # Steps per compiled call.
# Slots per block of the cache after the prompt: what is read grows by this much, and so do the loops to compile. A
# multiple of CHUNK, so that a chunk writes into one block.
BLOCK = 4 * CHUNK


@flax.struct.dataclass
class TextState:
  """Where generation stands.

  Attributes:
    cache: keys and values so far.
    token: int32[B], drawn last and not fed yet.
    position: int32[B], where `token` goes.
    done: bool[B], rows that have drawn an end-of-text token.
    step: int32 scalar, how many tokens have been drawn.
  """

  cache: KVCache
  token: jax.Array
  position: jax.Array
  done: jax.Array
  step: jax.Array


@functools.partial(jax.jit, static_argnames=('max_new_tokens', 'sampling'), compiler_options=COMPILER_OPTIONS)
def prefill(
  decoder: Decoder,
  tokens: jax.Array,
  mask: jax.Array,
  pixels: jax.Array | None,
  keys: jax.Array,
  eos_id: jax.Array,
  *,
  max_new_tokens: int,
  sampling: Sampling,
  rest: tuple[jax.Array, jax.Array] | None = None,
) -> TextState:
  """Runs the prompts and draws the first token of each row.

  Args:
    decoder: weights.
    tokens: int32[U, T], left-padded, what the prompts of B / U consecutive rows each begin with; image placeholders
      hold `config.image_token_id`.
    mask: bool[U, T], False on left padding.
    pixels: uint8[I, size, size, 3] in the order `tokens` mention them, or None where they mention none.
    keys: key[B].
    eos_id: int32 scalar.
    max_new_tokens: the longest answer, which the cache makes room for.
    sampling: how tokens are chosen.
    rest: what each row's prompt goes on with, without images: int32[B, S], left-padded, and bool[B, S], False on left
      padding. None where `tokens` are whole prompts: then there is one pass, not two.
  """
  fed = max_new_tokens - 1  # The last token is drawn but never fed.
  blocks = [min(BLOCK, fed - start) for start in range(0, fed, BLOCK)]
  masks = (mask,) if rest is None else (mask, rest[1])
  B = len(keys)
  cache = decoder.empty_cache(masks, B, blocks)
  embed = ('embed_text', tokens) if pixels is None else ('embed_prompt', tokens, pixels)
  positions = prompt_positions(mask)
  hidden, cache = decoder.hidden(decoder.method(*embed), positions, cache)
  hidden, after = (jnp.repeat(x[:, -1:], B // len(tokens), axis=0) for x in (hidden, positions + 1))
  if rest is not None:
    rest_tokens, rest_mask = rest
    positions = after + prompt_positions(rest_mask)
    hidden, cache = decoder.hidden(decoder.method('embed_text', rest_tokens), positions, cache.writing(1))
    after = positions[:, -1:] + 1
  token = sample(decoder.method('text_logits', hidden[:, -1]), keys, 0, sampling)
  return TextState(cache, token, after[:, 0], token == eos_id, jnp.ones((), jnp.int32))


@functools.partial(
  jax.jit, static_argnames=('steps', 'sampling'), donate_argnames=('state',), compiler_options=COMPILER_OPTIONS
)
def decode_chunk(
  decoder: Decoder, state: TextState, keys: jax.Array, eos_id: jax.Array, *, steps: int, sampling: Sampling
) -> tuple[TextState, jax.Array]:
  """Up to `steps` more tokens. Returns the new state and int32[B, steps]; after a row's end it holds `eos_id`."""
  B = len(state.token)

  def going_on(carry: tuple[jax.Array, TextState, jax.Array]) -> jax.Array:
    i, state, _ = carry
    return (i < steps) & ~state.done.all()

  def step(carry: tuple[jax.Array, TextState, jax.Array]) -> tuple[jax.Array, TextState, jax.Array]:
    i, state, drawn = carry
    x = decoder.method('embed_text', state.token[:, None])
    hidden, cache = decoder.hidden(x, state.position[:, None], state.cache)
    token = sample(decoder.method('text_logits', hidden[:, -1]), keys, state.step, sampling)
    token = jnp.where(state.done, eos_id, token)
    done = state.done | (token == eos_id)
    return i + 1, TextState(cache, token, state.position + 1, done, state.step + 1), drawn.at[:, i].set(token)

  start = (jnp.zeros((), jnp.int32), state, jnp.full((B, steps), eos_id, jnp.int32))
  _, state, drawn = jax.lax.while_loop(going_on, step, start)
  return state, drawn


def generate_text(
  decoder: Decoder,
  tokens: np.ndarray,
  mask: np.ndarray,
  pixels: np.ndarray | None,
  keys: jax.Array,
  *,
  eos_id: int,
  max_new_tokens: int,
  sampling: Sampling,
  rest: tuple[np.ndarray, np.ndarray] | None = None,
) -> Iterator[np.ndarray]:
  """Yields the new tokens of all rows, int32[B, n], a chunk at a time; ends when every row has ended.

  A row that has ended goes on with `eos_id`. Arguments as in `prefill`.
  """
  eos = jnp.asarray(eos_id, jnp.int32)
  settings = {'max_new_tokens': max_new_tokens, 'sampling': sampling, 'rest': rest}
  state = prefill(decoder, tokens, mask, pixels, keys, eos, **settings)
  prompt_blocks = len(state.cache.prompt_masks)
  yield np.asarray(state.token)[:, None]
  for fed in range(0, max_new_tokens - 1, CHUNK):
    if np.asarray(state.done).all():
      return
    block = min(fed // BLOCK, len(state.cache.generated_blocks) - 1)
    state = state.replace(cache=state.cache.writing(prompt_blocks + block))
    steps = min(CHUNK, max_new_tokens - 1 - fed)
    state, chunk = decode_chunk(decoder, state, keys, eos, steps=steps, sampling=sampling)
    yield np.asarray(chunk)
