"""Dealing records to hosts: whatever the hosts do, each record is read once."""

import collections
import json

import grain
import numpy as np
import pytest
from data.numbered_streams import (
  COUNTS,
  contents,
  identity,
  make_sources,
  make_spec,
  same,
  start,
  state_of,
  unused,
)

from janus_jax.data.mixture import shuffled
from janus_jax.data.packing import BatchShape
from janus_jax.data.pipeline import NEW
from janus_jax.data.shard_state import WHOLE, DataShard, after, deal, deal_states, first_position, position
from janus_jax.data.skipping import SkipLimit, describe_shortened
from janus_jax.data.sources.blocks import BlockDataset


@pytest.fixture(scope='module')
def spec(tmp_path_factory):
  return make_spec(tmp_path_factory.mktemp('tokenizer'))


def read(place, shard, count):
  """The next positions, and the place after them."""
  found = []
  for _ in range(count):
    found.append(position(place))
    place = after(place, shard)
  return found, place


def test_one_host_reads_everything_in_order():
  assert read(first_position(WHOLE, 1), WHOLE, 5)[0] == [0, 1, 2, 3, 4]
  assert read(first_position(WHOLE, 3), WHOLE, 5)[0] == [0, 1, 2, 3, 4]


def test_hosts_take_runs_in_turn():
  shards = [DataShard(index, 3) for index in range(3)]
  assert [read(first_position(shard, 1), shard, 3)[0] for shard in shards] == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
  assert read(first_position(shards[1], 2), shards[1], 5)[0] == [2, 3, 8, 9, 14]


@pytest.mark.parametrize('seed', range(30))
def test_nothing_is_lost_or_read_twice_however_often_hosts_come_and_go(seed):
  rng = np.random.default_rng(seed)
  run, count = int(rng.choice([1, 2, 7])), int(rng.integers(1, 6))
  places = [first_position(DataShard(index, count), run) for index in range(count)]
  seen = []
  for _ in range(6):
    for index in range(count):  # Hosts drift apart: batches hold different numbers of examples.
      found, places[index] = read(places[index], DataShard(index, count), int(rng.integers(0, 60)))
      seen += found
    new = int(rng.integers(1, 6))
    places = json.loads(json.dumps(deal(places, new)))  # Through a checkpoint.
    left = [sum(stop - start for start, stop in place['left']) for place in places]
    assert max(left) - min(left) <= 1
    count = new
  end = max(place['next'] for place in places) + 3 * run
  for index, place in enumerate(places):
    while position(place) < end or place['left']:
      if position(place) < end:
        seen.append(position(place))
      place = after(place, DataShard(index, count))
  assert sorted(seen) == list(range(end))


def test_dealing_to_as_many_hosts_keeps_what_nobody_has_begun():
  places = [first_position(DataShard(index, 2), 5) for index in range(2)]
  assert deal(places, 2) == places


def test_what_one_host_left_behind_comes_first():
  fast, slow = DataShard(0, 2), DataShard(1, 2)
  places = [
    read(first_position(fast, 1), fast, 4)[1],
    read(first_position(slow, 1), slow, 1)[1],
  ]  # Read: 0, 2, 4, 6 and 1.
  (place,) = deal(places, 1)
  assert read(place, WHOLE, 5)[0] == [3, 5, 7, 8, 9]


def records_before(place, view):
  """The records of a source that are at the positions which somebody has read, in no order."""
  left = {number for start, stop in place['left'] for number in range(start, stop)}
  return [view[number] for number in range(place['next']) if number not in left]


@pytest.mark.parametrize('hosts', [(2, 3, 1), (1, 4, 2), (3, 3, 2, 5)])
def test_streams_of_changing_hosts_see_every_record_once_an_epoch(hosts, spec):
  """Checkpoints, at which the number of hosts changes, lie between batches; of text there are several epochs."""
  bad = {('text/c', 3), ('generation/real', 20)}
  sources = make_sources(bad)
  states, seen = None, []
  for count in hosts:
    states = deal_states(states, count) if states else [NEW] * count
    for index in range(count):
      options = {'shards': [DataShard(index, count)], 'state': states[index], 'skip_limit': SkipLimit(fraction=0.9)}
      stream = start(spec, (2, 9, 5), sources=sources, shape=BatchShape(2, 100, 6, 8), **options)
      for _ in range(3 + index):
        seen += contents(next(stream), spec)
      states[index] = json.loads(json.dumps(state_of(stream)))
  (total,) = deal_states(states, 1)
  assert sum(total['examples'].values()) == len(seen)
  assert total['skipped']['text/c']['wrong type'] > 1
  expected = []
  for key, place in total['places'].items():
    kind, name = key.split('/')
    records = records_before(place, shuffled(sources[kind][name], 0, key))
    assert len(records) == total['records'][key]
    expected += [identity(kind, record) for record in records if record is not None]
  assert collections.Counter(seen + unused(total, sources)) == collections.Counter(expected)
  assert total['places']['text/c']['next'] > 2 * COUNTS['text/c']


def test_hosts_read_whole_blocks():
  """Of blocks of four, a host of two decodes every second one."""
  parent = grain.MapDataset.source([{'text': f'number {number}'} for number in range(40)])
  source = BlockDataset(parent, [4] * 10)
  assert source.block_size == 4
  shard = DataShard(1, 2)
  view = source.shuffle(seed=3).repeat()
  found = [
    int(view[number]['text'].split()[1]) for number in read(first_position(shard, source.block_size), shard, 20)[0]
  ]
  assert len({number // 4 for number in found}) == 5


@pytest.mark.parametrize('workers', [0, 2])
def test_a_batch_is_the_rows_of_its_streams(workers, spec):
  """Two hosts of two streams each, and one host of all four, which shares its workers among them, see the same."""
  shape, shards = BatchShape(1, 100, 3, 4), [DataShard(index, 4) for index in range(4)]
  together = start(spec, shape=shape, shards=shards, workers=workers)
  apart = [start(spec, shape=shape, shards=shards[:2]), start(spec, shape=shape, shards=shards[2:])]
  for _ in range(3):
    batch, parts = next(together), [next(host) for host in apart]
    same(batch, {name: np.concatenate([part[name] for part in parts]) for name in batch})
  states = [state for host in apart for state in host.get_state()['streams']]
  assert together.get_state() == {'streams': states}
  together.close()


@pytest.mark.parametrize('count', [1, 2, 5])
def test_parts_of_long_records_go_to_other_streams_once_each(count):
  """Those that nobody has used: what is held back for a row, and what is left of a record."""
  states = [
    {
      **NEW,
      'examples': {'text/c': 3},
      'records': {'text/c': 4 + index},
      'skipped': {'text/c': {}},
      'shortened': {'text/c': {'split': 2 + index}},
      'places': {'text/c': first_position(DataShard(index, 2), 1)},
      'rest': {'text/c': [[index, 3, 9]]},
      'held': [['text/c', 10 + index, 1]],
    }
    for index in range(2)
  ]
  dealt = deal_states(states, count)
  parts = sorted(tuple(part) for state in dealt for part in state['rest']['text/c'])
  assert parts == [(0, 3, 9), (1, 3, 9), (10, 1, 2), (11, 1, 2)]
  assert all(state['held'] == [] for state in dealt)
  assert [describe_shortened([state]) for state in dealt] == ['text/c: split 5', *[''] * (count - 1)]
  assert describe_shortened(dealt) == 'text/c: split 5'
  # Counters of their own: what one stream shortens it has not skipped.
  assert all(state['skipped']['text/c'] is not state['shortened']['text/c'] for state in dealt)
  assert [state['records']['text/c'] for state in dealt] == [9, *[0] * (count - 1)]
