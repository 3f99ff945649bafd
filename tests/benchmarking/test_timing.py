"""Medians, and ratios of what ran in turn."""

import pytest

from janus_jax.benchmarking.timing import Timing, speedup, time_in_turn


def test_a_slow_round_does_not_move_the_median():
  timing = Timing((2.0, 1.0, 50.0))
  assert timing.spread() == {'median': 2.0, 'low': 1.0, 'high': 50.0}
  assert timing.per(2).values == (1.0, 0.5, 25.0)


def test_both_sides_run_in_every_round(monkeypatch):
  done, clock = [], iter(range(100))
  monkeypatch.setattr('time.perf_counter', lambda: next(clock))
  ours, theirs = time_in_turn([lambda: done.append('ours'), lambda: done.append('theirs')], 3)
  assert done == ['ours', 'theirs'] * 3
  assert ours.values == theirs.values == (1, 1, 1)


def test_a_machine_that_slows_down_for_both_changes_no_ratio():
  found = speedup(Timing((1.0, 2.0, 4.0)), Timing((3.0, 6.0, 12.0)))
  assert found.values == (3.0, 3.0, 3.0)
  with pytest.raises(ValueError, match='zip'):
    speedup(Timing((1.0,)), Timing((1.0, 2.0)))
