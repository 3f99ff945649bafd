"""Records to examples ahead of need, in worker processes. What is read does not depend on how many there are."""

import concurrent.futures
import dataclasses
import multiprocessing
import zlib
from collections.abc import Mapping
from concurrent.futures.process import BrokenProcessPool

import grain
import numpy as np

from janus_jax.data.examples import Example, ExampleSpec, make_example
from janus_jax.errors import InputError, RecordError

# Requests in flight per worker: enough that none waits while one example takes long.
AHEAD = 4


@dataclasses.dataclass(frozen=True)
class Reading:
  """What an example depends on, besides its source and its position there.

  Attributes:
    views: the shuffled sources by 'kind/name'.
    spec: how records become examples.
    seed: of guidance dropout.
    guidance_dropout: share of generation examples whose prompt becomes pads.
  """

  views: Mapping[str, grain.MapDataset]
  spec: ExampleSpec
  seed: int
  guidance_dropout: float

  def example(self, source: str, position: int) -> Example:
    """The example at a position of a source, epochs counted on.

    Raises:
      InputError: the record is bad; a RecordError where the source says what is wrong with it.
    """
    rng = np.random.default_rng([self.seed, zlib.crc32(source.encode()), position])
    kind = source.split('/', 1)[0]
    return make_example(kind, self.views[source][position], self.spec, rng, self.guidance_dropout)


class Reader:
  """Examples by source and position. `request` those that will be wanted, then `get` each."""

  def __init__(self, reading: Reading, workers: int):
    """
    Args:
      reading: what the examples depend on.
      workers: processes; 0 reads each example when it is wanted, in this one.
    """
    self._reading, self._workers = reading, workers
    self._pool: concurrent.futures.ProcessPoolExecutor | None = None
    self._futures: dict[tuple[str, int], concurrent.futures.Future] = {}

  @property
  def wants_more(self) -> bool:
    """Whether there are fewer requests in flight than keep every worker busy."""
    return len(self._futures) < AHEAD * self._workers

  def request(self, source: str, position: int) -> None:
    """Starts reading an example that will be wanted; forgotten if a worker has just died."""
    if self._pool is None:
      # Not forked: this process has threads, of JAX and of the prefetching iterator.
      context = multiprocessing.get_context('spawn')
      self._pool = concurrent.futures.ProcessPoolExecutor(self._workers, context, _start_worker, (self._reading,))
    try:
      self._futures[source, position] = self._pool.submit(_read_in_worker, source, position)
    except BrokenProcessPool:
      self.close()

  def get(self, source: str, position: int) -> Example:
    """Waits for an example, requested or not. Raises as `Reading.example`, or RecordError if a worker died of it."""
    if not self._workers:
      return self._reading.example(source, position)
    for _ in range(2):
      while (source, position) not in self._futures:
        self.request(source, position)
      try:
        return self._futures.pop((source, position)).result()
      except BrokenProcessPool:
        # Which of the records in flight it was shows when this one is read alone.
        self.close()
    raise RecordError('crash', f'record {position} of {source}: the process that read it died, twice')

  def close(self) -> None:
    """Ends the workers and forgets all requests."""
    self._futures.clear()
    if self._pool is not None:
      self._pool.shutdown(wait=False, cancel_futures=True)
      self._pool = None


_reading: Reading


def _start_worker(reading: Reading) -> None:
  # The one global: a process of a pool has no other place for what it is started with.
  global _reading
  _reading = reading


def _read_in_worker(source: str, position: int) -> Example:
  return _reading.example(source, position)


def reason_of(error: InputError) -> str:
  """What a bad record is counted by."""
  return error.reason if isinstance(error, RecordError) else 'example'
