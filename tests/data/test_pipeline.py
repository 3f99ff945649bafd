"""Order and content of the batches of streams, stopped and resumed or not."""

import collections
import dataclasses
import itertools
import json

import numpy as np
import pytest
from data.numbered_streams import (
  COUNTS,
  SHAPE,
  WEIGHTS,
  contents,
  make_sources,
  make_spec,
  same,
  start,
  state_of,
  unused,
)

from janus_jax.data import packing
from janus_jax.data.examples import CODE
from janus_jax.data.mean_sizes import mean_sizes
from janus_jax.data.packing import BatchShape
from janus_jax.data.pipeline import next_stage
from janus_jax.data.skipping import SkipLimit
from janus_jax.errors import InputError


@pytest.fixture(scope='module')
def spec(tmp_path_factory):
  return make_spec(tmp_path_factory.mktemp('tokenizer'))


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
  assert abs(state['records']['generation/real'] - state['records']['generation/synthetic']) <= 1


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

  def synthetic(examples):
    return [n for k, n in examples if k == 'generation' and n >= 23]

  assert synthetic(held)
  options = {'weights': {'generation': {'synthetic': 1}}, 'shape': BatchShape(1, 100, 0, 16)}
  second = start(spec, (0, 0, 1), state=state, **options)
  while len(synthetic(used)) < COUNTS['generation/synthetic'] - 25:
    used += contents(next(second), spec)
  last = state_of(second)
  read = synthetic(used + unused(last))
  assert len(set(read)) == len(read) <= COUNTS['generation/synthetic']
  assert set(synthetic(held)) <= set(synthetic(used))
  assert last['records']['generation/synthetic'] == len(read)
  assert last['examples'] == state['examples'] | {'generation/synthetic': len(synthetic(used))}
  # What no source of this stage is asked for waits for one that asks.
  others = [example for example in unused(state) if example not in [('generation', n) for n in synthetic(held)]]
  assert set(others) <= set(unused(last))


def test_the_mean_size_of_a_mixture_is_that_of_what_is_read(spec):
  (mean,) = mean_sizes(make_sources(), [((2, 3, 5), WEIGHTS)], spec, 0)
  stream, totals = start(spec), np.zeros(3)
  for _ in range(100):
    batch = next(stream)
    totals += [
      (batch['segments'] > 0).sum(),
      *((batch[name].any((2, 3, 4))).sum() for name in ('pixels', 'generation_pixels')),
    ]
  used = sum(state_of(stream)['examples'].values())
  np.testing.assert_allclose(dataclasses.astuple(mean), totals / used, rtol=0.03)
  with pytest.raises(
    InputError, match=r'source text/c: none of its first \d+ records can be used\. The last: the record is a None'
  ):
    mean_sizes(make_sources([('text/c', i) for i in range(29)]), [((2, 3, 5), WEIGHTS)], spec, 0)


def test_guidance_dropout_is_sampled_per_record_and_epoch(spec):
  iterator, pad = start(spec, (0, 0, 1), guidance_dropout=0.3), spec.tokenizer.special.pad
  counts = collections.defaultdict(list)
  for _ in range(60):
    batch = next(iterator)
    for row in range(SHAPE.rows):
      for segment in range(1, batch['segments'][row].max() + 1):
        where = batch['segments'][row] == segment
        code = batch['tokens'][row, where][batch['token_types'][row, where] == CODE][0]
        number = batch['generation_pixels'][0, code // 5, 0, 0, 0]
        counts[int(number)].append(pad in batch['tokens'][row, where])
  dropped = list(itertools.chain.from_iterable(counts.values()))
  assert abs(np.mean(dropped) - 0.3) < 4 * np.sqrt(0.21 / len(dropped))
  assert sum(len(set(sampled)) == 2 for sampled in counts.values()) > len(counts) / 2


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
