"""Checks of what a benchmark is asked for."""

import pytest

from janus_jax.benchmarking.settings import Request, check_positions
from janus_jax.errors import InputError
from janus_jax.models.config import PRESETS


@pytest.mark.parametrize(('mode', 'limit'), [('generate', 512 - 16), ('understand', 512 - 1 - 16 - 100)])
def test_prompts_and_what_follows_fit_the_positions(mode, limit):
  model = PRESETS['test_tiny']
  check_positions(mode, Request((1,), limit, 100, 'float32'), model)
  with pytest.raises(InputError, match=f'^prompt_tokens is {limit + 1}: expected at most {limit}, as '):
    check_positions(mode, Request((1,), limit + 1, 100, 'float32'), model)
