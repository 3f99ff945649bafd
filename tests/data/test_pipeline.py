import collections
import dataclasses
import itertools
import json
import multiprocessing
import os

import grain
import numpy as np
import pytest
from conversion.fixtures import BOS, EOS, JANUS_TOKENS, make_tokenizer

from janus_jax.data import packing, pipeline, prompts, workers
from janus_jax.data.examples import CODE, GENERATION_LOSS, TEXT_LOSS, UNDERSTANDING_LOSS, ExampleSpec, make_examples
from janus_jax.data.mean_sizes import mean_sizes
from janus_jax.data.mixture import shuffled
from janus_jax.data.packing import BatchShape
from janus_jax.data.pipeline import batches, next_stage
from janus_jax.data.shard_state import unused_parts
from janus_jax.data.skipping import SkipLimit, describe_shortened, describe_skipped
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.data.workers import AHEAD, TASK
from janus_jax.errors import InputError

SIZE, GENERATION_SIZE = 4, 2
PIXELS = ('pixels', 'generation_pixels')
COUNTS = {'understanding/a': 37, 'understanding/b': 11, 'text/c': 29, 'generation/real': 23, 'generation/drawn': 50}
WEIGHTS = {'understanding': {'a': 2, 'b': 1}, 'text': {'c': 1}, 'generation': {'real': 1, 'drawn': 1}}
SHAPE = BatchShape(4, 100, 12, 16)


@pytest.fixture(scope='module')
def spec(tmp_path_factory):
  directory = tmp_path_factory.mktemp('tokenizer')
  (directory / 'tokenizer.json').write_bytes(make_tokenizer((BOS, EOS, *JANUS_TOKENS)))
  tokenizer = Tokenizer.from_directory(directory)
  return ExampleSpec(tokenizer, prompts.TEMPLATES['deepseek'], 3, 5, SIZE, GENERATION_SIZE, 100, system='')


def record_of(kind, number):
  """A record that can be told from the others of its kind by its example."""
  if kind == 'understanding':
    return {'images': [np.full((SIZE, SIZE, 3), number, np.uint8)], 'turns': ['Which?', 'a' * (number % 20 + 1)]}
  if kind == 'text':
    return {'text': f'number {number}'}
  return {'prompt': 'three', 'image': np.full((GENERATION_SIZE, GENERATION_SIZE, 3), number, np.uint8)}


def make_sources(bad=(), counts=COUNTS):
  """Records numbered through each kind; `bad` holds (source, index) of those that are None."""
  sources, first = collections.defaultdict(dict), collections.Counter()
  for key, count in counts.items():
    kind, name = key.split('/')
    records = [None if (key, i) in bad else record_of(kind, first[kind] + i) for i in range(count)]
    sources[kind][name] = grain.MapDataset.source(records)
    first[kind] += count
  return sources


def start(spec, ratio=(2, 3, 5), state=None, **options):
  """One stream, going on from a state of it."""
  options['states'] = state and [state]
  options = {'sources': make_sources(), 'weights': WEIGHTS, 'shape': SHAPE, 'seed': 0} | options
  return batches(ratio=ratio, spec=spec, **options)


def state_of(iterator):
  """Of its one stream."""
  (state,) = iterator.get_state()['streams']
  return state


def contents(batch, spec):
  """(kind, number) of every example in a batch."""
  result = []
  images, generation_images = iter(batch['pixels'][0, :, 0, 0, 0]), iter(batch['generation_pixels'][0, :, 0, 0, 0])
  for row in range(len(batch['tokens'])):
    for segment in range(1, batch['segments'][row].max() + 1):
      where = batch['segments'][row] == segment
      losses = set(batch['loss_ids'][row, where])
      if UNDERSTANDING_LOSS in losses:
        result.append(('understanding', int(next(images))))
      elif GENERATION_LOSS in losses:
        result.append(('generation', int(next(generation_images))))
      else:
        assert TEXT_LOSS in losses
        result.append(('text', int(spec.tokenizer.decode(batch['tokens'][row, where]).split()[1])))
  return result


def identity(kind, record):
  """(kind, number) of a record, as `contents` has it."""
  match kind:
    case 'understanding':
      return kind, int(record['images'][0][0, 0, 0])
    case 'text':
      return kind, int(record['text'].split()[1])
  return kind, int(record['image'][0, 0, 0])


def unused(state, sources=None):
  """(kind, number) of every example that was read and is in no batch yet."""
  found, sources = [], sources or make_sources()
  for key, parts in unused_parts(state).items():
    kind, name = key.split('/')
    view = shuffled(sources[kind][name], 0, key)
    found += [identity(kind, view[record]) for record, _, _ in parts]
  return found


def same(first, second):
  assert first.keys() == second.keys()
  for name, value in first.items():
    assert value.dtype == second[name].dtype
    np.testing.assert_array_equal(value, second[name])


@pytest.mark.parametrize('ratio', [(1, 0, 3), (2, 3, 5), (5, 1, 4)])
def test_what_is_read_holds_the_ratio_and_is_in_a_batch_or_held(ratio, spec):
  """Any sum(ratio) consecutive examples that are read hold it exactly; a batch takes those that fill its rows."""
  iterator, used = start(spec, ratio), collections.Counter()
  for _ in range(20):
    batch = next(iterator)
    used += collections.Counter(kind for kind, _ in contents(batch, spec))
    state = state_of(iterator)
    held = collections.Counter(key.split('/')[0] for key, _, _ in state['held'])
    assert 0 < held.total() < packing.WAITING
    cycles, rest = divmod(state['index'], sum(ratio))
    for kind, share in zip(('understanding', 'text', 'generation'), ratio):
      assert 0 <= used[kind] + held[kind] - cycles * share <= min(share, rest)
    assert sum(state['examples'].values()) == used.total()


def test_each_source_is_read_in_epochs_and_counted(spec):
  """No record of a source comes a second time before all others came once; the counters say how many came."""
  iterator = start(spec)
  used = list(itertools.chain.from_iterable(contents(next(iterator), spec) for _ in range(30)))
  state = state_of(iterator)
  seen, first = used + unused(state), collections.Counter()
  for key, count in COUNTS.items():
    kind = key.split('/')[0]
    numbers = [n for k, n in seen if k == kind and first[kind] <= n < first[kind] + count]
    own = [n for k, n in used if k == kind and first[kind] <= n < first[kind] + count]
    first[kind] += count
    assert state['examples'][key] == len(own)
    assert state['records'][key] == len(numbers)
    epochs, rest = divmod(len(numbers), count)
    assert set(collections.Counter(numbers).values()) <= {epochs, epochs + (rest > 0)}
  assert state['index'] == sum(state['records'].values()) == len(seen)
  assert state['records']['understanding/a'] == pytest.approx(2 * state['records']['understanding/b'], abs=2)
  assert abs(state['records']['generation/real'] - state['records']['generation/drawn']) <= 1


def test_the_seed_decides_the_order_and_nothing_else_does(spec):
  np.random.seed(1)
  first, again, other = start(spec), start(spec, seed=0), start(spec, seed=1)
  for _ in range(3):
    batch = next(first)
    np.random.random()
    same(batch, next(again))
    assert contents(batch, spec) != contents(next(other), spec)


@pytest.mark.parametrize('prefetch', [0, 3])
@pytest.mark.parametrize('stop', [0, 1, 7])
def test_resuming_gives_the_same_batches(stop, prefetch, spec):
  bad = {('text/c', 3), ('generation/real', 5), ('understanding/b', 1)}
  options = {'sources': make_sources(bad), 'skip_limit': SkipLimit(fraction=0.5)}
  whole = start(spec, **options)
  expected = [next(whole) for _ in range(stop + 6)]
  iterator = start(spec, **options, prefetch=prefetch)
  for batch in expected[:stop]:
    same(next(iterator), batch)
  state = json.loads(json.dumps(state_of(iterator)))
  next(iterator)  # What happens after the save changes nothing.
  resumed = start(spec, **options, prefetch=prefetch, state=state)
  assert state_of(resumed) == state if stop else state_of(resumed)['index'] == 0
  for batch in expected[stop:]:
    same(next(resumed), batch)
  assert state_of(resumed) == state_of(whole)
  iterator.set_state({'streams': [state]})
  same(next(iterator), expected[stop])
  iterator.close()
  resumed.close()


def test_sources_keep_their_place_in_the_next_stage(spec):
  """Other ratio, other weights, one source less: each source's epoch goes on where it was, with what was held back."""
  first = start(spec, (5, 1, 4))
  used = contents(next(first), spec)
  (state,) = next_stage([state_of(first)])
  assert state['held'] == []
  held = collections.Counter(unused(state))
  assert held == collections.Counter(unused(state_of(first)))
  drawn = lambda examples: [n for k, n in examples if k == 'generation' and n >= 23]  # noqa: E731
  assert drawn(held)
  options = {'weights': {'generation': {'drawn': 1}}, 'shape': BatchShape(1, 100, 0, 16)}
  second = start(spec, (0, 0, 1), state=state, **options)
  while len(drawn(used)) < COUNTS['generation/drawn'] - 25:
    used += contents(next(second), spec)
  last = state_of(second)
  read = drawn(used + unused(last))
  assert len(set(read)) == len(read) <= COUNTS['generation/drawn']
  assert set(drawn(held)) <= set(drawn(used))
  assert last['records']['generation/drawn'] == len(read)
  assert last['examples'] == state['examples'] | {'generation/drawn': len(drawn(used))}
  # What no source of this stage is asked for waits for one that asks.
  others = [example for example in unused(state) if example not in [('generation', n) for n in drawn(held)]]
  assert set(others) <= set(unused(last))


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
  assert state['skipped'].keys() == state['examples'].keys() == {'text/c', 'generation/real', 'generation/drawn'}
  assert abs(read - skipped - state['records']['generation/drawn']) <= 1
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


def test_the_mean_size_of_a_mixture_is_that_of_what_is_read(spec):
  (mean,) = mean_sizes(make_sources(), [((2, 3, 5), WEIGHTS)], spec, 0)
  stream, totals = start(spec), np.zeros(3)
  for _ in range(100):
    batch = next(stream)
    totals += [(batch['segments'] > 0).sum(), *((batch[name].any((2, 3, 4))).sum() for name in PIXELS)]
  used = sum(state_of(stream)['examples'].values())
  np.testing.assert_allclose(dataclasses.astuple(mean), totals / used, rtol=0.03)
  with pytest.raises(
    InputError, match=r'source text/c: none of its first \d+ records can be used\. The last: the record is a None'
  ):
    mean_sizes(make_sources([('text/c', i) for i in range(29)]), [((2, 3, 5), WEIGHTS)], spec, 0)


def test_guidance_dropout_is_drawn_per_record_and_epoch(spec):
  iterator, pad = start(spec, (0, 0, 1), guidance_dropout=0.3), spec.tokenizer.special.pad
  counts = collections.defaultdict(list)
  for _ in range(60):
    batch = next(iterator)
    for row in range(SHAPE.rows):
      for segment in range(1, batch['segments'][row].max() + 1):
        where = batch['segments'][row] == segment
        place = batch['tokens'][row, where][batch['token_types'][row, where] == CODE][0]
        number = batch['generation_pixels'][0, place // 5, 0, 0, 0]
        counts[int(number)].append(pad in batch['tokens'][row, where])
  draws = list(itertools.chain.from_iterable(counts.values()))
  assert abs(np.mean(draws) - 0.3) < 4 * np.sqrt(0.21 / len(draws))
  assert sum(len(set(drawn)) == 2 for drawn in counts.values()) > len(counts) / 2


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'ratio': (0, 0, 0)}, 'sum to zero'),
    ({'weights': {'understanding': {'a': 1}, 'text': {'c': 1}}}, 'no source of generation'),
    ({'weights': WEIGHTS | {'text': {'books': 1}}}, r"no source of text is called 'books': expected one of \['c'\]"),
    ({'sources': make_sources(counts=COUNTS | {'text/c': 0})}, 'source text/c: empty'),
  ],
)
def test_bad_stages(options, message, spec):
  with pytest.raises(InputError, match=message):
    start(spec, **options)


def test_the_stream_does_not_depend_on_workers_or_on_where_it_was_stopped(spec):
  bad = {('generation/real', i) for i in range(0, 23, 5)} | {('text/c', 3)}
  options = {'sources': make_sources(bad), 'skip_limit': SkipLimit(fraction=0.5)}
  alone = start(spec, **options)
  expected = [next(alone) for _ in range(12)]
  state = None
  for count, stop in ((2, 5), (1, 8), (0, 10), (3, 12)):
    stream = start(spec, **options, workers=count, state=state, prefetch=2)
    for _ in range(stop - (12 - len(expected))):
      same(next(stream), expected.pop(0))
    state = state_of(stream)
    stream.close()
  assert not expected
  assert state == state_of(alone)
  assert state['skipped']['generation/real']['wrong type'] > 2


def test_what_is_requested_is_what_will_be_wanted(spec, monkeypatch):
  """Of sources without bad records nothing is read for nothing, and nothing is read only when it is wanted."""
  requested, wanted = [], []

  class Spy(pipeline.Reader):
    def request(self, source, position):
      requested.append((source, position))
      self._tasks[source, position] = None

    def get(self, source, position):
      del self._tasks[source, position]
      wanted.append((source, position))
      return self._workers.reading.examples(source, position)

  monkeypatch.setattr(pipeline, 'Reader', Spy)
  stream = start(spec, workers=2)
  for _ in range(5):
    next(stream)
  assert requested[: len(wanted)] == wanted
  assert len(requested) - len(wanted) == 2 * AHEAD * TASK - 1


class Deadly:
  """Records of text, one of which ends the process that reads it."""

  def __init__(self, path):
    self.path = path

  def __len__(self):
    return 20

  def __getitem__(self, index):
    if index == 7:
      with open(self.path, 'a') as file:
        file.write('.')
      os._exit(1)
    return record_of('text', index)


def test_a_record_that_kills_its_worker_is_skipped_and_no_other(spec, tmp_path):
  source = grain.MapDataset.source(Deadly(str(tmp_path / 'deaths')))
  stream = start(spec, (0, 1, 0), sources={'text': {'c': source}}, skip_limit=SkipLimit(fraction=0.5), workers=2)
  seen = []
  while state_of(stream)['examples']['text/c'] < 19:
    seen += [number for _, number in contents(next(stream), spec)]
  state = state_of(stream)
  stream.close()
  assert set(seen) == set(range(20)) - {7}
  assert state['skipped']['text/c'].keys() == {'crash'}
  assert describe_skipped([state]) == f'text/c: crash {state["skipped"]["text/c"]["crash"]}'


def test_a_worker_that_is_killed_costs_no_record(spec):
  others = multiprocessing.active_children()
  alone, stream = start(spec), start(spec, workers=2)
  for number in range(8):
    np.testing.assert_equal(next(stream), next(alone))
    if number == 2:
      next(child for child in multiprocessing.active_children() if child not in others).kill()
  assert state_of(stream) == state_of(alone)
  stream.close()


class Unreadable:
  """Records that no other process can be given."""

  def __len__(self):
    return 20

  def __getitem__(self, index):
    return record_of('text', index)

  def __setstate__(self, state):
    os._exit(1)

  def __getstate__(self):
    return {'a': 1}


def test_workers_that_cannot_be_started_end_the_run(spec):
  stream = start(spec, (0, 1, 0), sources={'text': {'c': grain.MapDataset.source(Unreadable())}}, workers=2)
  with pytest.raises(RuntimeError, match='ended before it read one'):
    next(stream)
