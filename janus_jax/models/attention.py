"""Attention behind one call: causal by index, restricted to equal segments, grouped-query, on one device or a mesh.

A mask is never materialised by callers. What may attend to what is said by segment ids (0 marks padding that nobody
reads) and by `causal`; packed examples, left-padded prompts and a partly filled cache are all expressed this way.
"""

from typing import Any, Protocol

import jax
from jax.sharding import NamedSharding, PartitionSpec

from janus_jax.errors import InputError
from janus_jax.models.attention_accelerators import (
  cudnn_attention,
  pallas_attention,
  splash_attention,
  splash_kernel,
  tokamax_attention,
)
from janus_jax.models.attention_kernels import chunked_attention, masked_attention, plain_attention
from janus_jax.models.config import Layout

__all__ = ['IMPLEMENTATIONS', 'KeyValueStore', 'attention', 'masked_attention']

# Of a TPU: splash. Of NVIDIA's GPUs, whole sequences only: the last three.
WHOLE = ('cudnn', 'pallas', 'tokamax')
IMPLEMENTATIONS = ('xla', 'chunked', 'splash', *WHOLE)


class KeyValueStore(Protocol):
  """What the decoder needs of a key/value cache; `inference/cache.py` implements it."""

  def attend(self, layer: Any, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, 'KeyValueStore']:
    """Writes k, v [B, T, K, H] of one layer at the current position; then q [B, T, N, H] attend to what is stored.

    Returns [B, T, N, H] in q's dtype, and the new store.
    """


def attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  segments: jax.Array | None,
  causal: bool,
  implementation: str,
  layout: Layout | None = None,
  names: tuple[str, str] = ('queries', 'keys'),
  interpret: bool = False,
) -> jax.Array:
  """Self-attention of T positions among themselves.

  On a mesh each device computes for the queries and heads it holds, with all keys of its rows: where the layout splits
  the sequence, keys and values are gathered.

  Args:
    q: [B, T, N, H].
    k: [B, T, K, H].
    v: [B, T, K, H].
    segments: int32[B, T], not negative, each lying together; positions attend only within their own segment. None: one
      segment.
    causal: whether a position attends only to itself and earlier ones.
    implementation: one of IMPLEMENTATIONS; `attention_choice.choose` knows which fit.
    layout: where q, k and v lie; None for one device, or to leave it to XLA.
    names: of the layout, for q (and the result), and for k and v.
    interpret: whether to interpret splash or the Pallas kernel, on any device: slow, for tests.

  Returns:
    [B, T, N, H] in q's dtype.

  Raises:
    InputError: another implementation.
  """
  if implementation not in IMPLEMENTATIONS:
    raise InputError(f'attention is {implementation!r}: expected one of {", ".join(IMPLEMENTATIONS)}')
  if layout is None or layout.mesh.size == 1:
    plan = _plan(implementation, q.shape[2], q.shape[1], causal, 1, interpret)
    return _on_one_device(implementation, plan, q, k, v, segments, segments, causal, None, interpret)
  mesh, query_spec, key_spec = layout.mesh, layout.spec(names[0], q.shape), layout.spec(names[1], k.shape)
  _, held, heads, _ = NamedSharding(mesh, query_spec).shard_shape(q.shape)
  axis, parts = query_spec[1], q.shape[1] // held
  plan = _plan(implementation, heads, q.shape[1], causal, parts, interpret)

  def on_its_device(plan, q, k, v, query_segments, key_segments):
    offset = None if parts == 1 else jax.lax.axis_index(axis) * held
    return _on_one_device(implementation, plan, q, k, v, query_segments, key_segments, causal, offset, interpret)

  specs = (query_spec, key_spec, key_spec, PartitionSpec(*query_spec[:2]), PartitionSpec(*key_spec[:2]))
  plan_spec = None if plan is None else plan.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(None, axis)))
  # Pallas kernels do not say over which axes their results vary, so that it cannot be checked.
  sharded = jax.shard_map(on_its_device, mesh=mesh, in_specs=(plan_spec, *specs), out_specs=query_spec, check_vma=False)
  return sharded(plan, q, k, v, segments, segments)


def _plan(implementation: str, heads: int, length: int, causal: bool, parts: int, interpret: bool) -> Any:
  """What splash needs to know before it sees values; None for the others."""
  if implementation != 'splash':
    return None
  return splash_kernel(heads, length, length, causal=causal, parts=parts, interpret=interpret)


def _on_one_device(
  implementation: str,
  plan: Any,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  query_segments: jax.Array | None,
  key_segments: jax.Array | None,
  causal: bool,
  offset: jax.Array | None,
  interpret: bool,
) -> jax.Array:
  """For the queries that a device holds; `offset` is the index of the first, None if it holds all of its rows."""
  operands = (q, k, v, query_segments, key_segments)
  if implementation == 'splash':
    return splash_attention(*operands, kernel=plan)
  if implementation in WHOLE:
    if offset is not None:
      raise InputError(f'attention is {implementation!r}: expected another where a mesh splits the sequence')
    if implementation == 'cudnn':
      return cudnn_attention(*operands, causal=causal)
    if implementation == 'pallas':
      return pallas_attention(q, k, v, query_segments, causal=causal, interpret=interpret)
    return tokamax_attention(q, k, v, query_segments, causal=causal)
  kernel = chunked_attention if implementation == 'chunked' else plain_attention
  return kernel(*operands, causal=causal, offset=offset)
