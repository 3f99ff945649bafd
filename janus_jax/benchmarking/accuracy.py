"""Cost of rounding to int8: the distance between a decoder and the same one in full, at every position of one text."""

import functools

import jax
import jax.numpy as jnp

from janus_jax.benchmarking.inference import Prompts
from janus_jax.inference.decoder import Decoder, prompt_positions
from janus_jax.inference.drawing import guided_logits


@functools.partial(jax.jit, static_argnames='guidance')
def code_logits(decoder: Decoder, prompts: Prompts, codes: jax.Array, guidance: float) -> jax.Array:
  """Logits float32[N, P, C] of each of an image's codes int32[N, P], given the ones before it."""
  fed = jnp.tile(codes[:, :-1], (len(prompts.tokens) // len(codes), 1))
  logits = decoder.method('image_logits', _hidden(decoder, prompts, decoder.method('embed_codes', fed)))
  return jax.vmap(lambda position: guided_logits(position, guidance), 1, 1)(logits)


@jax.jit
def answer_logits(decoder: Decoder, prompts: Prompts, answers: jax.Array) -> jax.Array:
  """Logits float32[B, n, V] of each token of answers int32[B, n], given the ones before it."""
  fed = decoder.method('embed_text', answers[:, :-1])
  return decoder.method('text_logits', _hidden(decoder, prompts, fed))


def _hidden(decoder: Decoder, prompts: Prompts, fed: jax.Array) -> jax.Array:
  """States [R, n, D] that predict the n tokens after the prompts [R, T]; `fed` embeds all of them but the last."""
  tokens, pixels = prompts.tokens, prompts.pixels
  prompt = ('embed_text', tokens) if pixels is None else ('embed_prompt', tokens, pixels)
  x = jnp.concatenate([decoder.method(*prompt), fed], axis=1)
  mask = jnp.concatenate([prompts.mask, jnp.ones(fed.shape[:2], bool)], axis=1)
  cache = decoder.empty_cache((mask,), len(mask), ())
  hidden, _ = decoder.hidden(x, prompt_positions(mask), cache)
  return hidden[:, tokens.shape[1] - 1 :]


@jax.jit
def _divergence(full: jax.Array, rounded: jax.Array) -> tuple[jax.Array, jax.Array]:
  p, q = jax.nn.log_softmax(full), jax.nn.log_softmax(rounded)
  return jnp.sum(jnp.exp(p) * (p - q), axis=-1), jnp.argmax(full, axis=-1) == jnp.argmax(rounded, axis=-1)


def divergence(full: jax.Array, rounded: jax.Array) -> dict[str, float]:
  """Divergence of the distributions of two sets of logits [..., V].

  Returns:
    the Kullback-Leibler divergence in nats, mean and largest over positions, and the fraction of positions whose
    likeliest is the same.
  """
  nats, same = _divergence(full, rounded)
  return {'kl_mean': float(nats.mean()), 'kl_max': float(nats.max()), 'same_likeliest': float(same.mean())}
