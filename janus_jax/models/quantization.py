"""int8: rounding, and matrix products with a rounded kernel."""

import jax
import jax.numpy as jnp


def quantize(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Symmetric max-abs quantisation of each vector: x is about values * scale[..., None].

  Args:
    x: [..., H].

  Returns:
    int8[..., H] in -127..127, and float32[...], 0 for a vector of zeros. Non-finite x gives a non-finite scale.
  """
  x = x.astype(jnp.float32)
  scale = jnp.max(jnp.abs(x), axis=-1) / 127
  divisor = jnp.where(scale == 0, 1, scale)[..., None]
  return jnp.round(x / divisor).astype(jnp.int8), scale


def weight_only_product(x: jax.Array, kernel: jax.Array, scale: jax.Array) -> jax.Array:
  """x times a kernel that is rounded to int8; x is not.

  The kernel becomes x's dtype on its way into the product, which compilers for accelerators fuse: a decode step reads a
  byte per weight. XLA's CPU backend writes the converted kernel out first, so that there it takes longer.

  Args:
    x: [R, D].
    kernel: int8[F, D].
    scale: float32[F], of the kernel's rows (`quantize`).

  Returns:
    float32[R, F].
  """
  return _contract(x, kernel.astype(x.dtype), jnp.float32) * scale


def integer_product(x: jax.Array, kernel: jax.Array, scale: jax.Array) -> jax.Array:
  """`weight_only_product` with each row of x rounded to int8 too; sums are exact int32."""
  rounded, row_scale = quantize(x)
  if len(x) == 1:
    # XLA's CPU backend has a fast integer product for two rows and more: 1.4 ms where one row takes 13.
    rounded = jnp.pad(rounded, ((0, 1), (0, 0)))
  sums = _contract(rounded, kernel, jnp.int32)[: len(x)]
  return sums.astype(jnp.float32) * row_scale[:, None] * scale


def _contract(x: jax.Array, kernel: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """[R, D] and [F, D] -> [R, F]. Both contracted along their rows, as integer units of GPUs want it."""
  return jax.lax.dot_general(x, kernel, (((1,), (1,)), ((), ())), preferred_element_type=dtype)
