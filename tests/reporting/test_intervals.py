"""Intervals of shares whose cases stand on prompts that repeat."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from janus_jax.reporting.intervals import design_effect, proportion_interval

# Survivors and litter sizes of Weil's rats (Rao and Scott 1992, table 1), of the control and the treated group.
CONTROL = [(13, 13), (12, 12), (9, 9), (9, 9), (8, 8), (8, 8), (12, 13), (11, 12), (9, 10), (9, 10), (8, 9), (11, 13)]
CONTROL += [(4, 5), (5, 7), (7, 10), (7, 10)]
TREATED = [(12, 12), (11, 11), (10, 10), (9, 9), (10, 11), (9, 10), (9, 10), (8, 9), (8, 9), (4, 5), (7, 9), (4, 7)]
TREATED += [(5, 10), (3, 6), (3, 10), (0, 7)]


@pytest.mark.parametrize(('litters', 'expected'), [(CONTROL, 1.232495), (TREATED, 3.952861)])
def test_design_effects_of_the_paper(litters, expected):
  """As the R package PF gives them for this table."""
  assert design_effect(*zip(*litters)) == pytest.approx(expected, abs=1e-6)


def wilson(share, cases, units):
  """By its definition: the shares p with |share - p| = t sqrt(p (1 - p) / cases)."""
  squared = stats.t.ppf(0.975, units - 1) ** 2 / cases
  return sorted(np.roots([1 + squared, -2 * share - squared, share**2]).real)


def test_intervals_are_wilsons_on_the_effective_number_of_cases():
  assert proportion_interval([1] * 9 + [0], [1] * 10) == pytest.approx(wilson(0.9, 10, 10))
  right, totals = zip(*TREATED)
  mean = sum(totals) / 16
  effect = design_effect([*right, mean, 0], [*totals, mean, mean])
  assert effect > 3.952861
  assert proportion_interval(right, totals) == pytest.approx(wilson(112 / 145, 145 / effect, 16))


def test_each_wrong_case_lowers_both_ends():
  found = [proportion_interval([4] * (10 - wrong) + [3] * wrong, [4] * 10) for wrong in range(5)]
  assert all(a > b for (a, _), (b, _) in itertools.pairwise(found))
  assert all(a > b for (_, a), (_, b) in itertools.pairwise(found))


@pytest.mark.parametrize('right', [0, 4])
def test_where_all_cases_agree_only_prompts_count(right):
  repeated, alone = proportion_interval([right] * 10, [4] * 10), proportion_interval([right // 4] * 10, [1] * 10)
  assert repeated == pytest.approx(alone)
  assert repeated[1] - repeated[0] == pytest.approx(0.338, abs=1e-3)


def test_repeating_prompts_adds_little_where_each_is_right_or_wrong_as_a_whole():
  once = proportion_interval([1] * 14 + [0] * 6, [1] * 20)
  assert proportion_interval([5] * 14 + [0] * 6, [5] * 20) == pytest.approx(once)
  # Cases that vary within prompts as independent ones do count fully, and no more than that.
  apart = proportion_interval([3, 4] * 10, [5] * 20)
  assert apart == pytest.approx(wilson(0.7, 100, 20))


def test_one_prompt_says_nothing():
  assert proportion_interval([7], [10]) == (0, 1)


def test_112_of_120_does_not_establish_90_percent():
  totals = [10] * 4 + [2] * 16 + [1] * 48
  right = [8, 9, 10, 9, *[2] * 15, 1, *[1] * 45, 0, 0, 0]
  assert (sum(right), sum(totals), len(totals)) == (112, 120, 68)
  low, high = proportion_interval(right, totals)
  assert low < 0.9 < 112 / 120 < high < 1
  assert math.isclose(high - low, 0.1, abs_tol=0.02)


@pytest.mark.parametrize('correlation', [0, 0.3, 1])
@pytest.mark.parametrize('share', [0.5, 0.9])
def test_intervals_hold_the_true_share_as_often_as_they_say(correlation, share):
  rng, held = np.random.default_rng(0), 0
  totals = [10] * 4 + [2] * 16 + [1] * 48
  for _ in range(400):
    if correlation in (0, 1):
      chances = np.full(len(totals), share) if correlation == 0 else rng.random(len(totals)) < share
    else:
      spread = (1 - correlation) / correlation
      chances = rng.beta(share * spread, (1 - share) * spread, len(totals))
    low, high = proportion_interval(rng.binomial(totals, chances).tolist(), totals)
    held += low <= share <= high
  assert held / 400 >= (0.87 if correlation == 1 else 0.93)
