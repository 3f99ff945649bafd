"""What rounding to int8 costs: how far a decoder is from the same one in full, at every position of the same text."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.benchmarking.inference import Prompts
from janus_jax.inference.decoder import Decoder, prompt_positions
from janus_jax.inference.generation import guided_logits


@functools.partial(jax.jit, static_argnames='guidance')
def code_logits(decoder: Decoder, tokens: jax.Array, mask: jax.Array, codes: jax.Array, guidance: float) -> jax.Array:
  """Of each code of an image when the ones before it are given.

  Args:
    decoder: weights.
    tokens: int32[R, T], as `inference.generation.generate_codes` takes them, one row for each image and kind.
    mask: bool[R, T], False on left padding.
    codes: int32[N, P].
    guidance: weight of classifier-free guidance, R = 2N; R = N for one kind of row (`image.has_guidance`).

  Returns:
    float32[N, P, C].
  """
  fed = jnp.tile(codes[:, :-1], (len(tokens) // len(codes), 1))
  hidden = _hidden(decoder, tokens, mask, decoder.method('embed_codes', fed))
  logits = decoder.method('image_logits', hidden)
  return jax.vmap(lambda position: guided_logits(position, guidance), 1, 1)(logits)


@jax.jit
def word_logits(
  decoder: Decoder, tokens: jax.Array, mask: jax.Array, pixels: jax.Array, answers: jax.Array
) -> jax.Array:
  """Of each token of an answer when the ones before it are given.

  Args:
    decoder: weights.
    tokens: int32[B, T], of questions.
    mask: bool[B, T], False on left padding.
    pixels: uint8[I, size, size, 3].
    answers: int32[B, n].

  Returns:
    float32[B, n, V].
  """
  fed = decoder.method('embed_text', answers[:, :-1])
  return decoder.method('text_logits', _hidden(decoder, tokens, mask, fed, pixels))


def _hidden(
  decoder: Decoder, tokens: jax.Array, mask: jax.Array, fed: jax.Array, pixels: jax.Array | None = None
) -> jax.Array:
  """[R, n, D]: what the n tokens after the prompts [R, T] are predicted from, of which all but the last are `fed`."""
  prompt = ('embed_text', tokens) if pixels is None else ('embed_prompt', tokens, pixels)
  x = jnp.concatenate([decoder.method(*prompt), fed], axis=1)
  mask = jnp.concatenate([jnp.asarray(mask), jnp.ones(fed.shape[:2], bool)], axis=1)
  cache = decoder.empty_cache((mask,), len(mask), ())
  hidden, _ = decoder.hidden(x, prompt_positions(mask), cache)
  return hidden[:, tokens.shape[1] - 1 :]


def of_codes(full: Decoder, rounded: Decoder, prompts: Prompts, codes: np.ndarray, guidance: float) -> dict:
  """`divergence` of the codes of images int32[N, P]."""
  asked = prompts.tokens, prompts.mask, codes, guidance
  return divergence(code_logits(full, *asked), code_logits(rounded, *asked))


def of_answers(full: Decoder, rounded: Decoder, prompts: Prompts, answers: np.ndarray) -> dict:
  """`divergence` of the tokens of answers int32[B, n]."""
  asked = prompts.tokens, prompts.mask, prompts.pixels, answers
  return divergence(word_logits(full, *asked), word_logits(rounded, *asked))


@jax.jit
def _divergence(full: jax.Array, rounded: jax.Array) -> tuple[jax.Array, jax.Array]:
  p, q = jax.nn.log_softmax(full), jax.nn.log_softmax(rounded)
  return jnp.sum(jnp.exp(p) * (p - q), axis=-1), jnp.argmax(full, axis=-1) == jnp.argmax(rounded, axis=-1)


def divergence(full: jax.Array, rounded: jax.Array) -> dict[str, Any]:
  """Of the distributions that logits [..., V] stand for.

  Returns:
    the Kullback-Leibler divergence in nats, mean and largest over positions, and at which share of the positions the
    likeliest is the same.
  """
  nats, same = _divergence(full, rounded)
  return {'kl_mean': float(nats.mean()), 'kl_max': float(nats.max()), 'same_likeliest': float(same.mean())}
