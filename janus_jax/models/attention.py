"""Attention behind one call: causal by index, restricted to equal segments, grouped-query, on one device or a mesh.

A mask is never materialised by callers. What may attend to what is said by segment ids (0 marks padding that nobody
reads) and by `causal`; packed examples, left-padded prompts and a partly filled cache are all expressed this way.
"""

import functools
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
from janus_jax.models.attention_kernels import Operands, chunked_attention, masked_attention, plain_attention
from janus_jax.models.config import Layout

__all__ = ['IMPLEMENTATIONS', 'KeyValueStore', 'attention', 'masked_attention']

# splash runs on TPUs, the last three on NVIDIA's GPUs and over whole sequences only.
WHOLE = ('cudnn', 'pallas', 'tokamax')
IMPLEMENTATIONS = ('xla', 'chunked', 'splash', *WHOLE)


class KeyValueStore(Protocol):
  """A key/value cache as the decoder uses it; `inference/cache.py` implements it."""

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
    segments: int32[B, T], not negative, each lying together; positions attend within their own. None: one segment.
    causal: whether a position attends only to itself and earlier ones.
    implementation: one of IMPLEMENTATIONS; `attention_choice.choose` knows which fit.
    layout: splits of q, k and v; None for one device, or to leave it to XLA.
    names: the layout's names for q (and the result), and for k and v.
    interpret: whether to interpret splash or the Pallas kernel, on any device: slow, for tests.

  Returns:
    [B, T, N, H] in q's dtype.

  Raises:
    InputError: another implementation.
  """
  if implementation not in IMPLEMENTATIONS:
    raise InputError(f'attention is {implementation!r}: expected one of {", ".join(IMPLEMENTATIONS)}')
  operands, length = Operands(q, k, v, segments, segments), q.shape[1]
  run = functools.partial(_on_one_device, implementation, causal=causal, interpret=interpret)
  splash = functools.partial(splash_kernel, length=length, causal=causal, interpret=interpret)
  is_splash = implementation == 'splash'
  if layout is None or layout.mesh.size == 1:
    return run(splash(q.shape[2]) if is_splash else None, operands, None)
  mesh, query_spec, key_spec = layout.mesh, layout.spec(names[0], q.shape), layout.spec(names[1], k.shape)
  _, held, heads, _ = NamedSharding(mesh, query_spec).shard_shape(q.shape)
  axis, parts = query_spec[1], length // held
  kernel = splash(heads, parts=parts) if is_splash else None
  kernel_spec = kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(None, axis))) if is_splash else None

  def on_its_device(kernel, operands):
    return run(kernel, operands, None if parts == 1 else jax.lax.axis_index(axis) * held)

  specs = Operands(query_spec, key_spec, key_spec, PartitionSpec(*query_spec[:2]), PartitionSpec(*key_spec[:2]))
  # Pallas kernels do not say over which axes their results vary, so that it cannot be checked.
  sharded = jax.shard_map(
    on_its_device, mesh=mesh, in_specs=(kernel_spec, specs), out_specs=query_spec, check_vma=False
  )
  return sharded(kernel, operands)


def _on_one_device(
  implementation: str, kernel: Any, operands: Operands, offset: jax.Array | None, *, causal: bool, interpret: bool
) -> jax.Array:
  """Attention of the queries that a device holds; `offset` is the index of the first, None if it holds whole rows."""
  if implementation == 'splash':
    return splash_attention(operands, kernel=kernel)
  if implementation in WHOLE and offset is not None:
    raise InputError(f'attention is {implementation!r}: expected another where a mesh splits the sequence')
  match implementation:
    case 'cudnn':
      return cudnn_attention(operands, causal=causal)
    case 'pallas':
      return pallas_attention(operands, causal=causal, interpret=interpret)
    case 'tokamax':
      return tokamax_attention(operands, causal=causal)
  in_jax = chunked_attention if implementation == 'chunked' else plain_attention
  return in_jax(operands, causal=causal, offset=0 if offset is None else offset)
