"""Windows: in float32 the codes are those drawn one at a time, whatever is drawn, in fewer passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.inference.decoder import Decoder, make_decoder
from janus_jax.inference.drawing import Drawn, Window, generate_codes, guided_prompts
from janus_jax.inference.sampling import Sampling, row_key, sample
from janus_jax.models.config import PRESETS, ComputeConfig
from janus_jax.models.initialization import initial_params

TINY = PRESETS['test_tiny']
P = TINY.vq.num_tokens
PROMPTS = [[256, 5, 17, 99, 3, 259], [256, 42, 259], [256, 7, 8, 9, 259]]
PAD = 258


def decoder_with(scale: float, weights: str = 'full', cache_dtype: str | None = None) -> Decoder:
  """Random weights; the larger they are, the less the next code is left to chance."""
  params = jax.tree.map(lambda leaf: leaf * np.float32(scale) if leaf.ndim > 1 else leaf, initial_params(TINY, seed=0))
  return make_decoder(TINY, ComputeConfig(), params, weights, cache_dtype)


def drawn(
  decoder: Decoder, *, prompts: int = 2, per_prompt: int = 2, guidance: float = 1.5, sampling: Sampling, **window
) -> Drawn:
  """Images of prompts of unequal length."""
  conditional = PROMPTS[:prompts]
  rows = guided_prompts(conditional, [[row[0], *[PAD] * (len(row) - 2), row[-1]] for row in conditional], guidance)
  length = max(map(len, rows))
  tokens = np.array([[PAD] * (length - len(row)) + row for row in rows], np.int32)
  mask = np.array([[False] * (length - len(row)) + [True] * len(row) for row in rows])
  keys = jnp.stack([row_key(3, i) for i in range(prompts * per_prompt)])
  return jax.device_get(
    generate_codes(decoder, tokens, mask, keys, guidance=guidance, sampling=sampling, window=Window(**window))
  )


def check_same(one: Drawn, several: Drawn, window: int) -> None:
  np.testing.assert_array_equal(several.codes, one.codes)
  assert one.passes.tolist() == [P] * len(one.codes)
  assert (several.passes <= P).all()
  assert (several.passes >= -(-(P - 1) // window) + 1).all()  # The prompt's pass draws a code, others a window.


@pytest.mark.parametrize(
  ('guidance', 'sampling'),
  [
    (1.0, Sampling(0)),
    (5.0, Sampling(0.3)),
    (5.0, Sampling(0.7, top_k=5)),
    (1.5, Sampling(1, top_p=0.8)),
  ],
)
@pytest.mark.parametrize('scale', [1, 2])
def test_codes_are_those_drawn_one_at_a_time(scale, guidance, sampling):
  decoder = decoder_with(scale)
  one = drawn(decoder, guidance=guidance, sampling=sampling)
  assert len(np.unique(one.codes)) > 8
  for window in (2, P):
    check_same(one, drawn(decoder, guidance=guidance, sampling=sampling, size=window), window)


@pytest.mark.parametrize(('prompts', 'per_prompt'), [(1, 1), (3, 1), (3, 2)])
def test_images_advance_by_themselves(prompts, per_prompt):
  """Whatever else is in the batch: codes and passes are those of each image alone."""
  decoder, options = decoder_with(1), {'prompts': prompts, 'per_prompt': per_prompt, 'sampling': Sampling(1)}
  one, several = drawn(decoder, **options), drawn(decoder, **options, size=5)
  check_same(one, several, 5)
  assert (several.passes < P).all()
  if prompts * per_prompt > 1:
    assert len(set(several.passes.tolist())) > 1
    alone = drawn(decoder, **{**options, 'prompts': 1, 'per_prompt': 1}, size=5)
    assert several.passes[0] == alone.passes[0]


@pytest.mark.parametrize(
  ('weights', 'cache_dtype'), [('int8', None), ('int8_products', None), ('full', 'int8'), ('full', 'bfloat16')]
)
def test_rounded_weights_and_cache(weights, cache_dtype):
  decoder = decoder_with(1, weights, cache_dtype)
  check_same(drawn(decoder, sampling=Sampling(1)), drawn(decoder, sampling=Sampling(1), size=4), 4)


def test_windows_end_where_they_do_not_pay():
  """A bad guesser draws the rest of its images one code at a time, a good one never does."""
  for scale, cost in ((2, 3.0), (1, 3.0), (1, 1.01)):
    decoder, sampling = decoder_with(scale), Sampling(1)
    one, ever = (drawn(decoder, sampling=sampling, size=size) for size in (1, 8))
    some = drawn(decoder, sampling=sampling, size=8, pass_cost=cost)
    np.testing.assert_array_equal(some.codes, one.codes)
    if cost == 3:
      assert (ever.passes <= some.passes).all()
      assert (some.passes >= P - 1).all()
    else:
      assert some.passes.tolist() == ever.passes.tolist()
      assert (ever.passes < P * 0.8).all()


def test_guesses_are_what_the_noise_of_their_position_makes_of_the_last_logits():
  """Where all logits are alike, noise alone decides, and every guess is right."""
  decoder, sampling = decoder_with(0), Sampling(1)
  one = drawn(decoder, sampling=sampling)
  assert len(np.unique(one.codes)) > 8
  for size in (2, 5, P):
    several = drawn(decoder, sampling=sampling, size=size)
    check_same(one, several, size)
    assert several.passes.tolist() == [1 + -(-(P - 1) // size)] * 4


def test_noise_belongs_to_the_position():
  """Steps of a batch of positions are those of each alone, so a pass over several draws what single ones would."""
  keys, logits = jnp.stack([row_key(0, 1)] * 3), jnp.zeros((3, 50))
  steps = jnp.array([4, 0, 9])
  together = sample(logits, keys, steps, Sampling(1))
  assert together.tolist() == [int(sample(logits[:1], keys[:1], step, Sampling(1))[0]) for step in (4, 0, 9)]
  assert len(set(together.tolist())) == 3
