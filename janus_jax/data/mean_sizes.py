"""Mean sizes of the examples of mixtures, by which a batch has room for as many images as it will hold."""

import collections
import concurrent.futures
import functools
import math
from collections.abc import Mapping, Sequence

import grain
import numpy as np

from janus_jax.data.examples import ExampleSpec
from janus_jax.data.mixture import make_mixture, source_shares
from janus_jax.data.packing import MeanSize, size_of
from janus_jax.data.pipeline import open_views
from janus_jax.data.workers import TASK, Reading
from janus_jax.errors import InputError

# Records from which the mean size of a mixture's examples is measured, and of each of its sources at least.
MEASURED, MEASURED_PER_SOURCE = 512, 64


def mean_sizes(
  sources: Mapping[str, Mapping[str, grain.MapDataset]],
  mixtures: Sequence[tuple[Sequence[int], Mapping[str, Mapping[str, int]]]],
  spec: ExampleSpec,
  seed: int,
) -> list[MeanSize]:
  """Measures the mean size of the examples of mixtures, each source once, on its first records.

  Args:
    sources: as in `batches`.
    mixtures: ratio and weights of each, as in `make_mixture`.
    spec: how records become examples.
    seed: decides the order.

  Raises:
    InputError: what `batches` and `make_mixture` raise; a source of which none of those records can be used.
  """
  fractions = [source_shares(make_mixture(ratio, weights)) for ratio, weights in mixtures]
  counts = collections.defaultdict(lambda: MEASURED_PER_SOURCE)
  for found in fractions:
    for key, fraction in found.items():
      counts[key] = max(counts[key], math.ceil(MEASURED * fraction))
  reading = Reading(open_views(counts, sources, seed), spec, seed, guidance_dropout=0.0)
  with concurrent.futures.ThreadPoolExecutor(TASK) as threads:
    means = {key: _mean_of_source(reading, key, count, threads) for key, count in counts.items()}
  totals = (sum(fraction * means[key] for key, fraction in found.items()) for found in fractions)
  return [MeanSize(*map(float, total)) for total in totals]


def _mean_of_source(reading: Reading, key: str, count: int, threads: concurrent.futures.Executor) -> np.ndarray:
  found = list(threads.map(functools.partial(reading.try_examples, key), range(count)))
  sizes = [size_of(example) for examples in found if isinstance(examples, list) for example in examples]
  if not sizes:
    raise InputError(f'source {key}: none of its first {count} records can be used. The last: {found[-1]}')
  return np.mean(sizes, axis=0)
