"""int8: the nearest steps are stored, and products are those of what is stored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.models.config import ComputeConfig
from janus_jax.models.layers import Linear, weight_only_product
from janus_jax.models.quantization import integer_product, quantize

ROWS, INPUTS, FEATURES = 5, 192, 40


@pytest.fixture(scope='module')
def operands() -> tuple[jax.Array, jax.Array]:
  """x [ROWS, INPUTS] and a kernel [FEATURES, INPUTS], whose rows differ much in size."""
  keys = jax.random.split(jax.random.key(0), 4)
  x, kernel = (jax.random.normal(key, (n, INPUTS)) for key, n in zip(keys, (ROWS, FEATURES)))
  sizes = [10 ** jax.random.uniform(key, (n, 1), minval=-2, maxval=2) for key, n in zip(keys[2:], (ROWS, FEATURES))]
  return x * sizes[0], kernel * sizes[1]


def stored(x: jax.Array) -> np.ndarray:
  """What is left of x after rounding, float64."""
  values, scale = quantize(x)
  return np.asarray(values, np.float64) * np.asarray(scale, np.float64)[:, None]


def rms_error(result: np.ndarray, exact: np.ndarray) -> float:
  """Of each row and feature as a share of what is typical of them, root mean square."""
  typical = np.sqrt(np.square(exact).mean(1, keepdims=True))
  features = np.sqrt(np.square(exact / typical).mean(0))
  return float(np.sqrt(np.square((result - exact) / typical / features).mean()))


def test_quantisation_rounds_to_the_nearest_step_of_each_vector():
  x = jax.random.normal(jax.random.key(0), (3, 5, 64)) * jnp.array([1e-3, 1, 1e3])[:, None, None]
  values, scale = quantize(x)
  assert values.dtype == jnp.int8
  np.testing.assert_allclose(scale * 127, np.abs(x).max(-1), rtol=1e-6)
  np.testing.assert_array_equal(np.abs(values).max(-1), 127)
  error = np.abs(np.asarray(values, np.float32) * np.asarray(scale)[..., None] - x)
  assert (error <= np.asarray(scale)[..., None] * 0.501).all()


def test_quantisation_of_zeros_and_of_nan():
  values, scale = quantize(jnp.array([[0.0, 0.0], [jnp.nan, 1.0]]))
  np.testing.assert_array_equal(values[0], 0)
  np.testing.assert_array_equal(scale, [0, np.nan])


def test_only_the_kernel_is_rounded(operands):
  x, kernel = operands
  result = jax.jit(weight_only_product)(x, *quantize(kernel))
  assert result.dtype == jnp.float32
  expected = np.asarray(x, np.float64) @ stored(kernel).T
  assert rms_error(np.asarray(result, np.float64), expected) < 1e-6


def test_products_of_integers_are_exact(operands):
  x, kernel = operands
  result = jax.jit(integer_product)(x, *quantize(kernel))
  assert result.dtype == jnp.float32
  np.testing.assert_allclose(result, stored(x) @ stored(kernel).T, rtol=3e-7)


def test_sums_of_the_largest_integers_do_not_overflow():
  """The 7B's longest contraction, 11,008 wide, of nothing but 127s."""
  x, kernel = jnp.ones((2, 11008)), jnp.ones((3, 11008))
  np.testing.assert_allclose(integer_product(x, *quantize(kernel)), 11008, rtol=1e-6)


# Measured: 0.0092 and 0.0123.
@pytest.mark.parametrize(('product', 'largest'), [(weight_only_product, 0.012), (integer_product, 0.015)])
def test_error_of_products(operands, product, largest):
  x, kernel = operands
  exact = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64).T
  error = rms_error(np.asarray(product(x, *quantize(kernel))), exact)
  print(product.__name__, error)
  assert 0 < error < largest


def test_a_row_alone_gives_what_it_gives_in_company(operands):
  x, kernel = operands
  together = integer_product(x, *quantize(kernel))
  alone = jnp.concatenate([integer_product(row[None], *quantize(kernel)) for row in x])
  np.testing.assert_allclose(alone, together, rtol=1e-6)


@pytest.mark.parametrize('rows', [1, 3])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('integer', [False, True])
@pytest.mark.parametrize(('features', 'inputs'), [((40,), (192,)), ((5, 8), (192,)), ((40,), (3, 64))])
def test_linear_takes_a_rounded_kernel(operands, rows, dtype, integer, features, inputs):
  x, kernel = operands[0][:rows].astype(dtype), operands[1]
  values, scale = quantize(kernel)
  bias = jnp.arange(FEATURES, dtype=jnp.float32).reshape(features)
  for out_dtype in (None, 'float32'):
    linear = Linear(features, inputs, ComputeConfig(dtype=dtype, integer_products=integer), out_dtype=out_dtype)
    result = jax.jit(linear.apply)(
      {'params': {'int8': values, 'scale': scale, 'bias': bias}}, x.reshape(rows, 1, *inputs)
    )
    assert result.dtype == (out_dtype or dtype)
    assert result.shape == (rows, 1, *features)
    product = (integer_product if integer else weight_only_product)(x, values, scale).astype(out_dtype or dtype)
    expected = product + bias.reshape(-1).astype(product.dtype)
    exact = {'rtol': 1e-5} if result.dtype == jnp.float32 else {'rtol': 2**-7}
    np.testing.assert_allclose(
      result.reshape(rows, FEATURES).astype(jnp.float32), expected.astype(jnp.float32), **exact, atol=1e-4
    )
