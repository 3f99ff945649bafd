"""Cross-entropy of a head: in chunks, of some positions, over devices."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from training.batches import CONFIG

from janus_jax.models.config import ComputeConfig
from janus_jax.models.layers import Linear, wide_product
from janus_jax.sharding.mesh import ROW_AXES, make_mesh
from janus_jax.training.losses import Head, Spread, Targets, cross_entropy

B, T, D, V = 2, 23, 8, 50
ALL = np.ones((B, T), bool)


def head_inputs(T=T):
  rng = np.random.default_rng(0)
  hidden, kernel = rng.normal(size=(B, T, D)).astype(np.float32), rng.normal(size=(V, D)).astype(np.float32)
  return hidden, kernel, rng.integers(0, V, (B, T)).astype(np.int32), rng.normal(size=(B, T)).astype(np.float32)


def logits_of(weights, hidden):
  return hidden @ weights['kernel'].T


HEAD = Head(logits_of)


def weighted_loss(hidden, kernel, targets, weights, chunk):
  return cross_entropy(HEAD, {'kernel': kernel}, hidden, Targets(targets, ALL, weights), chunk)[1]


def test_cross_entropy_is_minus_log_softmax_at_the_target():
  hidden, kernel, targets, weights = head_inputs()
  logits = hidden.astype(np.float64) @ kernel.T.astype(np.float64)
  expected = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
  for chunk in (T, 5):
    found, total = cross_entropy(HEAD, {'kernel': kernel}, hidden, Targets(targets, ALL, weights), chunk)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(total, np.sum(weights * expected), rtol=1e-5)


@pytest.mark.parametrize('chunk', [1, 5, T - 1, T + 1])
def test_chunks_change_neither_loss_nor_gradient(chunk):
  hidden, kernel, targets, weights = head_inputs()
  gradient = jax.jit(jax.value_and_grad(weighted_loss, argnums=(0, 1)), static_argnums=4)
  (whole, whole_gradients), (cut, cut_gradients) = (gradient(hidden, kernel, targets, weights, c) for c in (T, chunk))
  np.testing.assert_allclose(cut, whole, rtol=1e-5)
  for one, other in zip(cut_gradients, whole_gradients):
    np.testing.assert_allclose(one, other, atol=1e-5)


def array_sizes(jaxpr) -> set[int]:
  """Numbers of elements of all that a program computes, inner programs included."""
  sizes = {variable.aval.size for equation in jaxpr.eqns for variable in equation.outvars}
  for equation in jaxpr.eqns:
    for inner in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, 'eqns')):
      inner = getattr(inner, 'jaxpr', inner)
      sizes |= array_sizes(inner) if hasattr(inner, 'eqns') else set()
  return sizes


def test_logits_of_all_positions_never_exist_together():
  hidden, kernel, targets, weights = head_inputs()
  largest = {}
  for chunk in (T, 4):
    gradient = functools.partial(jax.grad(weighted_loss, argnums=(0, 1)), chunk=chunk)
    largest[chunk] = max(array_sizes(jax.make_jaxpr(gradient)(hidden, kernel, targets, weights).jaxpr))
  assert largest[T] == B * T * V  # The test sees them where they do exist.
  assert largest[4] < B * T * V / 2


@pytest.mark.parametrize('fraction', [0.0, 0.1, 0.6])
@pytest.mark.parametrize(
  ('chunk', 'sizes'), [(1, {}), (5, {'fsdp': 2}), (6, {'context': 2}), (7, {'data': 2, 'context': 2}), (24, {})]
)
def test_only_what_is_wanted_is_summed_and_learned_from(fraction, chunk, sizes):
  hidden, kernel, targets, weights = head_inputs(24)
  wanted = np.random.default_rng(1).random(targets.shape) < fraction

  mesh = make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])
  spread = Spread(mesh, ROW_AXES, 'context', (('kernel', PartitionSpec(None, 'fsdp')),)) if sizes else None

  def summed(hidden, kernel):
    head = Head(logits_of, spread)
    found, total = cross_entropy(head, {'kernel': kernel}, hidden, Targets(targets, wanted, weights), chunk)
    # Twice: the gradient of the sum is not always asked for as it is.
    return 2 * total, found

  def expected(hidden, kernel):
    logits = jax.nn.log_softmax(hidden @ kernel.T)
    found = jnp.where(wanted, -jnp.take_along_axis(logits, targets[..., None], -1)[..., 0], 0)
    return 2 * jnp.sum(weights * found), found

  ours, theirs = (
    jax.jit(jax.grad(function, argnums=(0, 1), has_aux=True))(hidden, kernel) for function in (summed, expected)
  )
  for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5)
  assert np.any(ours[1]) == (fraction > 0)


def test_chunks_in_which_nothing_is_wanted_are_never_computed():
  hidden, kernel, targets, weights = head_inputs()
  wanted = np.zeros((B, T), bool)
  wanted[0, 3:8] = wanted[1, -4:] = True  # 9 of 46, in 12 chunks of 4.
  calls = []

  def counted(weights, hidden):
    jax.debug.callback(lambda: calls.append(1))
    return logits_of(weights, hidden)

  def summed(hidden):
    return cross_entropy(Head(counted), {'kernel': kernel}, hidden, Targets(targets, wanted, weights), 2)[1]

  jax.block_until_ready(jax.jit(jax.grad(summed))(hidden))
  jax.effects_barrier()
  assert len(calls) == 3  # Forward and backward together.


def test_weights_that_do_not_train_get_no_gradient():
  hidden, kernel, targets, weights = head_inputs()
  flops = {}
  for arguments in (0, (0, 1)):
    gradient = jax.jit(functools.partial(jax.grad(weighted_loss, argnums=arguments), chunk=4))
    flops[arguments] = gradient.lower(hidden, kernel, targets, weights).compile().cost_analysis()['flops']
  # Of a chunk: logits and the gradient of what comes in, or of the kernel as well. XLA counts one trip of a loop.
  product = 2 * B * 4 * D * V
  assert flops[0, 1] - flops[0] == pytest.approx(product, rel=0.2)


def test_heads_multiply_in_the_compute_dtype_in_both_passes():
  """The gradient of float32 logits is float32, which a GPU would multiply as TF32."""
  config, compute = CONFIG.language_model, ComputeConfig(dtype='bfloat16')
  head = Linear((config.vocab_size,), (config.width,), compute, use_bias=False, out_dtype='float32')
  x, kernel = jnp.ones((4, config.width), 'bfloat16'), jnp.ones((config.vocab_size, config.width))

  def total(x, kernel):
    return jnp.square(head.apply({'params': {'kernel': kernel}}, x)).sum()

  text = jax.jit(jax.grad(total, argnums=(0, 1))).lower(x, kernel).as_text()
  products = re.findall(r'dot_general.*: \(tensor<\S*x(\w+)>, tensor<\S*x(\w+)>\)', text)
  assert products == [('bf16', 'bf16')] * 3


def test_wide_products_have_the_gradients_of_products():
  x, matrix = (jnp.asarray(np.random.default_rng(0).normal(size=size), jnp.float32) for size in ((2, 3, 5), (7, 5)))

  def plain(x, matrix):
    return jnp.sin(jnp.einsum('...d,fd->...f', x, matrix)).sum()

  def wide(x, matrix):
    return jnp.sin(wide_product(x, matrix, 'float32')).sum()

  for one, other in zip(jax.grad(wide, (0, 1))(x, matrix), jax.grad(plain, (0, 1))(x, matrix)):
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_no_chunk_casts_the_weights_of_a_head():
  """They are cast before the loop over chunks begins."""
  config, compute = CONFIG.language_model, ComputeConfig(dtype='bfloat16')
  linear = Linear((config.vocab_size,), (config.width,), compute, use_bias=False, out_dtype='float32')
  hidden, targets = jnp.ones((2, 8, config.width), 'bfloat16'), jnp.zeros((2, 8), jnp.int32)

  def total(kernel):
    head = Head(lambda weights, hidden: linear.apply({'params': weights}, hidden))
    return cross_entropy(head, {'kernel': kernel}, hidden, Targets(targets, targets == 0, jnp.ones((2, 8))), chunk=2)[1]

  text = jax.jit(jax.grad(total)).lower(jnp.ones((config.vocab_size, config.width))).as_text()
  size = f'{config.vocab_size}x{config.width}x'
  casts = [match.start() for match in re.finditer(rf'convert .*tensor<{size}f32>\) -> tensor<{size}bf16>', text)]
  assert casts
  assert max(casts) < text.index('stablehlo.while')
