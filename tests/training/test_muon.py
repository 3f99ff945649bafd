"""Muon against optax's whole optimizer and torch's, and what its steps are made of."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from janus_jax.errors import InputError
from janus_jax.sharding.mesh import make_mesh
from janus_jax.training import optimizer
from janus_jax.training.muon import STEP_SIZE, kernel_axes, muon_directions
from janus_jax.training.optimizer import OptimizerConfig, check_optimizer

# [layers, heads, head width, inputs], and the other way round; layers of MLPs; a single matrix; what AdamW steps.
SHAPES = {
  'language_model/layers/attn/q/kernel': (2, 3, 4, 10),
  'language_model/layers/attn/o/kernel': (2, 10, 3, 4),
  'language_model/layers/mlp/up/kernel': (2, 20, 10),
  'gen_head/fc1/kernel': (10, 10),
  'gen_head/fc1/bias': (10,),
  'language_model/layers/attn_norm/scale': (2, 10),
  'language_model/embed_tokens/table': (7, 10),
}
CONFIG = OptimizerConfig(max_grad_norm=1e9, muon=('.*kernel',))


def sampled(seed: int) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(seed)
  return {path: rng.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()}


def steps(config: OptimizerConfig, count: int, decay: float = 0.1) -> dict:
  params = sampled(0)
  state = optimizer.directions(config).init(params)
  chain = optimizer.adamw(config, jnp.float32(1e-2), jnp.float32(decay))
  for seed in range(1, count + 1):
    params, state = optimizer.update(chain, sampled(seed), state, params)
  return params


def as_matrices(path: str, kernel: np.ndarray) -> np.ndarray:
  """[n, inputs or outputs, the other]"""
  if path.endswith('q/kernel'):
    return kernel.reshape(2, 12, 10)
  return kernel.reshape(2, 10, 12) if path.endswith('o/kernel') else np.atleast_3d(kernel.T).T


def test_steps_of_kernels_are_those_of_optax_and_all_others_adamws():
  kernels = {path: leaf for path, leaf in sampled(0).items() if path.endswith('kernel')}
  axes = {path: kernel_axes(path, SHAPES[path]) for path in kernels}
  whole = optax.contrib.muon(1e-2, weight_decay=0.1, muon_weight_dimension_numbers=axes, consistent_rms=0.2)
  state = whole.init(kernels)
  for seed in range(1, 4):
    updates, state = whole.update({path: sampled(seed)[path] for path in kernels}, state, kernels)
    kernels = optax.apply_updates(kernels, updates)
  ours, adam = steps(CONFIG, 3), steps(dataclasses.replace(CONFIG, muon=()), 3)
  for path in SHAPES:
    np.testing.assert_allclose(ours[path], kernels.get(path, adam[path]), atol=2e-6, err_msg=path)


def test_a_first_step_is_that_of_torch():
  torch = pytest.importorskip('torch')
  before, after = sampled(0), steps(CONFIG, 1)
  for path in (path for path in SHAPES if path.endswith('kernel')):
    matrices = [as_matrices(path, tree[path]) for tree in (before, sampled(1), after)]
    for old, gradient, new in zip(*matrices):
      leaf = torch.nn.Parameter(torch.from_numpy(old.copy()))
      leaf.grad = torch.from_numpy(gradient.copy())
      torch.optim.Muon([leaf], lr=1e-2, weight_decay=0.1, adjust_lr_fn='match_rms_adamw').step()
      theirs, ours = leaf.detach().numpy() - old, new - old
      # Torch iterates in bfloat16.
      np.testing.assert_allclose(ours, theirs, atol=0.03 * np.abs(theirs).max(), err_msg=path)


def test_all_singular_values_of_a_direction_are_alike():
  gradients = {path: leaf for path, leaf in sampled(1).items() if path.endswith('kernel')}
  found, momentum = muon_directions(gradients, {path: 0 * leaf for path, leaf in gradients.items()}, jnp.int32(0))
  for path, direction in found.items():
    matrices = as_matrices(path, np.asarray(direction))
    values = np.linalg.svd(matrices, compute_uv=False) / (STEP_SIZE * max(matrices.shape[1:]) ** 0.5)
    assert 0.6 < values.min() <= values.max() < 1.3, path
    assert np.ptp(np.linalg.svd(as_matrices(path, gradients[path]), compute_uv=False)) > 1
    np.testing.assert_allclose(momentum[path], 0.05 * gradients[path], rtol=1e-5)


def test_directions_do_not_depend_on_the_mesh():
  gradients = {path: sampled(1)[path] for path in SHAPES if path.endswith('q/kernel')}
  mesh = make_mesh({'fsdp': 2, 'data': 4})
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, None, 'data', 'fsdp'))
  placed = {path: jax.device_put(leaf, split) for path, leaf in gradients.items()}
  one, many = (jax.jit(muon_directions)(tree, tree, jnp.int32(3))[0] for tree in (gradients, placed))
  for path in gradients:
    np.testing.assert_allclose(many[path], one[path], atol=1e-5)


def test_kernels_have_one_moment():
  state = optimizer.directions(CONFIG).init(sampled(0))
  assert set(state.mu) == set(SHAPES)
  assert set(state.nu) == {path for path in SHAPES if not path.endswith('kernel')}


@pytest.mark.parametrize(
  ('muon', 'message'),
  [
    ('nothing/.*', r"^optimizer\.muon: 'nothing/\.\*' matches no parameter"),
    ('(', r"^optimizer\.muon: '\(' is no regular expression"),
    ('gen_head/.*', r'^optimizer\.muon: gen_head/fc1/bias, shape \[10\], is no matrix: expected patterns of kernels$'),
    ('vision.*', r'patch_embed/kernel, shape \[8, 3, 2, 2\], is no matrix'),
  ],
)
def test_what_muon_cannot_step_is_refused(muon, message):
  shapes = {**SHAPES, 'vision_encoder/patch_embed/kernel': (8, 3, 2, 2)}
  config = OptimizerConfig(weight_decay_rules=(), muon=(muon,))
  with pytest.raises(InputError, match=message):
    check_optimizer(config, shapes)
