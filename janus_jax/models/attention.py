"""Attention behind one call: causal by index, restricted to equal segments, grouped-query.

A mask is never materialised by callers. What may attend to what is said by segment ids (0 marks padding that nobody
reads) and by `causal`; packed examples, left-padded prompts and a partly filled cache are all expressed this way.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp


class KeyValueStore(Protocol):
  """What the decoder needs of a key/value cache; `inference/cache.py` implements it."""

  def extend(self, layer: jax.Array, k: jax.Array, v: jax.Array) -> tuple['KeyValueStore', Any]:
    """Writes k, v [B, T, K, H] of one layer at the current position.

    Returns the new store, and what the layer's queries read: anything with `attend(q) -> [B, T, N, H]`.
    """


def attention_mask(
  query_segments: jax.Array, key_segments: jax.Array, *, causal: bool, query_offset: jax.Array | int = 0
) -> jax.Array:
  """bool[B, T, S]: same segment, and (if causal) key index <= query_offset + query index."""
  mask = query_segments[:, :, None] == key_segments[:, None, :]
  if causal:
    query_index = jnp.arange(query_segments.shape[1])[:, None] + query_offset
    mask &= jnp.arange(key_segments.shape[1])[None, :] <= query_index
  return mask


def masked_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
  """softmax(q kᵀ / sqrt(H)) v with the softmax in float32.

  Args:
    q: [B, T, N, H].
    k: [B, S, K, H], K dividing N (query head n reads kv head n // (N / K)).
    v: [B, S, K, H].
    mask: bool[B, T, S] or None for no mask.

  Returns:
    [B, T, N, H] in q's dtype.
  """
  B, T, N, H = q.shape
  K = k.shape[2]
  grouped = q.reshape(B, T, K, N // K, H)
  scores = jnp.einsum('btkgh,bskh->bkgts', grouped, k, preferred_element_type=jnp.float32) * H**-0.5
  if mask is not None:
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  return jnp.einsum('bkgts,bskh->btkgh', weights, v).reshape(B, T, N, H)


def _xla(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None, causal: bool) -> jax.Array:
  if segments is None:
    segments = jnp.ones(q.shape[:2], jnp.int32)
    mask = attention_mask(segments, segments, causal=True) if causal else None
  else:
    mask = attention_mask(segments, segments, causal=causal)
  return masked_attention(q, k, v, mask)


IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {'xla': _xla}


def attention(
  q: jax.Array, k: jax.Array, v: jax.Array, *, segments: jax.Array | None, causal: bool, implementation: str
) -> jax.Array:
  """Self-attention of T positions among themselves.

  Args:
    q: [B, T, N, H].
    k: [B, T, K, H].
    v: [B, T, K, H].
    segments: int32[B, T]; positions attend only within their own segment. None: one segment.
    causal: whether a position attends only to itself and earlier ones.
    implementation: a key of IMPLEMENTATIONS.

  Returns:
    [B, T, N, H] in q's dtype.
  """
  return IMPLEMENTATIONS[implementation](q, k, v, segments, causal)
