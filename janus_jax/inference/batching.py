"""Cuts requests of unequal size into batches of few shapes, because every shape compiles anew."""

import dataclasses
from collections.abc import Hashable, Sequence

import jax
import jax.numpy as jnp

from janus_jax.models.config import LlamaConfig

LENGTH_MULTIPLE = 32  # Prompts are padded to multiples of this; left padding is masked, so it costs time only.
FALLBACK_BATCH_SIZE = 4  # Where the device does not tell its memory, as CPUs do not.
MAX_BATCH_SIZE = 64  # Beyond this a decode step no longer gets cheaper per row on current accelerators.
# Share of the free memory to plan for; the rest is for activations and fragmentation.
MEMORY_SHARE = 0.5


@dataclasses.dataclass(frozen=True)
class Batch:
  """Requests that run together.

  Attributes:
    members: indices of the requests.
    size: rows of the compiled program; at least len(members).
  """

  members: tuple[int, ...]
  size: int

  @property
  def rows(self) -> tuple[int, ...]:
    """`size` indices: the members, the last one repeated; results past the members are to be dropped."""
    return self.members + self.members[-1:] * (self.size - len(self.members))


def bucket_length(length: int) -> int:
  """The padded length of a prompt."""
  return -(-length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE


def plan_batches(shapes: Sequence[Hashable], batch_size: int) -> list[Batch]:
  """Groups requests of equal shape, cut into batches that all have one size per shape.

  Args:
    shapes: per request, whatever decides the shape of its arrays, e.g. its padded length.
    batch_size: at most this many requests in a batch.

  Returns:
    batches that together hold every request once, in order of each shape's first appearance.
  """
  groups: dict[Hashable, list[int]] = {}
  for index, shape in enumerate(shapes):
    groups.setdefault(shape, []).append(index)
  batches = []
  for members in groups.values():
    # As many batches as needed and then as small as possible: 10 requests at 8 give 5 + 5, not 8 + 2 padded to 8.
    count = -(-len(members) // batch_size)
    size = -(-len(members) // count)
    batches += [Batch(tuple(members[i : i + size]), size) for i in range(0, len(members), size)]
  return batches


def device_batch_size(config: LlamaConfig, *, rows: int, slots: int, dtype: str) -> int:
  """How many requests fit the default device together, after the parameters are in place.

  An estimate from the size of the key/value cache; results do not depend on it.

  Args:
    config: of the decoder.
    rows: of the batch per request (2 with guidance).
    slots: of the cache per row, prompt and output together.
    dtype: of keys and values.
  """
  stats = jax.local_devices()[0].memory_stats() or {}
  if 'bytes_limit' not in stats:
    return FALLBACK_BATCH_SIZE
  needed = rows * slots * 2 * config.depth * config.num_kv_heads * config.head_dim * jnp.dtype(dtype).itemsize
  free = stats['bytes_limit'] - stats.get('bytes_in_use', 0)
  return min(max(int(free * MEMORY_SHARE / needed), 1), MAX_BATCH_SIZE)
