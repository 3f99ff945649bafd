"""The window that is chosen where none is asked for."""

import pytest

from janus_jax.inference import windows
from janus_jax.inference.decoder import Decoder, make_decoder
from janus_jax.inference.drawing import Window
from janus_jax.inference.windows import EXPECTED, choose_window
from janus_jax.models.config import PRESETS, ComputeConfig
from janus_jax.models.initialization import initial_params

TINY = PRESETS['test_tiny']


def decoder_of(dtype: str, cache_dtype: str | None = None) -> Decoder:
  return make_decoder(TINY, ComputeConfig(dtype=dtype), initial_params(TINY, seed=0), cache_dtype=cache_dtype)


@pytest.mark.parametrize(
  ('costs', 'expected'),
  [
    (dict.fromkeys(EXPECTED, 1.0), Window(max(EXPECTED), 1.0)),
    ({size: 1 + 0.3 * (size > 4) * size for size in EXPECTED}, Window(4, 1.0)),
    ({size: float(size) for size in EXPECTED}, Window()),
  ],
)
def test_what_is_expected_to_gain_most_is_taken(monkeypatch, costs, expected):
  monkeypatch.setattr(windows, 'LEAST_BYTES', 0)
  monkeypatch.setattr(windows, '_seconds', lambda decoder, rows, length, size: 0.5 * ({1: 1.0} | costs)[size])
  assert choose_window(decoder_of('float32'), 2, 32) == expected


@pytest.mark.parametrize(('dtype', 'cache_dtype'), [('bfloat16', None), ('float32', 'bfloat16'), ('float32', 'int8')])
def test_where_rounding_would_show_nothing_is_measured(monkeypatch, dtype, cache_dtype):
  monkeypatch.setattr(windows, 'LEAST_BYTES', 0)
  monkeypatch.setattr(windows, '_seconds', None)
  assert choose_window(decoder_of(dtype, cache_dtype), 2, 32) == Window()


def test_small_decoders_draw_one_at_a_time(monkeypatch):
  monkeypatch.setattr(windows, '_seconds', None)
  assert choose_window(decoder_of('float32'), 2, 32) == Window()


def test_passes_are_measured(monkeypatch):
  monkeypatch.setattr(windows, 'LEAST_BYTES', 0)
  found = choose_window(decoder_of('float32'), 2, 32)
  assert found.size in {1, *EXPECTED}
  assert (found.pass_cost is None) == (found.size == 1)
  assert found.pass_cost is None or 0 < found.pass_cost < EXPECTED[found.size]
