"""Checks of what a benchmark is asked for."""

import pytest

from janus_jax.benchmarking.settings import Request, check_positions, read_windows
from janus_jax.errors import InputError
from janus_jax.models.config import PRESETS


@pytest.mark.parametrize(('mode', 'limit'), [('generate', 512 - 16), ('understand', 512 - 1 - 16 - 100)])
def test_prompts_and_what_follows_fit_the_positions(mode, limit):
  model = PRESETS['test_tiny']
  check_positions(mode, Request((1,), limit, 100, 'float32'), model)
  with pytest.raises(InputError, match=f'^prompt_tokens is {limit + 1}: expected at most {limit}, as '):
    check_positions(mode, Request((1,), limit + 1, 100, 'float32'), model)


def test_windows():
  assert read_windows(['1', '8', 'auto']) == (1, 8, 'auto')
  check_positions('generate', Request((1,), 8, 8, 'float32', windows=(1, 16, 'auto')), PRESETS['test_tiny'])
  with pytest.raises(InputError, match=r'^window is 17: expected auto, or 1 to 16, the codes of an image$'):
    check_positions('generate', Request((1,), 8, 8, 'float32', windows=(1, 17)), PRESETS['test_tiny'])


@pytest.mark.parametrize('texts', [[], ['0'], ['-1'], ['1', 'x'], ['1.5'], ['']])
def test_bad_windows(texts):
  with pytest.raises(InputError, match=r'^--window=.*: expected auto or positive integers, as in --window=1,8$'):
    read_windows(texts)
