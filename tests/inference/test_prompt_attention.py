"""A prompt that nothing precedes attends to itself by the kernels of training, and reads what is stored."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.inference.cache import CACHE_DTYPES, Block, Buffer, attend_to_blocks, attend_to_prompt
from janus_jax.inference.decoder import Decoder, make_decoder, prompt_positions
from janus_jax.models.config import PRESETS, ComputeConfig
from janus_jax.models.initialization import initial_params
from janus_jax.models.quantization import quantize

TINY = PRESETS['test_tiny']


@pytest.mark.parametrize('kernel', ['xla', 'chunked'])
@pytest.mark.parametrize('num_kv_heads', [1, 2, 4])
@pytest.mark.parametrize('dtype', CACHE_DTYPES)
def test_a_prompt_attends_to_itself_as_to_any_block(kernel, num_kv_heads, dtype):
  """By the kernels of training as by those of decoding, to what is stored: int8 too. Three lengths, two chunks."""
  length = 150
  q, k, v = (
    jax.random.normal(key, (3, heads, length, 16))
    for key, heads in zip(jax.random.split(jax.random.key(5), 3), (4, num_kv_heads, num_kv_heads))
  )
  mask = np.arange(length) >= np.array([[0], [40], [149]])
  block = Block(*(Buffer(*quantize(x)) if dtype == 'int8' else Buffer(x.astype(dtype), None) for x in (k, v)))
  result = attend_to_prompt(q.swapaxes(1, 2), block, jnp.asarray(mask), kernel)
  causal = np.tril(np.ones((length, length), bool)) & (mask[:, None] | np.eye(length, dtype=bool))
  expected = attend_to_blocks(q.swapaxes(1, 2), [block], jnp.asarray(causal))
  np.testing.assert_allclose(np.asarray(result)[mask], np.asarray(expected)[mask], atol=2e-6)
  assert np.isfinite(result).all()  # Padding too.
  assert np.std(expected) > 0.1


def largest_scores(decoder: Decoder, length: int) -> int:
  """Keys that a query's scores are held of at once, at most, in the pass of a prompt."""
  x, mask = jnp.zeros((2, length, TINY.language_model.width)), jnp.ones((2, length), bool)
  cache = decoder.empty_cache((mask,), 2, (3,))
  program = str(jax.make_jaxpr(Decoder.hidden)(decoder, x, prompt_positions(mask), cache))
  shapes = [list(map(int, found.split(','))) for found in re.findall(r'f32\[([\d,]+)\]', program)]
  return max(shape[-1] for shape in shapes if len(shape) == 5 and shape[-1] == shape[-2])


def test_the_scores_of_a_long_prompt_never_exist_together():
  decoder = make_decoder(TINY, ComputeConfig(attention='auto'), initial_params(TINY, seed=0))
  assert largest_scores(decoder, 100) == 100
  assert largest_scores(decoder, 512) == 128
