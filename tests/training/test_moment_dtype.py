"""Adam's moments stored in half the memory: right on average, and as good for training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.training.optimizer import OptimizerConfig, directions, stochastically_rounded


def test_rounding_is_right_on_average_and_never_off_by_a_unit():
  x = jnp.float32(np.random.default_rng(0).standard_normal(50) * 10.0 ** np.arange(-25, 25))
  keys = jax.random.split(jax.random.key(0), 4000)
  rounded = np.asarray(jax.vmap(lambda key: stochastically_rounded(x, key))(keys).astype(jnp.float32), np.float64)
  relative = rounded / np.asarray(x, np.float64) - 1
  assert np.abs(relative).max() < 1 / 128
  # Of 4000 samples that are off by at most 1/128: five standard errors.
  assert np.abs(relative.mean(0)).max() < 5 / 128 / 2 / np.sqrt(4000)
  assert (np.abs(relative).max(0) > 0).all()


def test_what_bfloat16_holds_is_kept():
  x = jnp.bfloat16(np.random.default_rng(1).standard_normal(100)).astype(jnp.float32)
  np.testing.assert_array_equal(stochastically_rounded(x, jax.random.key(0)).astype(jnp.float32), x)
  np.testing.assert_array_equal(stochastically_rounded(jnp.zeros(3), jax.random.key(0)), jnp.zeros(3))


def test_a_second_moment_falls_as_slowly_as_its_decay_says():
  """Rounded to nearest, it would stay where it is for ever."""
  config = OptimizerConfig(b2=0.999, moment_dtype='bfloat16')
  params = {'a': jnp.ones(2000)}
  transform = directions(config)
  state = transform.init(params)
  assert state.mu['a'].dtype == state.nu['a'].dtype == jnp.bfloat16
  _, state = transform.update({'a': jnp.ones(2000)}, state)
  update = jax.jit(transform.update)
  for _ in range(500):
    _, state = update({'a': jnp.zeros(2000)}, state)
  assert float(state.nu['a'].astype(jnp.float32).mean()) == pytest.approx(0.001 * 0.999**500, rel=0.02)


def test_training_goes_the_same_way():
  """A noisy quadratic of many scales, from the same start with the same gradients."""
  scales = jnp.logspace(-2, 2, 300)
  distances = {}
  for dtype in ('float32', 'bfloat16'):
    transform = directions(OptimizerConfig(moment_dtype=dtype))
    params = {'a': jnp.ones(300)}
    state = transform.init(params)

    @jax.jit
    def step(params, state, key, transform=transform):
      noise = 1 + 0.3 * jax.random.normal(key, (300,))
      directions, state = transform.update({'a': scales * params['a'] * noise}, state)
      return {'a': params['a'] - 0.01 * directions['a']}, state

    for key in jax.random.split(jax.random.key(0), 60):
      params, state = step(params, state, key)
    distances[dtype] = np.asarray(params['a'])
  assert distances['float32'].mean() < 0.6
  np.testing.assert_allclose(distances['bfloat16'], distances['float32'], atol=0.01)
