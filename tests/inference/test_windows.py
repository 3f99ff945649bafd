"""The window that is chosen where none is asked for."""

import dataclasses

import numpy as np
import pytest

from janus_jax.inference import windows
from janus_jax.inference.decoder import Decoder, make_decoder
from janus_jax.inference.drawing import ONE_BY_ONE, Window
from janus_jax.inference.sampling import Sampling
from janus_jax.inference.windows import EXPECTED, choose_window
from janus_jax.models.config import PRESETS, ComputeConfig, JanusConfig
from janus_jax.models.initialization import initial_params

TINY = PRESETS['test_tiny']
# 64 codes an image instead of 16, by the same parameters.
LARGER = dataclasses.replace(TINY, vq=dataclasses.replace(TINY.vq, image_size=64))


def chosen(
  dtype: str = 'float32', cache_dtype: str | None = None, batches: int = 10**9, config: JanusConfig = TINY
) -> Window:
  compute, params = ComputeConfig(dtype=dtype), initial_params(TINY, seed=0)
  decoder: Decoder = make_decoder(config, compute, params, cache_dtype=cache_dtype)
  return choose_window(decoder, (4, 32, config.vq.num_tokens), 5.0, Sampling(), batches)


@pytest.mark.parametrize(
  ('costs', 'expected'),
  [
    ({8: 1.5, 32: 3.8}, Window(8, 1.5)),
    ({8: 1.5, 32: 3.7}, Window(32, 3.7)),
    ({8: EXPECTED[8] - 0.1, 32: EXPECTED[32] + 0.1}, Window(8, 3.9)),
    ({8: EXPECTED[8] + 0.1, 32: EXPECTED[32] + 0.1}, ONE_BY_ONE),
  ],
)
def test_a_window_is_taken_where_its_passes_are_cheap(monkeypatch, costs, expected):
  monkeypatch.setattr(windows, '_seconds', lambda decoder, shape, size, *how: 0.5 * {1: 1.0, **costs}[size])
  found = chosen(config=LARGER)
  assert (found.size, found.pass_cost) == (expected.size, expected.pass_cost and pytest.approx(expected.pass_cost))


def test_windows_of_more_than_half_an_image_are_not_tried(monkeypatch):
  measured = []
  monkeypatch.setattr(windows, '_seconds', lambda decoder, shape, size, *how: measured.append(size) or 1.0)
  chosen()
  assert measured == [1, 8]


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
