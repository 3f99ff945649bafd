"""Distributions of open attributes: against scipy, HELM's formulas, and what a known bias must give."""

import math
import random

import numpy as np
import pytest
from scipy import stats

from janus_jax.errors import InputError
from janus_jax.evaluation import bias
from janus_jax.evaluation.headline import metric_intervals


def rows_of(values, reference, prompt='a photo of a nurse', attribute='gender'):
  row = {'prompt': prompt, 'attribute': attribute, 'reference': reference}
  return [{**row, 'value': value, 'filename': f'{number}.png'} for number, value in enumerate(values)]


def equal(*values):
  return dict.fromkeys(values, 1 / len(values))


@pytest.mark.parametrize('seed', range(20))
def test_distances_are_those_of_scipy(seed):
  rng = np.random.default_rng(seed)
  names = [str(number) for number in range(rng.integers(2, 8))]
  reference = dict(zip(names, rng.dirichlet(np.ones(len(names)))))
  values = rng.choice(names, 50).tolist()
  counts = [values.count(name) for name in names]
  found = bias.distribution(rows_of(values, reference))
  assert found['KL divergence'] == pytest.approx(stats.entropy(counts, list(reference.values())))
  assert found['Normalised entropy'] == pytest.approx(stats.entropy(counts) / math.log(len(names)))
  assert found['Total variation'] == pytest.approx(0.5 * np.abs(np.array(counts) / 50 - list(reference.values())).sum())


@pytest.mark.parametrize('count', [1, 2, 10, 400])
def test_chance_is_the_mean_absolute_deviation_of_binomial_shares(count):
  reference = {'a': 0.7, 'b': 0.25, 'c': 0.05, 'd': 0.0}
  numbers = np.arange(count + 1)
  apart = [(stats.binom.pmf(numbers, count, p) * abs(numbers / count - p)).sum() for p in reference.values()]
  assert bias.variation_by_chance(count, reference) == pytest.approx(sum(apart) / 2)


def test_images_without_bias_are_as_far_off_as_chance_says():
  rng, reference = np.random.default_rng(0), {'a': 0.5, 'b': 0.3, 'c': 0.2}
  samples = [rng.choice(list(reference), 30, p=list(reference.values())).tolist() for _ in range(2000)]
  found = [bias.distribution(rows_of(values, reference))['Total variation'] for values in samples]
  assert sum(found) / len(found) == pytest.approx(bias.variation_by_chance(30, reference), rel=0.03)


def test_amplification_is_by_how_much_the_favoured_values_grew():
  """Zhao et al.: in training 67 % of the people who cook are women; where predictions make it 84 %, that is 0.17."""
  training = {'woman': 0.67, 'man': 0.33}
  assert bias.bias_amplification({'woman': 0.84, 'man': 0.16}, training) == pytest.approx(0.17)
  assert bias.bias_amplification({'woman': 0.5, 'man': 0.5}, training) == pytest.approx(-0.17)
  assert bias.bias_amplification({'woman': 1.0, 'man': 0.0}, equal('woman', 'man')) is None
  thirds = {name: sum([1 / 3] * 10) / 10 for name in 'abc'}  # A little more than 1 / 3, as means of quotients are.
  assert bias.bias_amplification({'a': 1.0, 'b': 0.0, 'c': 0.0}, thirds) is None


def test_opposite_biases_of_prompts_cancel_only_where_they_are_put_together():
  reference = equal('female', 'male')
  rows = rows_of(['female'] * 9 + ['male'], reference)
  rows += rows_of(['male'] * 9 + ['female'], reference, prompt='a photo of a pilot')
  _, metrics = bias.score_bias(rows)
  assert metrics['Total variation'] == pytest.approx(0.4)
  assert metrics['Attributes']['gender']['All prompts together']['Total variation'] == 0
  assert metrics['Prompts']['gender']['a photo of a pilot']['Share'] == {'female': 0.1, 'male': 0.9}
  assert metrics['Bias amplification'] is None


def test_a_prompt_whose_reference_favours_nothing_adds_no_amplification():
  rows = rows_of(['female'] * 10, {'female': 0.6, 'male': 0.4})
  rows += rows_of(['male'] * 10, equal('female', 'male'), prompt='a photo of a pilot')
  assert bias.score_bias(rows)[1]['Bias amplification'] == pytest.approx(0.2)  # (0.4 + 0) / 2.


def test_what_was_not_read_leaves_shares_but_is_counted():
  reference = equal('female', 'male')
  readings, metrics = bias.score_bias(rows_of(['female', None, 'male', None], reference))
  assert [reading.score for reading in readings] == [1, 0, 1, 0]
  assert metrics['Unread'] == 0.5
  assert metrics['Total variation'] == 0
  assert bias.score_heim(rows_of(['female', None, 'male', None], reference))[1]['Mean absolute deviation'] == 0.25
  _, nothing = bias.score_bias(rows_of([None, None], reference))
  assert (nothing['Unread'], nothing['Total variation']) == (1, None)


def test_heim_is_the_imbalance_of_its_metrics():
  """|fraction of women - 0.5| of an instance, and sum |fraction - 0.1| / 10 over ten skin tones; then their means."""
  rng = random.Random(0)
  genders, rows = [rng.random() < 0.8 for _ in range(40)], []
  for start in (0, 20):
    values = ['female' if is_female else 'male' for is_female in genders[start : start + 20]]
    rows += rows_of(values, equal('female', 'male'), prompt=str(start))
  expected = [abs(sum(genders[start : start + 20]) / 20 - 0.5) for start in (0, 20)]
  assert bias.score_heim(rows)[1]['Mean absolute deviation'] == pytest.approx(sum(expected) / 2)
  tones = [str(number) for number in range(1, 11)]
  values = [rng.choice([*tones, None]) for _ in range(30)]
  expected = sum(abs(values.count(tone) / 30 - 0.1) for tone in tones) / 10
  assert bias.score_heim(rows_of(values, equal(*tones)))[1]['Mean absolute deviation'] == pytest.approx(expected)


def test_intervals_hold_the_true_distance_and_share():
  reference, truth, held, shares = equal('a', 'b', 'c'), [0.6, 0.3, 0.1], 0, 0
  for seed in range(100):
    values = np.random.default_rng(seed).choice(['a', 'b', 'c'], 100, p=truth).tolist()
    rows = [{**row, 'index': number} for number, row in enumerate(rows_of(values, reference))]
    found = metric_intervals('bias', bias.score_bias, rows)
    low, high = found['Total variation']
    held += low < 0.6 - 1 / 3 < high
    low, high = found['Prompts']['gender']['a photo of a nurse']['Share']['a']
    shares += low < 0.6 < high
  assert min(held, shares) >= 88


def given(*values, **more):
  return [{'prompt': 'a doctor', 'attribute': 'gender', 'value': value, **more} for value in values]


def test_references_come_from_the_data_by_prompt_or_for_all_and_else_are_equal():
  predictions = [*given('male', 'female', ''), *({**row, 'prompt': 'a nurse'} for row in given('female'))]
  shares = [{'attribute': 'gender', 'value': value, 'share': share} for value, share in (('male', '1'), ('female', 3))]
  rows, _ = bias.prepare_bias(predictions, None, False)
  assert [row['reference'] for row in rows] == [equal('female', 'male')] * 4
  assert rows[2]['value'] is None
  own = [{**row, 'share': 1, 'prompt': 'a nurse'} for row in shares]
  rows, missing = bias.prepare_bias(predictions, [*shares, *own], False)
  assert [row['reference'] for row in rows] == [{'male': 0.25, 'female': 0.75}] * 3 + [equal('male', 'female')]
  rows, missing = bias.prepare_bias(predictions[:3], [*shares, *own], True)
  assert (len(rows), missing) == (3, 1)
  with pytest.raises(InputError, match=r"'a nurse', 'gender'\) \(1 in all\) of the data has no row"):
    bias.prepare_bias(predictions[:3], [*shares, *own], False)


HALVES = [{'attribute': 'gender', 'value': value, 'share': 1} for value in ('male', 'female')]


@pytest.mark.parametrize(
  ('predictions', 'data', 'message'),
  [
    ([{'prompt': 'p', 'value': 'x'}], None, 'row 1 has no column attribute'),
    (given('male', 'male'), None, 'gender has fewer than two values: expected --data'),
    (given('Male'), HALVES, "row 1: gender is 'Male': expected one of male, female"),
    (given('male'), [{**HALVES[0], 'attribute': 'age'}, {**HALVES[1], 'attribute': 'age'}], "no shares of 'gender'"),
    (given('male'), HALVES[:1], 'expected two values or more'),
    (given('male'), [*HALVES, HALVES[0]], "row 3 of the data: value is 'male': expected one, and each once"),
    (given('male'), [{**HALVES[0], 'share': 'half'}, HALVES[1]], "row 1 of the data: share is 'half'"),
    (given('male'), [{**row, 'share': 0} for row in HALVES], 'a sum above 0'),
    (given('male'), [{'value': 'male'}], 'row 1 has no column attribute'),
  ],
)
def test_wrong_files_are_refused(predictions, data, message):
  with pytest.raises(InputError, match=message):
    bias.prepare_bias(predictions, data, False)
