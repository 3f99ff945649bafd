"""The window that is chosen where none is asked for."""

import numpy as np
import pytest

from janus_jax.inference import windows
from janus_jax.inference.decoder import Decoder, make_decoder
from janus_jax.inference.drawing import ONE_BY_ONE, Window
from janus_jax.inference.sampling import Sampling
from janus_jax.inference.windows import EXPECTED, SIZE, choose_window
from janus_jax.models.config import PRESETS, ComputeConfig
from janus_jax.models.initialization import initial_params

TINY = PRESETS['test_tiny']


def chosen(dtype: str = 'float32', cache_dtype: str | None = None, batches: int = 10**9) -> Window:
  compute, params = ComputeConfig(dtype=dtype), initial_params(TINY, seed=0)
  decoder: Decoder = make_decoder(TINY, compute, params, cache_dtype=cache_dtype)
  return choose_window(decoder, (4, 32), 5.0, Sampling(), batches)


@pytest.mark.parametrize(
  ('cost', 'expected'), [(1.5, Window(SIZE, 1.5)), (EXPECTED + 0.1, ONE_BY_ONE), (EXPECTED - 0.1, Window(SIZE, 3.9))]
)
def test_a_window_is_taken_where_its_passes_are_cheap(monkeypatch, cost, expected):
  monkeypatch.setattr(windows, '_seconds', lambda decoder, shape, size, *how: 0.5 * {1: 1.0, SIZE: cost}[size])
  found = chosen()
  assert (found.size, found.pass_cost) == (expected.size, expected.pass_cost and pytest.approx(expected.pass_cost))


@pytest.mark.parametrize(('dtype', 'cache_dtype'), [('bfloat16', None), ('float32', 'bfloat16'), ('float32', 'int8')])
def test_where_rounding_would_show_nothing_is_measured(monkeypatch, dtype, cache_dtype):
  monkeypatch.setattr(windows, '_seconds', None)
  assert chosen(dtype, cache_dtype) == ONE_BY_ONE


def test_little_work_is_done_one_code_at_a_time(monkeypatch):
  monkeypatch.setattr(windows, '_seconds', None)
  assert chosen(batches=100) == ONE_BY_ONE


def test_passes_are_measured(monkeypatch):
  """Both kinds of pass run; a pass over several codes that takes no time is not one."""
  seconds, measured = windows._seconds, []
  monkeypatch.setattr(windows, '_seconds', lambda *given: measured.append(seconds(*given)) or measured[-1])
  found = chosen()
  assert len(measured) == 2
  assert min(measured) > 0
  assert np.isfinite(measured).all()
  assert found.size == 1 or found.pass_cost == measured[1] / measured[0]
