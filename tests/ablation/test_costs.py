"""What stages cost, read off the metrics."""

import pytest

from janus_jax.ablation.measuring import StageCost, cost_metrics, stage_costs


def line(step: int, step_seconds: float, tokens_per_step: int) -> dict:
  per_second = tokens_per_step / step_seconds
  speeds = {'tokens_per_second': per_second, 'tokens_per_second_per_device': per_second / 2}
  # Ten million operations a token, over two devices.
  return {'step': step, 'step_seconds': step_seconds, **speeds, 'tflops_per_second_per_device': per_second * 1e7 / 2e12}


LINES = [
  line(10, 2.0, 100),
  line(20, 0.5, 100),
  {'step': 20, 'held_out/text': 1.0},
  line(25, 0.5, 100),
  line(30, 1.0, 50),
]


def test_each_stage_has_its_own_lines():
  first, second = stage_costs(LINES, (25, 30))
  assert (first.steps, first.tokens) == (25, 2500)
  assert (second.steps, second.tokens) == (5, 250)
  assert first.flops == pytest.approx(2.5e10)
  assert second.flops == pytest.approx(2.5e9)


def test_compiling_is_counted_apart():
  first, second = stage_costs(LINES, (25, 30))
  # The first ten steps took 20 s, at the pace of the others they take 5.
  assert (first.compile_seconds, first.seconds) == pytest.approx((15, 12.5))
  assert (second.compile_seconds, second.seconds) == pytest.approx((0, 5))


def test_a_stage_without_a_line():
  assert stage_costs([], (5,)) == [StageCost(0, 0.0, 0.0, 0, 0.0)]
  assert cost_metrics(stage_costs([], (5,)), False)['cost/tokens_per_second'] == 0


def test_compiling_is_a_metric_only_of_runs_that_compile_for_themselves():
  costs = stage_costs(LINES, (25, 30))
  assert 'cost/compile_seconds' not in cost_metrics(costs, False)
  found = cost_metrics(costs, True)
  assert found['cost/compile_seconds'] == pytest.approx(15)
  assert found['cost/tokens_per_second'] == pytest.approx(2750 / 17.5)
  assert found['cost/teraflops'] == pytest.approx(0.0275)
