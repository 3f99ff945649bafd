"""Text to image codes: one compiled program per shape, with classifier-free guidance (Janus paper section 3.4).

Conditional and unconditional rows run as one batch. Each step costs the decoder's layers and the image head only:
neither `lm_head` nor the token table is touched. Images of one prompt share it: it runs once, and is stored once.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp

from janus_jax.inference.cache import KVCache
from janus_jax.inference.decoder import COMPILER_OPTIONS, Decoder, prompt_positions
from janus_jax.inference.sampling import Sampling, sample

# The loop over codes is cut into this many loops, one per block of the cache, each reading the blocks filled so far.
# Reading all of it all the time would move 1.85 times the bytes (50 tokens of prompt); four blocks move 1.2 times.
NUM_BLOCKS = 4

Row = TypeVar('Row')


def has_guidance(guidance: float) -> bool:
  """Says whether both kinds of rows decide: weight 1 needs the conditional ones alone, 0 the unconditional ones."""
  return guidance not in (0.0, 1.0)


def guided_prompts(conditional: Sequence[Row], unconditional: Sequence[Row], guidance: float) -> list[Row]:
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


@functools.partial(jax.jit, static_argnames=('guidance', 'sampling'), compiler_options=COMPILER_OPTIONS)
def generate_codes(
  decoder: Decoder, tokens: jax.Array, mask: jax.Array, keys: jax.Array, *, guidance: float, sampling: Sampling
) -> jax.Array:
  """Samples the codes of N images, int32[N, P].

  Args:
    decoder: weights (`make_decoder`).
    tokens: int32[R, T], U prompts that end in `<begin_of_image>`, left-padded, each of N / U consecutive images. With
      guidance R = 2U, the conditional prompts first and then their unconditional counterparts
      (`data.prompts.unconditional_ids`) in the same order; else R = U (`guided_prompts`).
    mask: bool[R, T], False on left padding.
    keys: key[N], one per image (`sampling.row_key`).
    guidance: weight.
    sampling: how codes are chosen.
  """
  P = decoder.config.vq.num_tokens
  rows_per_image = 2 if has_guidance(guidance) else 1
  rows = rows_per_image * len(keys)
  # Codes 0 to P - 2 are fed, in steps 1 to P - 1; the last one is sampled but never fed.
  bounds = [1 + (P - 1) * block // NUM_BLOCKS for block in range(NUM_BLOCKS + 1)]
  sizes = [stop - start for start, stop in itertools.pairwise(bounds) if start < stop]
  cache = decoder.empty_cache((mask,), rows, sizes)

  def next_codes(hidden: jax.Array, step: jax.Array | int) -> jax.Array:
    logits = decoder.method('image_logits', hidden[:, -1])
    return sample(guided_logits(logits, guidance), keys, step, sampling)

  positions = prompt_positions(mask)
  hidden, cache = decoder.hidden(decoder.method('embed_text', tokens), positions, cache)
  hidden, last = (jnp.repeat(x[:, -1:], rows // len(tokens), axis=0) for x in (hidden, positions))
  first = next_codes(hidden, 0)
  codes = jnp.zeros((P, len(first)), jnp.int32).at[0].set(first)

  def step(i: jax.Array, carry: tuple[jax.Array, KVCache]) -> tuple[jax.Array, KVCache]:
    codes, cache = carry
    x = decoder.method('embed_codes', codes[i - 1][:, None])
    hidden, cache = decoder.hidden(jnp.tile(x, (rows_per_image, 1, 1)), last + i, cache)
    return codes.at[i].set(next_codes(hidden, i)), cache

  stops = itertools.accumulate(cache.generated_blocks, initial=1)
  for block, (start, stop) in enumerate(itertools.pairwise(stops), start=1):
    codes, cache = jax.lax.fori_loop(start, min(stop, P), step, (codes, cache.writing(block)))
  return codes.T
