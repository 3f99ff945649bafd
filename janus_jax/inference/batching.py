"""Cuts requests of unequal size into batches of few shapes, because every shape compiles anew.

Requests that begin alike share what they begin with: a batch has some prompts and equally many rows of each.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from janus_jax.models.config import LlamaConfig

LENGTH_MULTIPLE = 32  # Prompts are padded to multiples of this; left padding is masked, so it costs time only.
FALLBACK_BATCH_SIZE = 4  # Where the device does not tell its memory, as CPUs do not.
MAX_BATCH_SIZE = 128  # Beyond this the cache, not the weights, is what a step reads, and rows no longer get cheaper.
# What a decode step costs beside its rows, in tokens of a prompt, roughly: it reads all weights. Less on CPUs, more on
# accelerators.
STEP_TOKENS = 32
# Share of the free memory to plan for; the rest is for activations and fragmentation.
MEMORY_SHARE = 0.5


@dataclasses.dataclass(frozen=True)
class Group:
  """Requests that begin alike. Groups with equal sizes and equally many images run together.

  Attributes:
    members: indices of the requests.
    shared: tokens they begin with, padded.
    rest: tokens after them of each request, padded; 0 where requests begin and end alike.
    images: in what they begin with.
  """

  members: tuple[int, ...]
  shared: int
  rest: int = 0
  images: int = 0


@dataclasses.dataclass(frozen=True)
class Batch:
  """Requests that run together.

  Attributes:
    parts: requests per prompt: at least one and at most `share` that begin alike.
    prompts: of the compiled program; at least len(parts).
    share: rows of each prompt.
  """

  parts: tuple[tuple[int, ...], ...]
  prompts: int
  share: int

  @property
  def rows(self) -> tuple[int, ...]:
    """The request of each of the prompts * share rows. To fill them, the last request of a part and the last part are
    repeated.
    """
    parts = self.parts + self.parts[-1:] * (self.prompts - len(self.parts))
    return tuple(index for part in parts for index in part + part[-1:] * (self.share - len(part)))

  @property
  def places(self) -> dict[int, int]:
    """The row of each request; results of other rows are to be dropped."""
    return {index: self.rows.index(index) for part in self.parts for index in part}


def bucket_length(length: int) -> int:
  """The padded length of a prompt."""
  return -(-length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE


def plan_batches(groups: Sequence[Group], batch_size: int, output: int) -> list[Batch]:
  """Cuts groups into parts of one size, and puts as many into a batch as there is room for, alike for one shape.

  Args:
    groups: hold every request once.
    batch_size: at most this many rows in a batch.
    output: tokens that a row is expected to generate; weighed against those of the prompts.

  Returns:
    batches that together hold every request once, in order of each shape's first appearance.
  """
  alike: dict[tuple[int, int, int], list[Group]] = {}
  for group in groups:
    alike.setdefault((group.shared, group.rest, group.images), []).append(group)
  batches = []
  for (shared, rest, _), found in alike.items():
    sizes = [len(group.members) for group in found]
    share, count, prompts = _cheapest_cut(sizes, batch_size, shared, rest, output)
    parts = [group.members[i : i + share] for group in found for i in range(0, len(group.members), share)]
    batches += [Batch(tuple(parts[i * prompts : (i + 1) * prompts]), prompts, share) for i in range(count)]
  return batches


def _cheapest_cut(sizes: Sequence[int], batch_size: int, shared: int, rest: int, output: int) -> tuple[int, int, int]:
  """Rows per prompt, batches, and prompts per batch that cost least, padding rows included.

  Many rows per prompt share more, but leave more rows of the smaller groups empty.

  Args:
    sizes: requests of each group.
    batch_size: at most this many rows in a batch.
    shared: tokens run once per prompt.
    rest: tokens of its prompt run for each row.
    output: tokens generated, in as many steps.
  """

  def cut(share: int) -> tuple[int, int, int]:
    parts = sum(-(-size // share) for size in sizes)
    # As many batches as needed and then as small as possible: 10 requests at 8 give 5 + 5, not 8 + 2 padded to 8.
    count = -(-parts // (batch_size // share))
    return share, count, -(-parts // count)

  def cost(plan: tuple[int, int, int]) -> int:
    share, count, prompts = plan
    rows = prompts * share
    return count * (prompts * shared + rows * rest + output * (STEP_TOKENS + rows))

  shares = range(min(batch_size, max(sizes)), 0, -1)  # The first of equals is taken: that which shares most.
  return min(map(cut, shares), key=cost)


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
