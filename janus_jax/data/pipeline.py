"""Sources of records to batches: one endless iterator per stage, whose state is a few integers."""

import collections
import copy
import dataclasses
import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np

from janus_jax.data import mixture as mixture_lib
from janus_jax.data.examples import Example, ExampleSpec
from janus_jax.data.mixture import Mixture
from janus_jax.data.packing import BatchShape, Packer, check_fits_a_row, make_batch, size_of
from janus_jax.data.reading import Reader, Reading, Workers, reason_of
from janus_jax.data.shares import WHOLE, Place, Share, after, first_place, position
from janus_jax.data.sources.blocks import BlockDataset
from janus_jax.errors import InputError

# Bad records of a source that are logged, per reason; all are counted.
LOGGED = 5


@dataclasses.dataclass(frozen=True)
class SkipLimit:
  """How many bad records of a source a run puts up with.

  Attributes:
    share: of the records read from the source, once `after` have been read.
    after: records.
    in_a_row: stops the run at once, however many were good before.
  """

  share: float = 0.01
  after: int = 1000
  in_a_row: int = 100


def batches(
  sources: Mapping[str, Mapping[str, grain.MapDataset]],
  ratio: Sequence[int],
  weights: Mapping[str, Mapping[str, int]],
  spec: ExampleSpec,
  shape: BatchShape,
  *,
  seed: int,
  guidance_dropout: float = 0.1,
  skip_limit: SkipLimit = SkipLimit(),
  prefetch: int = 0,
  workers: int = 0,
  shares: Sequence[Share] = (WHOLE,),
  states: Sequence[Mapping[str, Any]] | None = None,
) -> grain.DatasetIterator:
  """The batches of a stage, without end, as `packing.make_batch` gives them.

  They are made of one or more streams, each of a share of the records, whose rows lie one after the other. What is in
  a stream depends on the other arguments alone, and not on `prefetch` and `workers`.

  Args:
    sources: per kind (`examples.KINDS`), the records of each source by name.
    ratio: understanding : text : generation, held exactly by any sum(ratio) consecutive examples of a stream.
    weights: per kind, integer weights of the sources to use, held exactly within the kind.
    spec: how records become examples.
    shape: of the part of a batch that one stream makes.
    seed: of the order and of guidance dropout; the same in all stages of a run.
    guidance_dropout: share of generation examples whose prompt becomes pads.
    skip_limit: when to give up on a source.
    prefetch: batches that a thread makes ahead; 0 makes each when asked for. Close the iterator to end it.
    workers: processes that read and decode records; 0 does it where the batches are made.
    shares: of the records, one for each stream.
    states: of the streams, as `get_state()['streams']` of an iterator with the same arguments gave them, to go on where
      it was; or those that `next_stage` makes of the last stage's, so that every source goes on where that stage left
      it; or of `shares.deal_states`.

  Returns:
    an iterator whose `get_state()` is {'streams': [of each the dict that `Stream` describes]}, prefetching or not.

  Raises:
    InputError: a ratio or weights that are negative or sum to zero, a kind without sources, an unknown or empty
      source. Later, from `next`: too many bad records.
  """
  mixture = mixture_lib.make_mixture(ratio, weights)
  reading = Reading(_views(mixture, sources, seed), spec, seed, guidance_dropout)
  runs = {source: _run_length(sources, source) for source in reading.views}
  stages = [_Stage(mixture, reading, shape, skip_limit, share, runs) for share in shares]
  dataset = _BatchDataset(stages, states or [NEW] * len(stages), workers)
  if prefetch:
    dataset = grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=prefetch)
  return iter(dataset)


# Of a stream that has not begun.
NEW: Mapping[str, Any] = {'index': 0, 'examples': {}, 'skipped': {}, 'places': {}}


def next_stage(states: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """The states in which a new stage starts: a new cycle of kinds, every source where the last stage left it."""
  return [copy.deepcopy(dict(state)) | {'index': 0} for state in states]


@dataclasses.dataclass(frozen=True)
class _Stage:
  """What `batches` was asked for of a stream."""

  mixture: Mixture
  reading: Reading
  shape: BatchShape
  skip_limit: SkipLimit
  share: Share
  run_lengths: Mapping[str, int]


def _views(
  mixture: Mixture, sources: Mapping[str, Mapping[str, grain.MapDataset]], seed: int
) -> dict[str, grain.MapDataset]:
  views = {}
  for kind, cycle in mixture.sources.items():
    for name in sorted(set(cycle)):
      if name not in sources.get(kind, {}):
        raise InputError(f'no source of {kind} is called {name!r}: expected one of {sorted(sources.get(kind, {}))}')
      views[_key(kind, name)] = mixture_lib.shuffled(sources[kind][name], seed, _key(kind, name))
  return views


def _run_length(sources: Mapping[str, Mapping[str, grain.MapDataset]], key: str) -> int:
  """How many consecutive positions one host should read: a block, so that not all of them decode it."""
  kind, name = key.split('/', 1)
  source = sources[kind][name]
  return source.block_size if isinstance(source, BlockDataset) else 1


def _key(kind: str, name: str) -> str:
  return f'{kind}/{name}'


class _BatchDataset(grain.IterDataset):
  """The form in which Grain's wrappers take batches."""

  def __init__(self, stages: Sequence[_Stage], states: Sequence[Mapping[str, Any]], workers: int):
    super().__init__()
    self._stages, self._states, self._workers = stages, states, workers

  def __iter__(self) -> '_BatchIterator':
    workers = Workers(self._stages[0].reading, self._workers)
    readers = [Reader(workers, len(self._stages)) for _ in self._stages]
    return _BatchIterator([Stream(*its) for its in zip(self._stages, readers, self._states, strict=True)])


class _BatchIterator(grain.DatasetIterator):
  """The rows of one or more streams."""

  def __init__(self, streams: Sequence['Stream']):
    super().__init__()
    self._streams = streams

  def __next__(self) -> dict[str, np.ndarray]:
    parts = [stream.next_batch() for stream in self._streams]
    if len(parts) == 1:
      return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

  def get_state(self) -> dict[str, Any]:
    return {'streams': [stream.get_state() for stream in self._streams]}

  def set_state(self, state: Mapping[str, Any]) -> None:
    for stream, its in zip(self._streams, state['streams'], strict=True):
      stream.set_state(its)

  def close(self) -> None:
    """Ends the workers."""
    for stream in self._streams:
      stream.close()


class Stream:
  """Batches, each a run of consecutive examples of the mixture, as long as fits.

  The state is {'index': examples of this stage so far, 'examples': {'kind/source': examples so far in the run},
  'skipped': {'kind/source': {reason: bad records so far}}, 'places': {'kind/source': where it is (shares.py)}}.
  """

  def __init__(self, stage: _Stage, reader: Reader, state: Mapping[str, Any]):
    self._stage, self._reader = stage, reader
    self.set_state(state)

  def get_state(self) -> dict[str, Any]:
    return copy.deepcopy(self._state)

  def set_state(self, state: Mapping[str, Any]) -> None:
    self._state = copy.deepcopy(dict(state))
    views = self._stage.reading.views
    self._state['examples'] = dict.fromkeys(views, 0) | self._state['examples']
    self._state['skipped'] = {source: {} for source in views} | self._state['skipped']
    first = {source: first_place(self._stage.share, run) for source, run in self._stage.run_lengths.items()}
    self._state['places'] = first | self._state['places']
    self._held: _Read | None = None  # The example that did not fit into the last batch, not in the state yet.
    self._reader.close()
    self._requested_index = self._state['index']
    self._requested = {source: _Requested(self._count(source), self._state['places'][source]) for source in views}

  def close(self) -> None:
    """Ends the workers."""
    self._reader.close()

  def next_batch(self) -> dict[str, np.ndarray]:
    spec, shape = self._stage.reading.spec, self._stage.shape
    packer, examples = Packer(shape), []
    while True:
      self._held = self._held or self._read()
      if not packer.add(size_of(self._held.example)):
        break
      source, skipped = self._held.source, self._state['skipped'][self._held.source]
      self._state['index'] += 1
      self._state['examples'][source] += 1
      self._state['places'][source] = self._held.place_after
      for reason in self._held.skipped:
        skipped[reason] = skipped.get(reason, 0) + 1
      examples.append(self._held.example)
      self._held = None
    return make_batch(
      examples,
      packer.rows,
      shape,
      num_codes=spec.num_codes,
      image_size=spec.image_size,
      generation_size=spec.generation_size,
    )

  def _count(self, source: str) -> int:
    """Records read of a source, for batches or skipped."""
    return self._state['examples'][source] + sum(self._state['skipped'][source].values())

  def _request(self) -> None:
    """Has the workers read what comes next, if no record is bad."""
    while self._reader.wants_more:
      source = _key(*self._stage.mixture.source_at(self._requested_index))
      requested = self._requested[source]
      self._reader.request(source, position(requested.place))
      self._requested[source] = _Requested(requested.count + 1, after(requested.place, self._stage.share))
      self._requested_index += 1

  def _read(self) -> '_Read':
    """The next example. A bad record's place is taken by the next good one of its source, which keeps the ratio."""
    stage = self._stage
    source = _key(*stage.mixture.source_at(self._state['index']))
    skipped: tuple[str, ...] = ()
    place = self._state['places'][source]
    for count in itertools.count(self._count(source) + 1):
      self._request()
      number, place = position(place), after(place, stage.share)
      if self._requested[source].count < count:
        self._requested[source] = _Requested(count, place)
      try:
        example = self._reader.get(source, number)
        check_fits_a_row(example, stage.shape)
        return _Read(example, source, skipped, place)
      except InputError as error:
        skipped = (*skipped, reason_of(error))
        counts = collections.Counter(self._state['skipped'][source]) + collections.Counter(skipped)
        if counts[skipped[-1]] <= LOGGED:
          logging.warning('Skipped record %d of source %s: %s', number, source, error)
        _check_skipped(source, count, counts, len(skipped), stage.skip_limit, error)


@dataclasses.dataclass(frozen=True)
class _Requested:
  """How many records of a source have been requested or read, and the place after them."""

  count: int
  place: Place


@dataclasses.dataclass(frozen=True)
class _Read:
  """An example, the source it came from, why records on the way to it were skipped, and the place after it."""

  example: Example
  source: str
  skipped: tuple[str, ...]
  place_after: Place


def _check_skipped(
  source: str, read: int, counts: collections.Counter, in_a_row: int, limit: SkipLimit, error: InputError
) -> None:
  skipped = counts.total()
  if in_a_row >= limit.in_a_row or (read >= limit.after and skipped > limit.share * read):
    reasons = ', '.join(f'{reason} {count}' for reason, count in counts.most_common())
    raise InputError(
      f'source {source}: {skipped} of {read} records are bad, the last {in_a_row} in a row ({reasons}): expected at '
      f'most {limit.share:.1%}, and fewer than {limit.in_a_row} in a row. The last: {error}'
    )


def count_examples(states: Sequence[Mapping[str, Any]]) -> dict[str, int]:
  """{'kind/source': examples so far}, by the states of streams."""
  return {source: sum(state['examples'][source] for state in states) for source in states[0]['examples']}


def count_skipped(states: Sequence[Mapping[str, Any]]) -> int:
  """Bad records so far, of all sources, by the states of streams."""
  return sum(sum(reasons.values()) for state in states for reasons in state['skipped'].values())


def describe_skipped(states: Sequence[Mapping[str, Any]]) -> str:
  """'generation/laion: image 12, missing field 3; ...', by the states of streams; '' if none was bad."""
  lines = []
  for source in states[0]['skipped']:
    counts = sum((collections.Counter(state['skipped'][source]) for state in states), collections.Counter())
    if counts:
      lines.append(f'{source}: {", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()))}')
  return '; '.join(lines)
