"""Records of a source that each host reads, and how the rest is dealt anew when there are more or fewer hosts.

The positions of a source, counted on through its epochs, fall into runs of equal length. Host h of n reads the runs h,
h + n, h + 2n, ... A run is one position long, but where neighbours are cheap to read together (blocks.py).

A `ReadPosition` is how far a host has come in a source: a dict of JSON values, part of every checkpoint.

  run    the length of a run
  left   [[start, stop], ...]: positions that other hosts left when the number of hosts changed; they come first
  next   the position after that
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ReadPosition = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class DataShard:
  """The part of the data that a host reads: `index` of `count`, counted from 0."""

  index: int
  count: int


WHOLE = DataShard(0, 1)


def all_shards(count: int) -> list[DataShard]:
  """The shards that are the whole together."""
  return [DataShard(index, count) for index in range(count)]


def first_position(shard: DataShard, run: int) -> ReadPosition:
  """The start of a host in a source that nobody has read."""
  return {'run': run, 'left': [], 'next': shard.index * run}


def position(place: ReadPosition) -> int:
  """The position that is read next."""
  return place['left'][0][0] if place['left'] else place['next']


def after(place: ReadPosition, shard: DataShard) -> ReadPosition:
  """The read position one record further on."""
  if place['left']:
    (start, stop), *rest = place['left']
    return {**place, 'left': ([[start + 1, stop]] if start + 1 < stop else []) + rest}
  following = place['next'] + 1
  if following % place['run'] == 0:
    following += (shard.count - 1) * place['run']
  return {**place, 'next': following}


def deal(positions: Sequence[ReadPosition], count: int) -> list[ReadPosition]:
  """Gives what hosts have left to read to `count` other hosts: no position is lost, none is read again.

  Args:
    positions: read position in one source of each host so far.
    count: hosts from now on.

  Returns:
    The read position of each. They read what lies behind the furthest host first, in parts of equal length, and then
    every `count`-th run.
  """
  run, before = positions[0]['run'], len(positions)
  # The first run that nobody has begun: a host at the start of a run has last read the one `before` runs earlier.
  frontier = 1 + max(position['next'] // run - (0 if position['next'] % run else before) for position in positions)
  left = sorted(number for position in positions for number in _left(position, before, frontier))
  cuts = [index * len(left) // count for index in range(count + 1)]
  return [
    {'run': run, 'left': _intervals(left[start:stop]), 'next': (frontier + index) * run}
    for index, (start, stop) in enumerate(itertools.pairwise(cuts))
  ]


def _left(place: ReadPosition, count: int, frontier: int) -> Iterator[int]:
  """Positions before the run `frontier` that one of `count` hosts has not read."""
  for start, stop in place['left']:
    yield from range(start, stop)
  for number in range(place['next'] // place['run'], frontier, count):
    yield from range(max(place['next'], number * place['run']), (number + 1) * place['run'])


def _intervals(positions: Sequence[int]) -> list[list[int]]:
  """[[start, stop], ...] of ascending positions."""
  intervals = []
  for number in positions:
    if intervals and intervals[-1][1] == number:
      intervals[-1][1] += 1
    else:
      intervals.append([number, number + 1])
  return intervals


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


def count_reasons(states: Sequence[Mapping[str, Any]], name: str) -> dict[str, dict[str, int]]:
  """{'kind/source': {reason: count}} of all streams together; `name` is 'skipped' or 'shortened'."""
  totals = {source: collections.Counter() for source in states[0]['skipped']}
  for state in states:
    for source, counts in state.get(name, {}).items():
      totals[source].update(counts)
  return {source: dict(counts) for source, counts in totals.items()}


def deal_states(states: Sequence[Mapping[str, Any]], count: int) -> list[dict[str, Any]]:
  """Turns the states of the streams (`pipeline.Stream`) of all hosts into those of `count` other streams.

  Each begins a new cycle of tasks, as a stage does. What has been counted so far stands in the first.
  """
  sources = states[0]['places']
  dealt = {source: deal([state['places'][source] for state in states], count) for source in sources}
  unused, read = [unused_parts(state) for state in states], [records_read(state) for state in states]
  rest = {source: [part for parts in unused for part in parts[source]] for source in sources}
  dealt = [
    {
      'index': 0,
      'examples': dict.fromkeys(sources, 0),
      'records': dict.fromkeys(sources, 0),
      'skipped': {source: {} for source in sources},
      'shortened': {source: {} for source in sources},
      'places': {source: dealt[source][index] for source in sources},
      'rest': {source: rest[source][index::count] for source in sources},
      'held': [],
    }
    for index in range(count)
  ]
  dealt[0] |= {name: count_reasons(states, name) for name in ('skipped', 'shortened')}
  dealt[0]['examples'] = {source: sum(state['examples'][source] for state in states) for source in sources}
  dealt[0]['records'] = {source: sum(counts[source] for counts in read) for source in sources}
  return dealt
