"""Sources of records to batches: one endless iterator per stage, whose state is a few integers."""

import copy
import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from janus_jax.data.examples import Example, ExampleSpec
from janus_jax.data.mixture import Mixture, shuffled, source_shares
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
# State of a stream that has not begun.
NEW: Mapping[str, Any] = {'index': 0, 'examples': {}, 'skipped': {}, 'places': {}}
Sources = Mapping[str, Mapping[str, grain.MapDataset]]
Part = tuple[str, int, int]  # 'kind/source', record, part.


@dataclasses.dataclass(frozen=True)
class StreamOptions:
  """Settings of how streams read their sources.

  Attributes:
    seed: of the order and of guidance dropout; the same in all stages of a run.
    guidance_dropout: fraction of generation examples whose prompt becomes pads.
    skip_limit: when to give up on a source.
    prefetch: batches that a thread makes ahead; 0 makes each when asked for. Close the iterator to end it.
    workers: processes that read and decode records; 0 does it where the batches are made.
    shards: of the records, one for each stream.
  """

  seed: int
  guidance_dropout: float = 0.0
  skip_limit: SkipLimit = FEW
  prefetch: int = 0
  workers: int = 0
  shards: Sequence[DataShard] = (WHOLE,)


def batches(
  sources: Sources,
  mixture: Mixture,
  spec: ExampleSpec,
  shape: BatchShape,
  options: StreamOptions,
  states: Sequence[Mapping[str, Any]] | None = None,
) -> grain.DatasetIterator:
  """The batches of a stage, without end, as `packing.make_batch` gives them.

  They are made of one or more streams, each of a shard of the records, whose rows lie one after the other. What is in
  a stream depends on the other arguments alone, and not on `prefetch` and `workers`.

  Args:
    sources: per kind (`examples.TASKS`), the records of each source by name.
    mixture: order of tasks and sources in each stream.
    spec: how records become examples.
    shape: of the part of a batch that one stream makes.
    options: seed, shards, limits and processes.
    states: of the streams: `get_state()['streams']` of an iterator with the same arguments, to go on where it was; or
      what `next_stage` or `shard_state.deal_states` made of that.

  Returns:
    an iterator whose `get_state()` is {'streams': [the dict that `Stream` describes, of each]}, prefetching or not.

  Raises:
    InputError: an unknown or empty source. Later, from `next`: too many bad records.
  """
  views = open_views(source_shares(mixture), sources, options.seed)
  reading = Reading(views, spec, options.seed, options.guidance_dropout)
  read = {f'{kind}/{name}': source for kind, found in sources.items() for name, source in found.items()}
  runs = {key: read[key].block_size if isinstance(read[key], BlockDataset) else 1 for key in views}
  dataset = _BatchDataset(StreamStage(mixture, reading, shape, options, runs), states or [NEW] * len(options.shards))
  if options.prefetch:
    dataset = grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=options.prefetch)
  return iter(dataset)


def next_stage(states: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """The states in which a new stage starts: a new cycle of tasks, every source where the last stage left it.

  What was held back for a row comes first when its source is next read.
  """
  return [copy.deepcopy(dict(state)) | {'index': 0, 'rest': unused_parts(state), 'held': []} for state in states]


@dataclasses.dataclass(frozen=True)
class StreamStage:
  """Arguments of all streams of a stage.

  `run_lengths`: consecutive positions of a source that one host reads, a block, so that not all of them decode it.
  """

  mixture: Mixture
  reading: Reading
  shape: BatchShape
  options: StreamOptions
  run_lengths: Mapping[str, int]


def open_views(keys: Iterable[str], sources: Sources, seed: int) -> dict[str, grain.MapDataset]:
  """The shuffled sources by 'kind/name'; InputError if `sources` lacks one."""
  views = {}
  for key in keys:
    kind, name = key.split('/', 1)
    if name not in sources.get(kind, {}):
      raise InputError(f'no source of {kind} is called {name!r}: expected one of {sorted(sources.get(kind, {}))}')
    views[key] = shuffled(sources[kind][name], seed, key)
  return views


class _BatchDataset(grain.IterDataset):
  """The form in which Grain's wrappers take batches."""

  def __init__(self, stage: StreamStage, states: Sequence[Mapping[str, Any]]):
    super().__init__()
    self._stage, self._states = stage, states

  def __iter__(self) -> '_BatchIterator':
    shards = self._stage.options.shards
    workers = Workers(self._stage.reading, self._stage.options.workers)
    streams = zip(shards, self._states, strict=True)
    return _BatchIterator([Stream(self._stage, Reader(workers, len(shards)), *its) for its in streams])


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

  def __init__(self, stage: StreamStage, reader: Reader, shard: DataShard, state: Mapping[str, Any]):
    self._stage, self._reader, self._shard = stage, reader, shard
    self.set_state(state)

  def get_state(self) -> dict[str, Any]:
    state = copy.deepcopy(self._state)
    return state if self._waiting is None else state | {'held': [list(key) for key, _ in self._waiting]}

  def set_state(self, state: Mapping[str, Any]) -> None:
    sources, state = self._stage.run_lengths, copy.deepcopy(dict(state))
    first = {source: first_position(self._shard, run) for source, run in sources.items()}
    self._state = state | {
      'examples': dict.fromkeys(sources, 0) | state['examples'],
      'skipped': {source: {} for source in sources} | state['skipped'],
      'places': first | state['places'],
      # Checkpoints from before there were parts and examples held back have none of the others.
      'shortened': {source: {} for source in sources} | state.get('shortened', {}),
      'rest': {source: [] for source in sources} | state.get('rest', {}),
      'held': state.get('held', []),
    }
    self._state['records'] = records_read(self._state)
    self._reader.close()
    self._records: dict[tuple[str, int], list[Example]] = {}
    self._waiting: list[tuple[Part, Example]] | None = None  # What the state calls held, once it is read.
    self._requested_index = self._state['index']
    # How many records of each source have been requested or read, and the position after them.
    self._requested: dict[str, tuple[int, ReadPosition]] = {source: self._reached(source) for source in sources}

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
    sizes = {name: getattr(spec, name) for name in ('num_codes', 'image_size', 'generation_size')}
    return make_batch([example for _, example in taken], rows, shape, **sizes)

  def _reached(self, source: str) -> tuple[int, ReadPosition]:
    return self._state['records'][source], self._state['places'][source]

  def _request(self) -> None:
    """Has the workers read what comes next, if no record is bad."""
    while self._reader.wants_more:
      source = '/'.join(self._stage.mixture.source_at(self._requested_index))
      count, place = self._requested[source]
      self._reader.request(source, position(place))
      self._requested[source] = count + 1, after(place, self._shard)
      self._requested_index += 1

  def _read(self) -> tuple[Part, Example]:
    """The next example: the next part of a record read before, or the first part of the next record."""
    source = '/'.join(self._stage.mixture.source_at(self._state['index']))
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
      if fits(size_of(found[1]), self._stage.shape.largest):  # What an earlier stage left may not.
        self._state['index'] += 1
        return found
      _count(self._state['skipped'][source], LONG)

  def _part(self, source: str, record: int, part: int) -> tuple[Part, Example]:
    """A part of a record, read again where it is not at hand."""
    if (source, record) not in self._records:
      self._records[source, record] = self._reader.get(source, record)
    return (source, record, part), self._records[source, record][part]

  def _read_record(self, source: str) -> int:
    """Reads the next good record of a source. What is skipped is replaced by it, which keeps the ratio."""
    state, counts, consecutive = self._state, self._state['skipped'][source], []
    while True:
      self._request()
      number = position(state['places'][source])
      state['places'][source] = after(state['places'][source], self._shard)
      state['records'][source] += 1
      if self._requested[source][0] < state['records'][source]:
        self._requested[source] = self._reached(source)
      try:
        examples = self._reader.get(source, number)
        for example in examples:
          check_fits(size_of(example), self._stage.shape, example.where)
      except InputError as error:
        consecutive.append(reason_of(error))
        if _count(counts, consecutive[-1]) <= LOGGED:
          logging.warning('Skipped a record of source %s (%s): %s', source, consecutive[-1], error)
        limit = self._stage.options.skip_limit
        check_skipped(source, state['records'][source], counts, consecutive, limit, error)
        continue
      if len(examples) > 1:
        _count(state['shortened'][source], 'split')
      if any(example.cut for example in examples):
        _count(state['shortened'][source], 'cut')
      self._records[source, number] = examples
      return number


def _count(counts: dict[str, int], reason: str) -> int:
  """Adds one, and returns how many there are by now."""
  counts[reason] = counts.get(reason, 0) + 1
  return counts[reason]


def count_examples(states: Sequence[Mapping[str, Any]]) -> dict[str, int]:
  """{'kind/source': examples so far}, by the states of streams."""
  return {source: sum(state['examples'][source] for state in states) for source in states[0]['examples']}
