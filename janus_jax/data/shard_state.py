"""Which records of a source each host reads, and how what is left is dealt anew when there are more or fewer hosts.

The positions of a source, counted on through its epochs, fall into runs of equal length. Host h of n reads the runs h,
h + n, h + 2n, ... A run is one position long, but where neighbours are cheap to read together (blocks.py).

A place says how far a host has come in a source. It is a dict, of JSON values, as it is part of every checkpoint:

  run    the length of a run
  left   [[start, stop], ...]: positions that other hosts left when the number of hosts changed; they come first
  next   the position after that
"""

import copy
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ReadPosition = Mapping[str, Any]
Interval = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class DataShard:
  """The part of the data that a host reads: `index` of `count`, counted from 0."""

  index: int
  count: int


WHOLE = DataShard(0, 1)


def all_shards(count: int) -> list[DataShard]:
  """So many shards that are the whole together."""
  return [DataShard(index, count) for index in range(count)]


def first_position(shard: DataShard, run: int) -> ReadPosition:
  """Where a host starts in a source that nobody has read."""
  return {'run': run, 'left': [], 'next': shard.index * run}


def position(place: ReadPosition) -> int:
  """What is read next."""
  return place['left'][0][0] if place['left'] else place['next']


def after(place: ReadPosition, shard: DataShard) -> ReadPosition:
  """The place one record further on."""
  if place['left']:
    (start, stop), *rest = place['left']
    return {**place, 'left': ([[start + 1, stop]] if start + 1 < stop else []) + rest}
  following = place['next'] + 1
  if following % place['run'] == 0:
    following += (shard.count - 1) * place['run']
  return {**place, 'next': following}


def deal(places: Sequence[ReadPosition], count: int) -> list[ReadPosition]:
  """What hosts have left to read, given to `count` other hosts: no position is lost, none is read again.

  Args:
    places: in one source, of each of the hosts so far.
    count: hosts from now on.

  Returns:
    The place of each. They read what lies behind the furthest host first, in parts of equal length, and then runs in
    turn.
  """
  run = places[0]['run']
  frontier = max(_last_touched(place, len(places)) for place in places) + 1
  left = _joined(itertools.chain.from_iterable(_left(place, len(places), frontier) for place in places))
  total = sum(stop - start for start, stop in left)
  cuts = [index * total // count for index in range(count + 1)]
  return [
    {'run': run, 'left': _part(left, *cuts[index : index + 2]), 'next': (frontier + index) * run}
    for index in range(count)
  ]


def unused_parts(state: Mapping[str, Any]) -> dict[str, list[list[int]]]:
  """{'kind/source': [[record, first, stop], ...]}: what a stream (`pipeline.Stream`) has read and put in no batch."""
  rest = {source: [] for source in state['places']}
  for source, record, part in state.get('held', ()):
    rest[source].append([record, part, part + 1])
  return {source: parts + state.get('rest', {}).get(source, []) for source, parts in rest.items()}


def records_read(state: Mapping[str, Any]) -> dict[str, int]:
  """{'kind/source': records read so far}; of a stream saved before there were parts, those in batches or skipped."""
  counts = {source: count + sum(state['skipped'][source].values()) for source, count in state['examples'].items()}
  return counts | state.get('records', {})


def deal_states(states: Sequence[Mapping[str, Any]], count: int) -> list[dict[str, Any]]:
  """The states of the streams (`pipeline.Stream`) of all hosts, for `count` other streams.

  Each begins a new cycle of kinds, as a stage does. What has been counted so far stands in the first.
  """
  sources = states[0]['places']
  dealt = {source: deal([state['places'][source] for state in states], count) for source in sources}
  parts = [unused_parts(state) for state in states]
  rest = {source: list(itertools.chain.from_iterable(part[source] for part in parts)) for source in sources}
  counted = {
    'examples': {source: sum(state['examples'][source] for state in states) for source in sources},
    'skipped': {source: _sums([state['skipped'][source] for state in states]) for source in sources},
  }
  of_states = [state.get('shortened', {}) for state in states]
  counted['shortened'] = {source: _sums([counts.get(source, {}) for counts in of_states]) for source in sources}
  read = [records_read(state) for state in states]
  counted['records'] = {source: sum(counts[source] for counts in read) for source in sources}
  none = dict.fromkeys(sources, 0)
  empty = {source: {} for source in sources}
  nothing = {'examples': none, 'records': none, 'skipped': empty, 'shortened': empty}
  return [
    {
      'index': 0,
      **copy.deepcopy(nothing if index else counted),
      'places': {source: dealt[source][index] for source in sources},
      'rest': {source: rest[source][index::count] for source in sources},
      'held': [],
    }
    for index in range(count)
  ]


def _last_touched(place: ReadPosition, count: int) -> int:
  """The last run of which a host has read something; negative if it has read nothing."""
  run, within = divmod(place['next'], place['run'])
  return run if within else run - count


def _left(place: ReadPosition, count: int, frontier: int) -> Iterator[Interval]:
  """What a host has not read of the runs before the frontier."""
  yield from map(tuple, place['left'])
  run, length = place['next'] // place['run'], place['run']
  for index, number in enumerate(range(run, frontier, count)):
    yield (place['next'] if index == 0 else number * length), (number + 1) * length


def _joined(intervals: Iterator[Interval]) -> list[Interval]:
  """In order, with neighbours made one."""
  joined: list[Interval] = []
  for start, stop in sorted(intervals):
    if joined and joined[-1][1] == start:
      joined[-1] = (joined[-1][0], stop)
    else:
      joined.append((start, stop))
  return joined


def _part(intervals: Sequence[Interval], first: int, end: int) -> list[list[int]]:
  """The elements of intervals from the `first` to before the `end`, counted over all of them."""
  part, before = [], 0
  for start, stop in intervals:
    low, high = max(first - before, 0), min(end - before, stop - start)
    if low < high:
      part.append([start + low, start + high])
    before += stop - start
  return part


def _sums(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
  return {reason: sum(count.get(reason, 0) for count in counts) for reason in dict.fromkeys(itertools.chain(*counts))}
