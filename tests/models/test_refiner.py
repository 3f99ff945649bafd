"""The refiner: what it computes where the answer is known, and sizes that fit nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.errors import InputError
from janus_jax.models.refiner import RefinerConfig, condition, follow_flow, initial_params, refine

CONFIG = RefinerConfig(code_dim=2, block_out_channels=(8, 16), norm_num_groups=4, flow_steps=5, residual_std=0.25)


@pytest.fixture(scope='module')
def params():
  return initial_params(CONFIG, 0)


def test_the_condition_shows_each_pixel_the_row_of_its_code():
  images = jnp.full((1, 4, 4, 3), 0.5)
  codebook = jnp.array([[2.0, 0.0], [0.0, 3.0], [3.0, 4.0]])
  found = np.asarray(condition(CONFIG, images, jnp.array([[0, 1, 2, 0]]), codebook))
  assert found.shape == (1, 8, 8, 5)
  np.testing.assert_allclose(found[..., :3], 0.5, atol=1e-6)  # Of one colour it stays one.
  np.testing.assert_allclose(found[0, :4, :4, 3:], np.broadcast_to([1, 0], (4, 4, 2)))
  np.testing.assert_allclose(found[0, :4, 4:, 3:], np.broadcast_to([0, 1], (4, 4, 2)))
  np.testing.assert_allclose(found[0, 4:, :4, 3:], np.broadcast_to([0.6, 0.8], (4, 4, 2)), atol=1e-6)


def test_euler_steps_follow_a_velocity_that_is_known():
  """Where the residual is always x, the velocity at x_t is (x_t - x) / t, along straight lines: any number of steps
  ends in x. With a velocity of -x_t, each of n steps multiplies by 1 + 1 / n.
  """
  noise, goal = jax.random.normal(jax.random.key(1), (2, 8, 8, 3)), jnp.sin(jnp.arange(3.0))
  for steps in (1, 5):
    found = follow_flow(lambda x, t: (x - goal) / t[:, None, None, None], noise, steps)
    np.testing.assert_allclose(found, np.broadcast_to(goal, found.shape), atol=1e-5)
    np.testing.assert_allclose(follow_flow(lambda x, t: -x, noise, steps), (1 + 1 / steps) ** steps * noise, rtol=1e-5)


def test_refined_images_are_within_bounds(params):
  config = dataclasses.replace(CONFIG, residual_std=100.0)
  noise = jax.random.normal(jax.random.key(1), (1, 8, 8, 3))
  found = np.asarray(refine(config, params, jnp.zeros((1, 8, 8, 5)), noise))
  assert (found.min(), found.max()) == (-1, 1)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'scale': 0}, 'scale is 0: expected 1 or more'),
    ({'residual_std': float('nan')}, 'residual_std is nan: expected more than 0'),
    (
      {'block_out_channels': (8, 18)},
      'block_out_channels is [8, 18]: expected even multiples of norm_num_groups, which',
    ),
    ({'block_out_channels': (3,), 'norm_num_groups': 1}, 'block_out_channels is [3]: expected even multiples of'),
    ({'block_out_channels': ()}, 'block_out_channels is []: expected even multiples'),
  ],
)
def test_sizes_that_fit_nothing_are_refused_by_name(changes, message):
  with pytest.raises(InputError) as error:
    dataclasses.replace(CONFIG, **changes)
  assert str(error.value).startswith(message)


def test_an_image_that_cannot_be_halved_is_refused():
  CONFIG.check_size(7)
  with pytest.raises(InputError, match='refined images of 14 pixels: expected a multiple of 4 for 3 resolutions'):
    dataclasses.replace(CONFIG, block_out_channels=(8, 8, 8)).check_size(7)
