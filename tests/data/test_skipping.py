"""Records that streams do not use, and those of which they use a part."""

import itertools
import json

import grain
import pytest
from data.numbered_streams import (
  WEIGHTS,
  contents,
  identity,
  make_sources,
  make_spec,
  record_of,
  start,
  state_of,
)

from janus_jax.data import packing, workers
from janus_jax.data.examples import make_examples
from janus_jax.data.mixture import shuffled
from janus_jax.data.packing import BatchShape
from janus_jax.data.pipeline import next_stage
from janus_jax.data.shard_state import unused_parts
from janus_jax.data.skipping import SkipLimit, describe_shortened, describe_skipped
from janus_jax.errors import InputError


@pytest.fixture(scope='module')
def spec(tmp_path_factory):
  return make_spec(tmp_path_factory.mktemp('tokenizer'))


def test_bad_records_are_skipped_counted_and_replaced_from_their_own_source(spec):
  bad = {('generation/real', i) for i in range(0, 23, 5)}
  iterator = start(spec, (0, 1, 2), sources=make_sources(bad), skip_limit=SkipLimit(fraction=0.5))
  seen = list(itertools.chain.from_iterable(contents(next(iterator), spec) for _ in range(20)))
  state = state_of(iterator)
  assert not {n for k, n in seen if k == 'generation'} & {i for _, i in bad}
  assert state['skipped']['generation/real'].keys() == {'wrong type'}
  skipped, read = state['skipped']['generation/real']['wrong type'], state['records']['generation/real']
  epochs, rest = divmod(read, 23)
  assert epochs
  assert 5 * epochs <= skipped <= 5 * epochs + min(rest, 5)
  assert state['skipped'].keys() == state['examples'].keys() == {'text/c', 'generation/real', 'generation/synthetic'}
  assert abs(read - skipped - state['records']['generation/synthetic']) <= 1
  assert state['records']['text/c'] * 3 == pytest.approx(state['index'], abs=3)


def test_too_many_bad_records_stop_the_run(spec):
  bad = {('text/c', 4)}  # 1 in 29.
  options = {'ratio': (0, 1, 0), 'sources': make_sources(bad)}
  within = start(spec, **options, skip_limit=SkipLimit(fraction=0.05, after=100))
  while state_of(within)['index'] < 200:
    next(within)
  beyond = start(spec, **options, skip_limit=SkipLimit(fraction=0.02, after=100))
  with pytest.raises(InputError, match=r'5 of 1\d\d records are bad, the last 1 in a row.* 2.0%.*the record is a None'):
    list(beyond)
  assert 90 < state_of(beyond)['index'] < 140  # Four bad records in 116 are too many; seen at the next bad one.


@pytest.mark.parametrize('prefetch', [0, 2])
def test_a_source_without_any_good_record_stops(prefetch, spec):
  """At once where records are bad, and later where none fits: too long, or more images than the rows share room for."""
  sources = make_sources([('understanding/a', i) for i in range(37)])
  with pytest.raises(InputError, match='source understanding/a: 100 of 100 records are bad'):
    next(start(spec, (1, 0, 0), sources=sources, prefetch=prefetch))
  for shape, message in ((BatchShape(4, 12, 3, 4), 'tokens'), (BatchShape(4, 100, 0, 4), '1 understanding images')):
    with pytest.raises(InputError, match=f'source understanding/.: the last 1000 records were all skipped.* {message}'):
      next(start(spec, (1, 0, 0), shape=shape, prefetch=prefetch))


def test_records_that_are_too_long_are_counted_but_are_not_bad(spec):
  """Half of them, where no record may be bad: a run goes on, and says how many."""
  lengths = [dict(record_of('understanding', number)) for number in range(40)]
  for number, record in enumerate(lengths[::2]):
    record['turns'] = ['Which?', 'a b ' * 200]
    if number == 3:  # Its first turn fits.
      record['turns'] = ['Which?', 'a', *record['turns']]
  sources = make_sources()
  sources['understanding']['a'] = grain.MapDataset.source(lengths)
  weights = WEIGHTS | {'understanding': {'a': 1}}
  stream = start(spec, (1, 0, 0), sources=sources, weights=weights, skip_limit=SkipLimit(fraction=0.0, after=10))
  seen = list(itertools.chain.from_iterable(contents(next(stream), spec) for _ in range(10)))
  state = state_of(stream)
  assert {n for _, n in seen} <= {6, *range(1, 40, 2)}
  assert state['skipped']['understanding/a'].keys() == {packing.LONG}
  assert state['skipped']['understanding/a'][packing.LONG] == pytest.approx(
    state['records']['understanding/a'] / 2, abs=20
  )
  assert describe_skipped([state]) == f'understanding/a: long {state["skipped"]["understanding/a"][packing.LONG]}'
  assert describe_shortened([state]) == f'understanding/a: cut {state["shortened"]["understanding/a"]["cut"]}'


def test_parts_of_a_record_are_consecutive_examples_each_seen_once(spec, monkeypatch):
  """Also over checkpoints, of a record that has more parts than one batch takes."""

  def split(kind, record, spec, rng, guidance_dropout):
    number = int(record['text'].split()[1])
    texts = [f'number {number} part {part}' for part in range(40 if number == 7 else 2)]
    return [example for text in texts for example in make_examples('text', {'text': text}, spec, rng)]

  monkeypatch.setattr(workers, 'make_examples', split)
  parts, state = [], None
  for _ in range(4):
    stream = start(spec, (0, 1, 0), state=state, shape=BatchShape(2, 60, 0, 0))
    for _ in range(3):
      batch = next(stream)
      for row in range(2):
        for segment in range(1, batch['segments'][row].max() + 1):
          words = spec.tokenizer.decode(batch['tokens'][row, batch['segments'][row] == segment]).split()
          parts.append((int(words[1]), int(words[3])))
    state = json.loads(json.dumps(state_of(stream)))
  assert len(set(parts)) == len(parts) > 45
  view = shuffled(make_sources()['text']['c'], 0, 'text/c')
  read = [identity('text', view[record])[1] for record in range(state['records']['text/c'])]
  expected = {(number, part) for number in read for part in range(40 if number == 7 else 2)}
  waiting = sum(stop - first for _, first, stop in unused_parts(state)['text/c'])
  assert set(parts) <= expected
  assert state['shortened'] == {'text/c': {'split': len(read)}}
  assert len(expected) == len(parts) + waiting


def test_what_a_stage_leaves_and_the_next_has_no_room_for_is_counted(spec):
  first = start(spec, (1, 0, 1))
  next(first)
  (state,) = next_stage([state_of(first)])
  left = len(state['rest']['understanding/a'])
  assert left
  second = start(
    spec, (1, 1, 0), weights=WEIGHTS | {'understanding': {'a': 1}}, state=state, shape=BatchShape(4, 100, 0, 0)
  )
  with pytest.raises(InputError, match='the last 1000 records were all skipped'):
    next(second)
  assert state_of(second)['skipped']['understanding/a'] == {packing.LONG: 1000 + left}
