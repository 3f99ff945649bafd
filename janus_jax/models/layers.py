"""Building blocks shared by the towers: linear maps, norms, activations, rotary embedding, the layer loop.

Axis letters: B batch, T query, S key, D model, F hidden, N heads, K kv heads, H head dim, L layers.
Every module takes a `ComputeConfig`: parameters are created in `param_dtype` and used in `dtype`.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from janus_jax.errors import InputError
from janus_jax.models.attention_kernels import RESULTS
from janus_jax.models.config import ComputeConfig
from janus_jax.models.lora import FACTORS, SCALE
from janus_jax.models.quantization import integer_product

# Primitives whose results the backward pass takes, of attention kernels that give them no name
# (`attention_kernels.RESULTS`): 'pallas', 'tokamax' and 'cudnn'.
ATTENTION_PRIMITIVES = ('custom_vjp_call', 'remat_opt', 'dot_product_attention_fwd_wrapper')


# A product whose result is at least so many times wider than what is contracted is cheaper to repeat than to keep:
# those of LoRA's second factors, whose results are as large as those of the kernels beside them.
WIDENING = 8


def _is_product(primitive: Any, *args: Any, **params: Any) -> bool:
  """True for results of matrix products without batch dimensions, but for cheap ones, and of attention's kernel."""
  if primitive.name == 'dot_general' and _widens(args[1].shape, params['dimension_numbers'][0][1]):
    return False
  saveable = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable, jax.checkpoint_policies.save_only_these_names(RESULTS)
  )
  return primitive.name in ATTENTION_PRIMITIVES or bool(saveable(primitive, *args, **params))


def _widens(shape: tuple[int, ...], contracted: Sequence[int]) -> bool:
  """True for a matrix of which `contracted` axes are contracted that makes the other side WIDENING times wider."""
  size = math.prod(shape[axis] for axis in contracted)
  return math.prod(shape) >= WIDENING * size**2


# Results of a layer that are kept for the backward pass: 'none' rematerialises nothing, 'dots' keeps results of matrix
# products and of attention's kernel, 'full' only the layer's inputs.
REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
  'none': None,
  'dots': _is_product,
  'full': jax.checkpoint_policies.nothing_saveable,
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
  """'gelu' (exact erf, what Janus runs), 'gelu_tanh' (what SigLIP was trained with)."""
  return functools.partial(jax.nn.gelu, approximate=name == 'gelu_tanh')


# From this many rows on, XLA's CPU backend is as fast with its default kernels; below, its Eigen ones are (8 rows by
# 50 M weights: 14 ms against 21).
FEW_ROWS = 32


def _product(x: jax.Array, matrix: jax.Array, out_dtype: str | None) -> jax.Array:
  """x [..., D] times a matrix [D, F]: [..., F] in `out_dtype`, None for the inputs' own."""

  def default(x: jax.Array, matrix: jax.Array) -> jax.Array:
    return jnp.dot(x, matrix, preferred_element_type=out_dtype)

  def eigen(x: jax.Array, matrix: jax.Array) -> jax.Array:
    # A left side that is stored columns first is what XLA leaves to Eigen; the barrier keeps it so.
    columns = jax.lax.optimization_barrier(x.reshape(-1, len(matrix)).T)
    y = jax.lax.dot_general(columns, matrix, (((0,), (0,)), ((), ())), preferred_element_type=out_dtype)
    return y.reshape(*x.shape[:-1], -1)

  if math.prod(x.shape[:-1]) < FEW_ROWS and matrix.dtype == jnp.float32:
    return jax.lax.platform_dependent(x, matrix, cpu=eigen, default=default)
  return default(x, matrix)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def wide_product(x: jax.Array, matrix: jax.Array, out_dtype: str) -> jax.Array:
  """x [..., D] times a matrix [F, D]: [..., F] in `out_dtype`. In the backward pass too, x's dtype is multiplied.

  The gradient of what comes out has `out_dtype`, so that of itself JAX multiplies in that, which on a GPU is TF32.
  """
  return jnp.einsum('...d,fd->...f', x, matrix, preferred_element_type=out_dtype)


def _wide_product_backward(
  out_dtype: str, operands: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
  x, matrix = operands
  gradient = gradient.astype(x.dtype)
  return jnp.einsum('...f,fd->...d', gradient, matrix), jnp.einsum('...f,...d->fd', gradient, x)


wide_product.defvjp(lambda x, matrix, dtype: (wide_product(x, matrix, dtype), (x, matrix)), _wide_product_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def weight_only_product(x: jax.Array, kernel: jax.Array, scale: jax.Array, out_dtype: str = 'float32') -> jax.Array:
  """x times a kernel that is rounded to int8; x is not. Neither kernel nor scale has a gradient: they are frozen.

  The kernel becomes x's dtype on its way into the product, which compilers for accelerators fuse: a decode step reads a
  byte per weight. XLA's CPU backend writes the converted kernel out first, so that there it takes longer.

  Args:
    x: [..., D].
    kernel: int8[F, D].
    scale: float32[F], of the kernel's rows (`quantization.quantize`).
    out_dtype: of the result, which is rounded once.

  Returns:
    [..., F].
  """
  product = jnp.einsum('...d,fd->...f', x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
  return (product * scale).astype(out_dtype)


def _weight_only_forward(
  x: jax.Array, kernel: jax.Array, scale: jax.Array, out_dtype: str
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
  return weight_only_product(x, kernel, scale, out_dtype), (jnp.zeros(0, x.dtype), kernel, scale)


def _weight_only_backward(
  out_dtype: str, operands: tuple[jax.Array, jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, np.ndarray, jax.Array]:
  like_x, kernel, scale = operands
  scaled = (gradient * scale).astype(like_x.dtype)
  zeros = np.zeros(kernel.shape, jax.dtypes.float0), jnp.zeros_like(scale)
  return jnp.einsum('...f,fd->...d', scaled, kernel.astype(like_x.dtype)), *zeros


weight_only_product.defvjp(_weight_only_forward, _weight_only_backward)


def input_first(kernel: jax.Array, input_axes: int) -> jax.Array:
  """A kernel of `Linear` as `Linear` multiplies fastest in a decode step, [inputs, features], each flattened."""
  features = math.prod(kernel.shape[: kernel.ndim - input_axes])
  return kernel.reshape(features, -1).T


class Linear(nn.Module):
  """x contracted with a kernel [*features, *inputs], plus a bias [*features].

  The kernel is stored output first, as PyTorch stores it: a checkpoint of either side is the same bytes, so
  conversion copies instead of transposing. Axes stay apart ([N, H, D], not [N * H, D]) so that each can be sharded by
  name. A tree that is prepared for decoding (`inference/decoder.py`) holds something else in the kernel's place:
  'input_first' (`input_first`); or 'int8' and 'scale' (`quantization.quantize` of [features, inputs], each flattened),
  as the frozen kernels of a run may be. Factors beside either are applied too (`models/lora.py`).

  Attributes:
    features: output shape.
    inputs: trailing shape of x that is contracted.
    compute: dtypes.
    use_bias: whether there is a bias.
    out_dtype: of the product; None keeps `compute.dtype`. 'float32' leaves the accumulator of a bf16 product unrounded.
  """

  features: tuple[int, ...]
  inputs: tuple[int, ...]
  compute: ComputeConfig
  use_bias: bool = True
  out_dtype: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dtype, param_dtype = jnp.dtype(self.compute.dtype), jnp.dtype(self.compute.param_dtype)
    fan_in = math.prod(self.inputs)
    leading = x.shape[: x.ndim - len(self.inputs)]
    # As one matrix where nothing is split: of more axes XLA's CPU backend copies a transpose for the kernel's gradient,
    # which doubles the time of such a product (and costs a toy model's train step 7 %).
    x = x.astype(dtype).reshape(*((-1,) if self.compute.is_whole else leading), fan_in)
    if self.has_variable('params', 'int8'):
      rounded, scale = (self.get_variable('params', name) for name in ('int8', 'scale'))
      if self.compute.integer_products:
        y = integer_product(x.reshape(-1, fan_in), rounded, scale).reshape(*x.shape[:-1], -1)
        y = y.astype(self.out_dtype or dtype)
      else:
        y = weight_only_product(x, rounded, scale, self.out_dtype or dtype.name)
    elif self.has_variable('params', 'input_first'):
      y = _product(x, self.get_variable('params', 'input_first').astype(dtype), self.out_dtype)
    else:
      init = nn.initializers.normal(stddev=fan_in**-0.5)
      kernel = self.param('kernel', init, (*self.features, *self.inputs), param_dtype)
      # As one matrix product: XLA's CPU backend is slower by half on products with more than one output axis.
      matrix = kernel.astype(dtype).reshape(-1, fan_in)
      y = wide_product(x, matrix, self.out_dtype or dtype.name)
    if self.has_variable('params', 'lora_a'):
      a, b, scale = (self.get_variable('params', name) for name in (*FACTORS, SCALE))
      narrow = wide_product(x, a.astype(dtype), dtype.name)
      # Not `wide_product`, whose results 'dots' keeps.
      y = y + (scale * jnp.einsum('...r,fr->...f', narrow, b.astype(dtype))).astype(y.dtype)
    y = y.reshape(*leading, *self.features)
    if not self.use_bias:
      return y
    bias = self.param('bias', nn.initializers.zeros, self.features, param_dtype)
    return y + bias.astype(y.dtype)


def dense(inputs: int, features: int, compute: ComputeConfig, **kwargs) -> Linear:
  """[..., inputs] -> [..., features]."""
  return Linear((features,), (inputs,), compute, **kwargs)


def linears(
  parent: nn.Module, x: jax.Array, features: dict[str, tuple[int, ...]], compute: ComputeConfig
) -> list[jax.Array]:
  """Products of one input with several kernels, without biases; to be called in `parent.__call__`.

  A tree that is prepared for decoding may hold all of them as one `Linear` (`joined_name`): a decode step reads a large
  kernel nearer to the memory's bandwidth than several small ones.

  Args:
    parent: the module that holds the kernels.
    x: [..., D].
    features: name of each `Linear` -> its features.
    compute: dtypes.

  Returns:
    [..., *features] of each.
  """
  inputs = x.shape[-1:]
  if not parent.has_variable('params', joined_name(features)):
    return [Linear(shape, inputs, compute, use_bias=False, name=name)(x) for name, shape in features.items()]
  sizes = [math.prod(shape) for shape in features.values()]
  y = Linear((sum(sizes),), inputs, compute, use_bias=False, name=joined_name(features))(x)
  parts = jnp.split(y, list(itertools.accumulate(sizes))[:-1], axis=-1)
  return [part.reshape(*x.shape[:-1], *shape) for part, shape in zip(parts, features.values())]


def joined_name(names: Iterable[str]) -> str:
  """Name of the one `Linear` that stands for several: 'q_k_v'."""
  return '_'.join(names)


class RMSNorm(nn.Module):
  """x / rms(x) * scale. Statistics in float32, cast back *before* the scale, as transformers' LlamaRMSNorm does."""

  epsilon: float
  compute: ComputeConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],), jnp.dtype(self.compute.param_dtype))
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.epsilon)
    return normed.astype(x.dtype) * scale.astype(x.dtype)


class LayerNorm(nn.Module):
  """LayerNorm with scale and bias; statistics in float32, two-pass variance as torch computes it."""

  epsilon: float
  compute: ComputeConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    param_dtype = jnp.dtype(self.compute.param_dtype)
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],), param_dtype)
    bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],), param_dtype)
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + self.epsilon)
    return (normed * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


class Embedding(nn.Module):
  """A table [rows, width]; looks up integer ids."""

  rows: int
  width: int
  compute: ComputeConfig

  @nn.compact
  def __call__(self, ids: jax.Array) -> jax.Array:
    init = nn.initializers.normal(stddev=0.02)
    table = self.param('table', init, (self.rows, self.width), jnp.dtype(self.compute.param_dtype))
    # 'clip' would hide an id outside the table behind a plausible embedding; NaN is seen at once.
    return jnp.take(table, ids, axis=0, mode='fill', fill_value=jnp.nan).astype(jnp.dtype(self.compute.dtype))


class Adaptor(nn.Module):
  """Two-layer perceptron with one exact GELU between: MlpProjector 'mlp_gelu' of depth 2, and the image head.

  [..., width_in] -> [..., width_out].
  """

  width_in: int
  width_hidden: int
  width_out: int
  compute: ComputeConfig
  out_dtype: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    hidden = dense(self.width_in, self.width_hidden, self.compute, name='fc1')(x)
    output = dense(self.width_hidden, self.width_out, self.compute, out_dtype=self.out_dtype, name='fc2')
    return output(activation('gelu')(hidden))


def rotary_tables(positions: jax.Array, head_dim: int, theta: float, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
  """cos and sin [B, T, H] of rotary embedding in the rotate-half layout; angles in float32, then cast.

  Frequencies are theta**(-2i / H), i in [0, H/2), repeated for both halves (transformers' LlamaRotaryEmbedding).
  """
  frequencies = theta ** -(jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
  angles = positions.astype(jnp.float32)[..., None] * frequencies
  angles = jnp.concatenate([angles, angles], axis=-1)
  return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)


def rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Applies rotary embedding to x [B, T, N, H]."""
  cos, sin = (table[:, :, None, :] for table in tables)
  first, second = jnp.split(x, 2, axis=-1)
  return x * cos + jnp.concatenate([-second, first], axis=-1) * sin


def stack_layers(block: type[nn.Module], depth: int, compute: ComputeConfig, *, in_axes: tuple, **kwargs) -> nn.Module:
  """`depth` copies of `block` as one loop over parameters stacked along a leading axis L.

  `block.__call__(carry, *inputs) -> (carry, output)`; `in_axes` says per input whether it is sliced along L (0) or
  the same for every layer (nn.broadcast). One layer is compiled once whatever the depth. `kwargs` go to `block`.
  """
  if compute.remat not in REMAT_POLICIES:
    raise InputError(f'remat is {compute.remat!r}: expected one of {sorted(REMAT_POLICIES)}')
  policy = REMAT_POLICIES[compute.remat]
  if policy is not None:
    # The loop itself keeps XLA from merging the two forward passes, so the costlier barrier is not needed.
    block = nn.remat(block, policy=policy, prevent_cse=False)
  stacked = nn.scan(
    block,
    variable_axes={'params': 0},
    split_rngs={'params': True},
    in_axes=in_axes,
    length=depth,
    unroll=compute.unroll,
  )
  return stacked(compute=compute, **kwargs)
