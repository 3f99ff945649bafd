"""Intervals against values from a printed table of Student's t, and against scipy's own tests."""

import numpy as np
import pytest
import scipy.stats

from janus_jax.reporting.statistics import estimate, paired_difference, t_quantile


# Two-sided 95 %: any textbook's table.
@pytest.mark.parametrize(('degrees', 'quantile'), [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (30, 2.042)])
def test_quantiles_are_those_of_the_tables(degrees, quantile):
  assert t_quantile(degrees) == pytest.approx(quantile, abs=5e-4)


def test_a_mean_by_hand():
  # Mean 4, sample variance 4, so the half width is 4.303 * 2 / sqrt(3).
  found = estimate([2.0, 4.0, 6.0])
  assert (found.mean, found.count) == (4.0, 3)
  assert found.half == pytest.approx(4.9683, abs=1e-4)
  assert not found.leaves_out_zero


@pytest.mark.parametrize('count', [2, 3, 7])
def test_intervals_are_scipys(count):
  values = np.random.default_rng(count).normal(3, 2, count).tolist()
  low, high = scipy.stats.t.interval(0.95, count - 1, np.mean(values), scipy.stats.sem(values))
  found = estimate(values)
  assert [found.mean - found.half, found.mean + found.half] == pytest.approx([low, high])


def test_differences_are_paired_by_seed():
  rng = np.random.default_rng(0)
  seeds = [0, 1, 2, 5]
  noise = rng.normal(0, 10, 4)
  ours, base = noise + rng.normal(1, 0.1, 4), noise
  found = paired_difference({**dict(zip(seeds, ours)), 9: 1e6}, {**dict(zip(reversed(seeds), base[::-1])), 7: -1e6})
  interval = scipy.stats.ttest_rel(ours, base).confidence_interval(0.95)
  assert [found.mean - found.half, found.mean + found.half] == pytest.approx(list(interval))
  assert found.count == 4
  # Unpaired, the seeds' own spread would drown it.
  assert found.leaves_out_zero
  assert not estimate((ours - base[::-1]).tolist()).leaves_out_zero


def test_nothing_and_one_value_have_no_interval():
  assert estimate([]) is None
  assert paired_difference({0: 1.0}, {1: 1.0}) is None
  one = estimate([5.0])
  assert (one.mean, one.half, one.leaves_out_zero) == (5.0, None, False)


def test_values_that_are_all_equal_prove_nothing():
  assert estimate([2.0, 2.0]).half == 0
  assert not estimate([2.0, 2.0]).leaves_out_zero
