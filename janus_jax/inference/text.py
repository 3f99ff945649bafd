"""Answers: a prompt with any number of images to text tokens, in compiled chunks.

A chunk of steps is one compiled loop that ends early when every row has ended. Between chunks the host sees the new
tokens, so that text can be streamed; within one there is no traffic with the host.
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
class TextPrompts:
  """Prompts of B rows. A beginning that rows share, as questions about one image do, is run once for all of them.

  Attributes:
    tokens: int32[U, T], left-padded: the beginning that the prompts of B / U consecutive rows share; image placeholders
      hold `config.image_token_id`.
    mask: bool[U, T], False on left padding.
    pixels: uint8[I, size, size, 3] in the order `tokens` mention them, or None where they mention none.
    rest: the text after the beginning of each row's prompt: int32[B, S], left-padded, and bool[B, S], False on left
      padding. None where `tokens` are whole prompts: then there is one pass, not two.
  """

  tokens: jax.Array
  mask: jax.Array
  pixels: jax.Array | None = None
  rest: tuple[jax.Array, jax.Array] | None = None


@flax.struct.dataclass
class TextState:
  """State of generation between chunks."""

  cache: KVCache
  token: jax.Array  # int32[B], sampled last and not fed yet.
  position: jax.Array  # int32[B] of `token`.
  done: jax.Array  # bool[B], rows that have sampled an end-of-text token.
  step: jax.Array  # int32 scalar, how many tokens have been sampled.


@functools.partial(jax.jit, static_argnames=('max_new_tokens', 'sampling'), compiler_options=COMPILER_OPTIONS)
def prefill(
  decoder: Decoder, prompts: TextPrompts, keys: jax.Array, eos_id: jax.Array, *, max_new_tokens: int, sampling: Sampling
) -> TextState:
  """Runs the prompts and samples the first token of each row. Arguments as in `generate_text`."""
  tokens, mask, rest, B = prompts.tokens, prompts.mask, prompts.rest, len(keys)
  fed = max_new_tokens - 1  # The last token is sampled but never fed.
  blocks = [min(BLOCK, fed - start) for start in range(0, fed, BLOCK)]
  cache = decoder.empty_cache((mask,) if rest is None else (mask, rest[1]), B, blocks)
  embed = ('embed_text', tokens) if prompts.pixels is None else ('embed_prompt', tokens, prompts.pixels)
  positions = prompt_positions(mask)
  hidden, cache = decoder.hidden(decoder.method(*embed), positions, cache)
  hidden, after = (jnp.repeat(x[:, -1:], B // len(tokens), axis=0) for x in (hidden, positions + 1))
  if rest is not None:
    positions = after + prompt_positions(rest[1])
    hidden, cache = decoder.hidden(decoder.method('embed_text', rest[0]), positions, cache.writing(1))
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
    i, state, sampled = carry
    x = decoder.method('embed_text', state.token[:, None])
    hidden, cache = decoder.hidden(x, state.position[:, None], state.cache)
    token = sample(decoder.method('text_logits', hidden[:, -1]), keys, state.step, sampling)
    token = jnp.where(state.done, eos_id, token)
    done = state.done | (token == eos_id)
    return i + 1, TextState(cache, token, state.position + 1, done, state.step + 1), sampled.at[:, i].set(token)

  start = (jnp.zeros((), jnp.int32), state, jnp.full((B, steps), eos_id, jnp.int32))
  _, state, sampled = jax.lax.while_loop(going_on, step, start)
  return state, sampled


def generate_text(
  decoder: Decoder, prompts: TextPrompts, keys: jax.Array, *, eos_id: int, max_new_tokens: int, sampling: Sampling
) -> Iterator[np.ndarray]:
  """Yields the new tokens of all rows, int32[B, n], a chunk at a time; ends when every row has ended.

  A row that has ended goes on with `eos_id`. The cache has room for `max_new_tokens`; keys: key[B].
  """
  eos = jnp.asarray(eos_id, jnp.int32)
  state = prefill(decoder, prompts, keys, eos, max_new_tokens=max_new_tokens, sampling=sampling)
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
