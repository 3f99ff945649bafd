"""Sampling: exactly the right tokens are kept, they are drawn with the right frequencies, and rows are independent."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.errors import InputError
from janus_jax.inference.sampling import Sampling, filter_logits, row_key, sample

# 99.9 % quantiles of the chi-squared distribution by degrees of freedom, from printed tables.
CHI_SQUARED = {4: 18.467, 5: 20.515, 6: 22.458, 7: 24.322, 11: 31.264, 15: 37.697}

draw = jax.jit(sample, static_argnames='sampling')


def random_logits(rows: int, words: int, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).normal(size=(rows, words)).astype(np.float32) * 2


def keys(count: int) -> jax.Array:
  return jax.vmap(functools.partial(row_key, 0))(jnp.arange(count))


def softmax(logits: np.ndarray) -> np.ndarray:
  powers = np.exp(logits - logits.max())
  return powers / powers.sum()


def kept(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
  """The definitions read plainly, one row at a time in float64: bool[V]."""
  logits = logits.astype(np.float64) / sampling.temperature
  keep = np.ones(len(logits), bool)
  if sampling.top_k:
    keep = logits >= sorted(logits)[-min(sampling.top_k, len(logits))]
  probabilities = softmax(np.where(keep, logits, -np.inf))
  total = 0.0
  for token in sorted(range(len(logits)), key=lambda token: -probabilities[token]):
    keep[token] &= total < sampling.top_p
    total += probabilities[token]
  return keep


SETTINGS = [
  Sampling(),
  Sampling(temperature=0.5),
  Sampling(temperature=1.7),
  Sampling(top_k=1),
  Sampling(top_k=5),
  Sampling(top_k=99),
  Sampling(top_p=0.05),
  Sampling(top_p=0.5),
  Sampling(top_p=0.95),
  Sampling(temperature=1.5, top_k=7, top_p=0.8),
]


@pytest.mark.parametrize('sampling', SETTINGS, ids=str)
def test_exactly_the_right_tokens_stay(sampling):
  logits = random_logits(20, 40)
  result = np.asarray(filter_logits(jnp.asarray(logits), sampling))
  expected = np.stack([kept(row, sampling) for row in logits])
  np.testing.assert_array_equal(result > -np.inf, expected)
  np.testing.assert_allclose(result[expected], logits[expected] / sampling.temperature, rtol=1e-6)


@pytest.mark.parametrize('sampling', SETTINGS, ids=str)
def test_filters_equal_those_of_transformers(sampling):
  torch = pytest.importorskip('torch')
  logits_process = pytest.importorskip('transformers.generation.logits_process')
  warpers = [logits_process.TemperatureLogitsWarper(sampling.temperature)]
  warpers += [logits_process.TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
  warpers += [logits_process.TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
  logits = random_logits(20, 40, seed=1)
  expected = torch.from_numpy(logits)
  for warper in warpers:
    expected = warper(None, expected)
  np.testing.assert_allclose(filter_logits(jnp.asarray(logits), sampling), expected.numpy(), rtol=1e-6)


def test_ties():
  logits = jnp.array([[1.0, 3.0, 2.0, 2.0, 0.0]])
  result = filter_logits(logits, Sampling(top_k=2))
  np.testing.assert_array_equal(result, [[-np.inf, 3, 2, 2, -np.inf]])
  # Equal tokens: as many as reach top_p, no more.
  assert np.isfinite(filter_logits(jnp.zeros((1, 8)), Sampling(top_p=0.5))).sum() == 4


@pytest.mark.parametrize(
  'sampling',
  [
    Sampling(),
    Sampling(temperature=0.7),
    Sampling(temperature=3.0),
    Sampling(top_k=5),
    Sampling(top_p=0.8),
    Sampling(temperature=2.0, top_k=9, top_p=0.9),
  ],
  ids=str,
)
def test_frequencies_match_the_softmax(sampling):
  """Over many rows at a few steps, so that both sources of randomness take part."""
  rows, steps, words = 5000, 4, 12
  logits = np.random.default_rng(2).normal(size=words).astype(np.float32)
  batch, row_keys = jnp.tile(logits, (rows, 1)), keys(rows)
  counts = sum(np.bincount(draw(batch, row_keys, step, sampling), minlength=words) for step in range(steps))
  keep = kept(logits, sampling)
  assert (counts[~keep] == 0).all()
  expected = rows * steps * softmax(logits[keep].astype(np.float64) / sampling.temperature)
  assert expected.min() > 5  # Below that the statistic is not chi-squared.
  assert (np.square(counts[keep] - expected) / expected).sum() < CHI_SQUARED[keep.sum() - 1]


def test_steps_and_keys_draw_independently():
  """Pairs of draws over four equal tokens fill the 16 cells evenly."""
  rows = 4000
  batch, row_keys = jnp.zeros((rows, 4)), keys(rows)
  now, after = (np.asarray(draw(batch, row_keys, step, Sampling())) for step in (0, 1))
  for first, second in ((now, after), (now[:-1], now[1:])):
    counts, expected = np.bincount(first * 4 + second, minlength=16), len(first) / 16
    assert (np.square(counts - expected) / expected).sum() < CHI_SQUARED[15]


def test_draws_are_those_of_jax():
  """The same keys give what `jax.random.categorical` gives, which pictures of earlier versions were drawn with."""
  logits, row_keys = random_logits(200, 300), keys(200)
  expected = [jax.random.categorical(jax.random.fold_in(key, 7), row) for key, row in zip(row_keys, logits)]
  np.testing.assert_array_equal(draw(logits, row_keys, 7, Sampling()), expected)


def test_greedy_takes_the_first_of_equals_and_some_token_of_nan():
  logits = np.array([[1, 3, 3, 0], [5, 2, 5, 5], [np.nan, 1, 2, 3], [-np.inf, -np.inf, -1, -1]], np.float32)
  tokens = np.asarray(draw(logits, keys(4), 0, Sampling(temperature=0)))
  np.testing.assert_array_equal(tokens[[0, 1, 3]], [1, 0, 2])
  assert 0 <= tokens[2] < 4


def test_greedy_takes_the_largest():
  logits = random_logits(10, 50)
  np.testing.assert_array_equal(draw(logits, keys(10), 0, Sampling(temperature=0)), logits.argmax(-1))
  cold = draw(logits, keys(10), 0, Sampling(temperature=1e-6))
  np.testing.assert_array_equal(cold, logits.argmax(-1))


def test_greedy_ignores_the_filters():
  logits = random_logits(10, 50)
  tokens = draw(logits, keys(10), 0, Sampling(temperature=0, top_k=3, top_p=0.1))
  np.testing.assert_array_equal(tokens, logits.argmax(-1))


@pytest.mark.parametrize('sampling', [Sampling(), Sampling(temperature=1.3, top_k=20, top_p=0.9)], ids=str)
def test_a_row_draws_the_same_alone_and_in_any_company(sampling):
  logits, row_keys = random_logits(8, 50), keys(8)
  together = np.asarray(draw(logits, row_keys, 3, sampling))
  alone = np.concatenate([draw(logits[i : i + 1], row_keys[i : i + 1], 3, sampling) for i in range(8)])
  np.testing.assert_array_equal(alone, together)
  order = np.random.default_rng(0).permutation(8)
  np.testing.assert_array_equal(draw(logits[order], row_keys[order], 3, sampling), together[order])
  assert len(set(together.tolist())) > 3


def test_row_keys_are_distinct_and_depend_on_every_index():
  indices = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1)]
  data = {tuple(np.asarray(jax.random.key_data(row_key(seed, *rest))).tolist()) for seed in (0, 1) for rest in indices}
  assert len(data) == 2 * len(indices)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'temperature': -0.1}, 'temperature is -0.1: expected 0 (greedy) or more, and finite'),
    ({'temperature': float('nan')}, 'temperature is nan: expected 0 (greedy) or more, and finite'),
    ({'temperature': float('inf')}, 'temperature is inf: expected 0 (greedy) or more, and finite'),
    ({'top_k': -1}, 'top_k is -1: expected 0 (all) or more'),
    ({'top_p': 0.0}, 'top_p is 0.0: expected more than 0 and at most 1'),
    ({'top_p': 1.01}, 'top_p is 1.01: expected more than 0 and at most 1'),
    ({'top_p': float('nan')}, 'top_p is nan: expected more than 0 and at most 1'),
  ],
)
def test_settings_that_mean_nothing_are_refused(fields, message):
  with pytest.raises(InputError) as error:
    Sampling(**fields)
  assert str(error.value) == message


def test_limits_of_settings_are_accepted():
  sampling = Sampling(temperature=0, top_k=0, top_p=1)
  assert draw(random_logits(1, 3), keys(1), 0, sampling).dtype == jnp.int32
