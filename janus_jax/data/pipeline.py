"""Sources of records to batches: one endless iterator per stage, whose state is a few integers."""

import copy
import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from janus_jax.data import mixture as mixture_lib
from janus_jax.data.examples import Example, ExampleSpec
from janus_jax.data.mixture import Mixture
from janus_jax.data.packing import LONG, BatchShape, check_fits, fill_batch, fits, make_batch, size_of
from janus_jax.data.shard_state import (
  WHOLE,
  DataShard,
  ReadPosition,
  after,
  first_position,
  position,
  records_read,
  unused_parts,
)
from janus_jax.data.skipping import FEW, SkipLimit, check_skipped
from janus_jax.data.sources.blocks import BlockDataset
from janus_jax.data.workers import Reader, Reading, Workers, reason_of
from janus_jax.errors import InputError

# Bad records of a source that are logged, per reason; all are counted.
LOGGED = 5


def batches(
  sources: Mapping[str, Mapping[str, grain.MapDataset]],
  ratio: Sequence[int],
  weights: Mapping[str, Mapping[str, int]],
  spec: ExampleSpec,
  shape: BatchShape,
  *,
  seed: int,
  guidance_dropout: float = 0.0,
  skip_limit: SkipLimit = FEW,
  prefetch: int = 0,
  workers: int = 0,
  shards: Sequence[DataShard] = (WHOLE,),
  states: Sequence[Mapping[str, Any]] | None = None,
) -> grain.DatasetIterator:
  """The batches of a stage, without end, as `packing.make_batch` gives them.

  They are made of one or more streams, each of a shard of the records, whose rows lie one after the other. What is in
  a stream depends on the other arguments alone, and not on `prefetch` and `workers`.

  Args:
    sources: per kind (`examples.TASKS`), the records of each source by name.
    ratio: understanding : text : generation, held exactly by any sum(ratio) consecutive examples of a stream.
    weights: per kind, integer weights of the sources to use, held exactly within the kind.
    spec: how records become examples.
    shape: of the part of a batch that one stream makes.
    seed: of the order and of guidance dropout; the same in all stages of a run.
    guidance_dropout: fraction of generation examples whose prompt becomes pads.
    skip_limit: when to give up on a source.
    prefetch: batches that a thread makes ahead; 0 makes each when asked for. Close the iterator to end it.
    workers: processes that read and decode records; 0 does it where the batches are made.
    shards: of the records, one for each stream.
    states: of the streams, as `get_state()['streams']` of an iterator with the same arguments gave them, to go on where
      it was; or those that `next_stage` makes of the last stage's, so that every source goes on where that stage left
      it; or of `shard_state.deal_states`.

  Returns:
    an iterator whose `get_state()` is {'streams': [of each the dict that `Stream` describes]}, prefetching or not.

  Raises:
    InputError: a ratio or weights that are negative or sum to zero, a kind without sources, an unknown or empty
      source. Later, from `next`: too many bad records.
  """
  mixture = mixture_lib.make_mixture(ratio, weights)
  reading = Reading(open_views(mixture_lib.source_shares(mixture), sources, seed), spec, seed, guidance_dropout)
  runs = {source: _run_length(sources, source) for source in reading.views}
  stages = [_Stage(mixture, reading, shape, skip_limit, shard, runs) for shard in shards]
  dataset = _BatchDataset(stages, states or [NEW] * len(stages), workers)
  if prefetch:
    dataset = grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=prefetch)
  return iter(dataset)


# Of a stream that has not begun.
NEW: Mapping[str, Any] = {'index': 0, 'examples': {}, 'skipped': {}, 'places': {}}


def next_stage(states: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """The states in which a new stage starts: a new cycle of kinds, every source where the last stage left it.

  What was held back for a row comes first when its source is next read.
  """
  return [copy.deepcopy(dict(state)) | {'index': 0, 'rest': unused_parts(state), 'held': []} for state in states]


@dataclasses.dataclass(frozen=True)
class _Stage:
  """What `batches` was asked for of a stream."""

  mixture: Mixture
  reading: Reading
  shape: BatchShape
  skip_limit: SkipLimit
  shard: DataShard
  run_lengths: Mapping[str, int]


def open_views(
  keys: Iterable[str], sources: Mapping[str, Mapping[str, grain.MapDataset]], seed: int
) -> dict[str, grain.MapDataset]:
  """The shuffled sources by 'kind/name', of which `sources` must have all."""
  views = {}
  for key in keys:
    kind, name = key.split('/', 1)
    if name not in sources.get(kind, {}):
      raise InputError(f'no source of {kind} is called {name!r}: expected one of {sorted(sources.get(kind, {}))}')
    views[key] = mixture_lib.shuffled(sources[kind][name], seed, key)
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


Part = tuple[str, int, int]  # 'kind/source', record, part.


class Stream:
  """Batches of the examples of a mixture (`packing.fill_batch`).

  The state is, in JSON values:

    index     examples of this stage read so far
    records   {'kind/source': records read so far in the run, bad ones included}
    examples  {'kind/source': examples in batches so far in the run}
    skipped   {'kind/source': {reason: records not used so far}}
    shortened {'kind/source': {'cut' or 'split': long records of which a part, or parts, were used so far}}
    places    {'kind/source': the next record (shard_state.py)}
    rest      {'kind/source': [[record, first, stop], ...]}: parts of records read before that come next
    held      [['kind/source', record, part], ...]: examples read that no row has yet, the oldest first
  """

  def __init__(self, stage: _Stage, reader: Reader, state: Mapping[str, Any]):
    self._stage, self._reader = stage, reader
    self.set_state(state)

  def get_state(self) -> dict[str, Any]:
    state = copy.deepcopy(self._state)
    return state if self._waiting is None else state | {'held': [list(key) for key, _ in self._waiting]}

  def set_state(self, state: Mapping[str, Any]) -> None:
    self._state = copy.deepcopy(dict(state))
    views = self._stage.reading.views
    self._state['examples'] = dict.fromkeys(views, 0) | self._state['examples']
    self._state['skipped'] = {source: {} for source in views} | self._state['skipped']
    self._state['shortened'] = {source: {} for source in views} | self._state.get('shortened', {})
    # Checkpoints from before there were parts and examples held back have neither.
    self._state['records'] = records_read(self._state)
    self._state['rest'] = {source: [] for source in views} | self._state.get('rest', {})
    self._state['held'] = self._state.get('held', [])
    first = {source: first_position(self._stage.shard, run) for source, run in self._stage.run_lengths.items()}
    self._state['places'] = first | self._state['places']
    self._reader.close()
    self._records: dict[tuple[str, int], list[Example]] = {}
    self._waiting: list[tuple[Part, Example]] | None = None  # What the state calls held, once it is read.
    self._requested_index = self._state['index']
    self._requested = {
      source: _Requested(self._state['records'][source], self._state['places'][source]) for source in views
    }

  def close(self) -> None:
    """Ends the workers."""
    self._reader.close()

  def next_batch(self) -> dict[str, np.ndarray]:
    spec, shape = self._stage.reading.spec, self._stage.shape
    if self._waiting is None:
      self._waiting = [self._part(*key) for key in self._state['held']]
      self._records.clear()
    taken, rows = fill_batch(self._waiting, self._read, lambda item: size_of(item[1]), shape)
    for (source, _, _), _ in taken:
      self._state['examples'][source] += 1
    return make_batch(
      [example for _, example in taken],
      rows,
      shape,
      num_codes=spec.num_codes,
      image_size=spec.image_size,
      generation_size=spec.generation_size,
    )

  def _request(self) -> None:
    """Has the workers read what comes next, if no record is bad."""
    while self._reader.wants_more:
      source = _key(*self._stage.mixture.source_at(self._requested_index))
      requested = self._requested[source]
      self._reader.request(source, position(requested.place))
      self._requested[source] = _Requested(requested.count + 1, after(requested.place, self._stage.shard))
      self._requested_index += 1

  def _read(self) -> tuple[Part, Example]:
    """The next example: the next part of a record read before, or the first part of the next record."""
    source = _key(*self._stage.mixture.source_at(self._state['index']))
    rest = self._state['rest'][source]
    while True:
      if not rest:
        number = self._read_record(source)
        rest.append([number, 0, len(self._records[source, number])])
      record, part, stop = rest[0]
      found = self._part(source, record, part)
      if part + 1 < stop:
        rest[0] = [record, part + 1, stop]
      else:
        del rest[0]
        self._records.pop((source, record), None)
      if fits(size_of(found[1]), self._stage.shape):  # What an earlier stage left may not.
        self._state['index'] += 1
        return found
      self._skip(source, LONG)

  def _part(self, source: str, record: int, part: int) -> tuple[Part, Example]:
    """A part of a record, read again where it is not at hand."""
    if (source, record) not in self._records:
      self._records[source, record] = self._reader.get(source, record)
    return (source, record, part), self._records[source, record][part]

  def _skip(self, source: str, reason: str) -> int:
    """Counts a record, or a part of one, that is not used; how many there are by now for that reason."""
    counts = self._state['skipped'][source]
    counts[reason] = counts.get(reason, 0) + 1
    return counts[reason]

  def _read_record(self, source: str) -> int:
    """Reads the next good record of a source. What is skipped is replaced by it, which keeps the ratio."""
    stage, state, skipped = self._stage, self._state, []
    while True:
      self._request()
      place = state['places'][source]
      number = position(place)
      state['places'][source] = after(place, stage.shard)
      state['records'][source] += 1
      if self._requested[source].count < state['records'][source]:
        self._requested[source] = _Requested(state['records'][source], state['places'][source])
      try:
        examples = self._reader.get(source, number)
        for example in examples:
          check_fits(size_of(example), stage.shape, example.where)
      except InputError as error:
        skipped.append(reason_of(error))
        if self._skip(source, skipped[-1]) <= LOGGED:
          logging.warning('Skipped a record of source %s (%s): %s', source, skipped[-1], error)
        counts = state['skipped'][source]
        check_skipped(source, state['records'][source], counts, skipped, stage.skip_limit, error)
      else:
        for what, applies in (('split', len(examples) > 1), ('cut', any(example.cut for example in examples))):
          if applies:
            state['shortened'][source][what] = state['shortened'][source].get(what, 0) + 1
        self._records[source, number] = examples
        return number


@dataclasses.dataclass(frozen=True)
class _Requested:
  """How many records of a source have been requested or read, and the place after them."""

  count: int
  place: ReadPosition


def count_examples(states: Sequence[Mapping[str, Any]]) -> dict[str, int]:
  """{'kind/source': examples so far}, by the states of streams."""
  return {source: sum(state['examples'][source] for state in states) for source in states[0]['examples']}
