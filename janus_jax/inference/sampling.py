"""Tokens from logits: greedy, temperature, top-k, top-p.

Randomness is per row: what is sampled for a row does not depend on what else is in its batch.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from janus_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Rule by which the next token, of text or of an image, is chosen.

  Attributes:
    temperature: divides the logits; 0 takes the most likely token.
    top_k: only the k most likely tokens (ties with the k-th stay, as in transformers); 0 keeps all.
    top_p: only the most likely tokens that together reach this probability, at least one; 1 keeps all.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0

  def __post_init__(self):
    if not 0 <= self.temperature < math.inf:  # NaN fails every comparison.
      raise InputError(f'temperature is {self.temperature}: expected 0 (greedy) or more, and finite')
    if self.top_k < 0:
      raise InputError(f'top_k is {self.top_k}: expected 0 (all) or more')
    if not 0 < self.top_p <= 1:
      raise InputError(f'top_p is {self.top_p}: expected more than 0 and at most 1')


def row_key(seed: int, *indices: int) -> jax.Array:
  """The key of one row, e.g. (seed, prompt index, image index): the same wherever and with whomever it runs."""
  key = jax.random.key(seed)
  for index in indices:
    key = jax.random.fold_in(key, index)
  return key


def filter_logits(logits: jax.Array, sampling: Sampling) -> jax.Array:
  """float32[B, V] with temperature applied and excluded tokens at -inf. Order: temperature, top-k, top-p."""
  logits = logits / sampling.temperature
  if 0 < sampling.top_k < logits.shape[-1]:
    kth = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
    logits = jnp.where(logits < kth - _slack(logits), -jnp.inf, logits)
  if sampling.top_p < 1:
    order = jnp.argsort(logits, axis=-1, descending=True)
    ranked = jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), order, axis=-1)
    # A token stays while those before it have not reached top_p yet; so the first always does.
    stays = jnp.cumsum(ranked, axis=-1) - ranked < sampling.top_p
    keep = jnp.zeros_like(stays).at[jnp.arange(len(logits))[:, None], order].set(stays)
    logits = jnp.where(keep, logits, -jnp.inf)
  return logits


def sample(logits: jax.Array, keys: jax.Array, step: jax.Array | int, sampling: Sampling) -> jax.Array:
  """int32[B], a token for each row of float32[B, V] by its key of key[B] (`row_key`), independent at every step.

  `step` is one for all rows, or int32[B]. A row's noise depends on its key and step alone.
  """
  if sampling.temperature == 0:
    return _argmax(logits)
  keys = jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(step, keys.shape))
  noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
  # The largest sum of logit and Gumbel noise is a sample of the softmax, as in `jax.random.categorical`. Apart by a
  # barrier: XLA's CPU backend would make the noise within the search for it, one number at a time.
  return _argmax(filter_logits(logits, sampling) + jax.lax.optimization_barrier(noise))


def _argmax(x: jax.Array) -> jax.Array:
  """int32[B], the first of the largest in each row [B, V].

  In two reductions, which XLA's CPU backend vectorises, as it does not vectorise `jnp.argmax`: 4 times as fast.
  """
  last = x.shape[-1] - 1
  least = jnp.max(x, axis=-1, keepdims=True) - _slack(x)
  # NaN is not larger than anything; the row is lost, but its token has to be one.
  return jnp.min(jnp.where(x >= least, jnp.arange(last + 1), last), axis=-1).astype(jnp.int32)


def _slack(x: jax.Array) -> jax.Array:
  """float32[B, 1], by how much x [B, V] may differ from itself.

  XLA may compute it twice, for a reduction and for what is compared with the result, and round the copies apart: then
  nothing would equal the largest, and the k-th would be below itself.
  """
  largest = jnp.max(jnp.where(jnp.isfinite(x), jnp.abs(x), 0), axis=-1, keepdims=True)
  return 8 * jnp.finfo(jnp.float32).eps * largest
