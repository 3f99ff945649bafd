"""Cuts requests of unequal size into batches of few shapes, because every shape compiles anew.

Requests that begin alike share what they begin with: a batch has some prompts and equally many rows of each.
"""

import collections
import dataclasses
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from janus_jax.inference.decoder import Decoder

LENGTH_MULTIPLE = 32  # Prompts are padded to multiples of this; left padding is masked, so it costs time only.
FALLBACK_BATCH_SIZE = 4  # Where the device does not tell its memory, as CPUs do not.
MAX_BATCH_SIZE = 128  # Beyond this the cache, not the weights, is what a step reads, and rows no longer get cheaper.
# Cost of a decode step beside its rows, in tokens of a prompt, roughly: it reads all weights. Less on CPUs, more on
# accelerators.
STEP_TOKENS = 32
MEMORY_FRACTION = 0.5  # Of the free memory, for the cache; the rest is for activations and fragmentation.


@dataclasses.dataclass(frozen=True)
class Group:
  """Requests that begin alike. Groups with equal sizes and equally many images run together.

  Attributes:
    members: indices of the requests.
    shared: tokens they begin with, padded.
    rest: tokens after them of each request, padded; 0 where requests begin and end alike.
    images: number of images in what they begin with.
  """

  members: tuple[int, ...]
  shared: int
  rest: int = 0
  images: int = 0


@dataclasses.dataclass(frozen=True)
class RequestBatch:
  """Requests that run together."""

  rows: tuple[int, ...]  # The request of each.
  rows_per_prompt: int  # So many consecutive rows begin alike.

  @property
  def row_of(self) -> dict[int, int]:
    """The first row of each request; results of other rows are to be dropped."""
    return {index: self.rows.index(index) for index in self.rows}


def bucket_length(length: int) -> int:
  """The padded length of a prompt."""
  return -(-length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE


def plan_batches(groups: Sequence[Group], batch_size: int, output: int) -> list[RequestBatch]:
  """Cuts groups into parts of one size, and puts as many into a batch as there is room for, alike for one shape.

  Args:
    groups: hold every request once.
    batch_size: at most this many rows in a batch.
    output: tokens that a row is expected to generate; weighed against those of the prompts.

  Returns:
    batches, in order of each shape's first appearance. To fill rows, the last request of a part and the last part of a
    batch are repeated.
  """
  shapes = collections.defaultdict(list)
  for group in groups:
    shapes[group.shared, group.rest, group.images].append(group.members)
  batches = []
  for (shared, rest, _), found in shapes.items():
    size, prompts = _cheapest_cut([len(members) for members in found], batch_size, (shared, rest, output))
    parts = [members[i : i + size] for members in found for i in range(0, len(members), size)]
    parts = [part + part[-1:] * (size - len(part)) for part in parts]
    for start in range(0, len(parts), prompts):
      filled = parts[start : start + prompts]
      filled += filled[-1:] * (prompts - len(filled))
      batches.append(RequestBatch(tuple(itertools.chain(*filled)), size))
  return batches


def _cheapest_cut(sizes: Sequence[int], batch_size: int, tokens: tuple[int, int, int]) -> tuple[int, int]:
  """Rows per prompt and prompts per batch that cost least, for groups of so many requests.

  Many rows per prompt share more, but leave more rows of the smaller groups to be filled. `tokens` are those run once
  per prompt, run after them for each row, and generated, in as many steps.
  """
  shared, rest, output = tokens
  cuts = []
  for part in range(1, min(batch_size, max(sizes)) + 1):
    parts = sum(-(-size // part) for size in sizes)
    # As many batches as needed and then as small as possible: 10 requests at 8 give 5 + 5, not 8 + 2 padded to 8.
    count = -(-parts // (batch_size // part))
    prompts = -(-parts // count)
    rows = prompts * part
    cost = count * (prompts * shared + rows * rest + output * (STEP_TOKENS + rows))
    cuts.append((cost, -part, prompts))  # Of equal costs, the one whose rows share most.
  _, part, prompts = min(cuts)
  return -part, prompts


def device_batch_size(decoder: Decoder, groups: Sequence[Group], output: int, rows: int = 1) -> int:
  """The number of requests that fit the default device together, after the parameters are in place.

  An estimate from the size of the key/value cache; results do not depend on it. A request has so many rows (2 with
  guidance) and generates at most `output` tokens.
  """
  stats = jax.local_devices()[0].memory_stats() or {}
  if 'bytes_limit' not in stats:
    return FALLBACK_BATCH_SIZE
  llama = decoder.config.language_model
  slots = max((group.shared + group.rest for group in groups), default=0) + output
  needed = (
    rows * slots * 2 * llama.depth * llama.num_kv_heads * llama.head_dim * jnp.dtype(decoder.cache_dtype).itemsize
  )
  free = stats['bytes_limit'] - stats.get('bytes_in_use', 0)
  return min(max(int(free * MEMORY_FRACTION / needed), 1), MAX_BATCH_SIZE)
