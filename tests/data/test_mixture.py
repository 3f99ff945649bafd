import collections
import math

import grain
import numpy as np
import pytest

from janus_jax.data import mixture
from janus_jax.data.examples import TASKS
from janus_jax.data.mixture import interleave, make_mixture
from janus_jax.errors import InputError

WEIGHTS = {'understanding': {'a': 1, 'b': 1}, 'text': {'c': 1}, 'generation': {'real': 3, 'synthetic': 2}}


def window_counts(sequence, length):
  return {tuple(sorted(collections.Counter(sequence[i : i + length]).items())) for i in range(len(sequence) - length)}


@pytest.mark.parametrize('ratio', [(1, 0, 3), (2, 3, 5), (5, 1, 4), (7, 3, 10), (1, 1, 1), (0, 0, 1), (10, 0, 30)])
def test_every_window_of_a_cycle_holds_the_ratio(ratio):
  """The reports' ratios among them."""
  plan = make_mixture(ratio, WEIGHTS)
  kinds = [plan.source_at(i)[0] for i in range(5 * sum(ratio))]
  expected = tuple(sorted((kind, share) for kind, share in zip(TASKS, ratio) if share))
  assert window_counts(kinds, sum(ratio)) == {expected}


@pytest.mark.parametrize('ratio', [(1, 0, 3), (2, 3, 5), (5, 1, 4)])
def test_sources_of_a_kind_hold_their_weights_in_every_window(ratio):
  plan = make_mixture(ratio, WEIGHTS)
  chosen = [plan.source_at(i) for i in range(40 * sum(ratio))]
  for kind, share in zip(TASKS, ratio):
    names = [name for k, name in chosen if k == kind]
    if share:
      assert window_counts(names, sum(WEIGHTS[kind].values())) == {tuple(sorted(WEIGHTS[kind].items()))}


def test_random_access_agrees_with_counting():
  """Example i comes from the next source of its kind's cycle, whichever i is asked for first."""
  plan = make_mixture((2, 3, 5), WEIGHTS)
  seen = collections.Counter()
  for i in range(200):
    kind = plan.tasks[i % 10]
    assert plan.source_at(i) == (kind, plan.sources[kind][seen[kind] % len(plan.sources[kind])])
    seen[kind] += 1


def test_interleaving_spreads_evenly():
  """In every prefix each name is within about one occurrence of its share."""
  rng = np.random.default_rng(0)
  for _ in range(200):
    weights = {name: int(rng.integers(0, 9)) for name in 'abc'} | {'d': 1}
    cycle, total = interleave(weights), sum(weights.values())
    assert len(cycle) == total // math.gcd(*weights.values())
    for n in range(1, len(cycle) + 1):
      for name, weight in weights.items():
        assert abs(cycle[:n].count(name) - n * weight / total) < 1.5
    assert collections.Counter(cycle) == {name: weight for name, weight in weights.items() if weight}
  assert interleave({'a': 2, 'b': 2}) == ('a', 'b')


@pytest.mark.parametrize(
  ('ratio', 'weights', 'message'),
  [
    ((0, 0, 0), WEIGHTS, 'ratio: they sum to zero'),
    ((1, -1, 3), WEIGHTS, 'ratio: -1 for text'),
    ((1, 0.5, 3), WEIGHTS, 'ratio: 0.5 for text'),
    ((1, True, 3), WEIGHTS, 'ratio: True for text'),
    ((1, 3), WEIGHTS, r'ratio \[1, 3\]: expected 3 integers'),
    ((1, 0, 3), {'understanding': {'a': 1}}, 'ratio 1:0:3: no source of generation'),
    ((1, 0, 3), {'understanding': {}, 'generation': {'a': 1}}, 'ratio 1:0:3: no source of understanding'),
    ((0, 0, 1), {'generation': {'a': 0, 'b': 0}}, 'weights of generation: they sum to zero'),
    ((0, 0, 1), {'generation': {'a': 1, 'b': -2}}, 'weights of generation: -2 for b'),
    ((0, 0, 1), {**WEIGHTS, 'video': {'a': 1}}, "sources of kind 'video'"),
  ],
)
def test_bad_mixtures(ratio, weights, message):
  with pytest.raises(InputError, match=message):
    make_mixture(ratio, weights)


def test_weights_of_a_kind_that_is_not_asked_for_do_not_matter():
  assert make_mixture((1, 0, 0), {'understanding': {'a': 1}, 'text': {}}).source_at(9) == ('understanding', 'a')


def test_views_reshuffle_every_epoch_and_differ_between_sources_and_seeds():
  source = grain.MapDataset.range(50)
  view = mixture.shuffled(source, 0, 'text/a')
  epochs = [[int(view[50 * epoch + i]) for i in range(50)] for epoch in range(3)]
  for epoch in epochs:
    assert sorted(epoch) == list(range(50))
  others = [[int(other[i]) for i in range(50)] for other in (mixture.shuffled(source, 0, 'text/b'),)]
  others += [[int(other[i]) for i in range(50)] for other in (mixture.shuffled(source, 1, 'text/a'),)]
  orders = {tuple(order) for order in [*epochs, *others]}
  assert len(orders) == 5
  assert [int(mixture.shuffled(source, 0, 'text/a')[i]) for i in range(50)] == epochs[0]


def test_seeds_do_not_depend_on_the_process():
  """Python's own `hash` of a string would make them; the number is what this very line gave once."""
  assert mixture.source_seed(0, 'text/a') == 169617747


def test_an_empty_source():
  with pytest.raises(InputError, match='source text/a: empty'):
    mixture.shuffled(grain.MapDataset.source([]), 0, 'text/a')
