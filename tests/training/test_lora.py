"""The train step with factors of LoRA: a model that starts as its base, and trains nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training import batches
from training.batches import CONFIG, params
from training.steps import STEP, gradients_of_first_step, stage_values, to_numpy

from janus_jax.conversion.adapters import Adapter
from janus_jax.conversion.configs import janus_to_huggingface
from janus_jax.conversion.lazy import from_numpy
from janus_jax.conversion.peft_files import write_peft
from janus_jax.conversion.translate import tensors_from_params
from janus_jax.models.janus import Janus
from janus_jax.models.lora import (
  LoraConfig,
  adapted_shapes,
  factor_shapes,
  is_adapter,
  is_factor,
  new_factors,
  target_modules,
)
from janus_jax.models.quantization import quantize
from janus_jax.sharding.mesh import make_mesh
from janus_jax.training.losses import batch_losses
from janus_jax.training.metric_window import Window
from janus_jax.training.stages import Stage, adapted_groups, trained_groups, trained_paths
from janus_jax.training.state import Placement, flatten, new_state, place_batch, start_state, unflatten
from janus_jax.training.step import jit_train_step
from janus_jax.training.throughput import step_flops, trunk_parameters

LORA = LoraConfig(rank=4, alpha=8.0)
SHAPES = {path: leaf.shape for path, leaf in flatten(params()).items()}
ONES = jnp.ones(3)


@pytest.fixture(scope='module')
def examples(tmp_path_factory):
  return batches.make_examples(batches.make_spec(tmp_path_factory.mktemp('tokenizer')), batches.records())


@pytest.fixture(scope='module')
def batch(examples):
  return batches.batch_of(examples, batches.ROWS)


def adapted(config: LoraConfig = LORA, b: float = 0.0) -> dict:
  """The tree with new factors; `b` is the scale of random values in B."""
  flat, rng = flatten(params()), np.random.default_rng(1)
  for module in target_modules(SHAPES, config.targets):
    for path, value in new_factors(module, SHAPES[f'{module}/kernel'], config, 0).items():
      flat[path] = value + b * rng.normal(size=value.shape).astype(np.float32) if path.endswith('lora_b') else value
  return unflatten(flat)


def merged(tree: dict) -> dict:
  """Kernels with the products of their factors added, and no factors."""
  flat = flatten(tree)
  for path in [path for path in flat if path.endswith('lora_a')]:
    module = path.rpartition('/')[0]
    a, b, scale = (flat.pop(f'{module}/{name}') for name in ('lora_a', 'lora_b', 'lora_scale'))
    change = scale[..., None, None] * (b @ a)
    flat[f'{module}/kernel'] = flat[f'{module}/kernel'] + change.reshape(flat[f'{module}/kernel'].shape)
  return unflatten(flat)


def stage(config: LoraConfig = LORA, trainable: tuple[str, ...] = ()) -> Stage:
  fields = {'steps': 1, 'batch_size': 4, 'learning_rate': 1e-3, 'ratio': (1, 1, 1), 'sources': {}}
  return Stage(name='tune', trainable=trainable, lora=config, **fields)


def trained_in(tree: dict, **settings) -> frozenset[str]:
  return trained_paths(stage(**settings), list(flatten(tree)))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('targets', [LORA.targets, ('language_model', 'vision_encoder', 'gen_head', 'gen_aligner')])
def test_at_first_it_is_its_base_bit_for_bit(batch, dtype, targets):
  step = dataclasses.replace(STEP, compute=dataclasses.replace(STEP.compute, dtype=dtype))
  loss = jax.jit(batch_losses, static_argnames='config')
  start = adapted(dataclasses.replace(LORA, targets=targets))
  sums = [np.asarray(loss(tree, batch, ONES, config=step)[1].sums) for tree in (params(), start)]
  np.testing.assert_array_equal(*sums)
  other = loss(adapted(dataclasses.replace(LORA, targets=targets), b=0.1), batch, ONES, config=step)[1].sums
  assert (sums[0] != other).all()


def test_merged_is_unmerged_and_so_are_its_gradients(batch):
  tree = adapted(b=0.3)
  flat = flatten(tree)
  factors = {path: flat[path] for path in flat if is_factor(path)}

  def loss(factors, join):
    return batch_losses(join(unflatten({**flat, **factors})), batch, ONES, STEP)[0]

  both = [jax.jit(jax.value_and_grad(lambda f, join=join: loss(f, join)))(factors) for join in (merged, lambda t: t)]
  np.testing.assert_allclose(both[0][0], both[1][0], rtol=1e-6)
  for path in factors:
    scale = np.abs(both[0][1][path]).max()
    assert scale > 0
    np.testing.assert_allclose(both[1][1][path], both[0][1][path], atol=1e-5 * scale, err_msg=path)


@pytest.mark.parametrize('trainable', [(), ('gen_head', r'language_model/.*norm/scale')])
def test_only_factors_and_named_parts_change(batch, trainable):
  tree = adapted()
  trained = trained_in(tree, trainable=trainable)
  assert {path for path in trained if path.startswith('language_model/')} >= {
    path for path in flatten(tree) if is_factor(path)
  }
  step, values = jit_train_step('static'), stage_values(1e-2)
  state = new_state(tree, trained, STEP.optimizer)
  before = to_numpy(state)
  for _ in range(2):  # B is 0 at first, and A has no gradient.
    state, metrics = step(state, batch, values, masks=trained, config=STEP)
  after = to_numpy(state)
  changed = {p for p, x in flatten(after.params).items() if (x != flatten(before.params)[p]).any()}
  assert changed == trained
  assert set(after.opt_state.mu) == set(after.opt_state.nu) == trained
  assert float(metrics['loss']) > 0


def test_traced_masks_give_the_same(batch):
  tree, values = adapted(b=0.1), stage_values(1e-2)
  trained = trained_in(tree)
  union = trained | trained_in(tree, trainable=('gen_head',))
  found = []
  for mode, masks, moments in (
    ('static', trained, trained),
    ('traced', {path: jnp.asarray(path in trained) for path in sorted(union)}, union),
  ):
    state = new_state(jax.tree.map(np.array, tree), moments, STEP.optimizer)
    state, _ = jit_train_step(mode)(state, batch, values, masks=masks, config=STEP)
    found.append(flatten(to_numpy(state).params))
  for path in found[0]:
    same = np.testing.assert_allclose if path in trained else np.testing.assert_array_equal
    same(found[0][path], found[1][path], **({'atol': 1e-6} if path in trained else {}), err_msg=path)


def test_a_base_in_int8_is_the_kernel_that_it_stands_for(batch):
  config, tree = dataclasses.replace(LORA, base_dtype='int8'), adapted(b=0.1)
  rounded, exact = flatten(tree), flatten(tree)
  for module in target_modules(SHAPES, config.targets):
    kernel = rounded.pop(f'{module}/kernel')
    values, scale = quantize(jnp.asarray(kernel.reshape(adapted_shapes(SHAPES, config)[f'{module}/int8'])))
    rounded |= {f'{module}/int8': np.asarray(values), f'{module}/scale': np.asarray(scale)}
    exact[f'{module}/kernel'] = np.asarray(values * scale[..., None]).reshape(kernel.shape)
  assert {path: leaf.shape for path, leaf in rounded.items()} == adapted_shapes(SHAPES, config)
  trained, gradients = trained_in(tree), []
  for flat in (rounded, exact):
    state = new_state(jax.tree.map(np.array, unflatten(flat)), trained, STEP.optimizer)
    state, metrics = jit_train_step('static')(state, batch, stage_values(0.0), masks=trained, config=STEP)
    gradients.append((float(metrics['loss']), gradients_of_first_step(to_numpy(state), metrics)))
  (loss, own), (expected, theirs) = gradients
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  for path in trained:
    np.testing.assert_allclose(own[path], theirs[path], atol=1e-5 * np.abs(theirs[path]).max(), err_msg=path)


def test_flops_are_those_of_the_compiled_step(batch):
  """No gradients of frozen kernels: the decoder's, of which one layer is no loop."""
  full = frozenset(path for path in SHAPES if path.startswith('language_model/layers/'))
  measured, counted = [], []
  for tree, trained in ((params(), full), (adapted(), trained_in(adapted()))):
    state = jax.eval_shape(lambda tree=tree, trained=trained: new_state(tree, trained, STEP.optimizer))
    step = jit_train_step('static').lower(state, batch, stage_values(), masks=trained, config=STEP)
    measured.append(step.compile().cost_analysis()['flops'])
    window = Window(CONFIG, batches.SHAPE.length, trained)
    window.add(batch, 0.0)
    groups = trained_groups(trained), adapted_groups(trained)
    counted.append(step_flops(CONFIG, window.counts, batches.SHAPE.length, *groups).total)
  # Of rank 4 in a model 64 wide, factors are a sixteenth of their kernels or more: what the formula leaves out.
  layers = 6 * trunk_parameters(CONFIG.language_model) * batches.SHAPE.rows * batches.SHAPE.length
  factors = 6 * sum(leaf.size for path, leaf in flatten(adapted()).items() if is_factor(path))
  saved, expected = measured[0] - measured[1], layers / 3 - factors * batches.SHAPE.rows * batches.SHAPE.length
  assert 0.8 * expected < saved < 1.25 * expected
  assert 0.6 < counted[1] / counted[0] < 0.8


@pytest.mark.parametrize('base_dtype', ['', 'int8'])
def test_on_a_mesh_factors_lie_as_their_kernels_do(batch, examples, base_dtype):
  config = dataclasses.replace(LORA, base_dtype=base_dtype, targets=('language_model', 'vision_encoder', 'gen_head'))
  tree, values = adapted(config, b=0.1), stage_values(1e-2)
  flat = flatten(tree)
  for module in target_modules(SHAPES, config.targets) if base_dtype else ():
    if '/layers/' in module:
      shape = adapted_shapes(SHAPES, config)[f'{module}/int8']
      rounded = quantize(jnp.asarray(flat.pop(f'{module}/kernel').reshape(shape)))
      flat |= dict(zip((f'{module}/int8', f'{module}/scale'), map(np.asarray, rounded)))
  mesh = make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2})
  placement = Placement.of(mesh, {path: leaf.shape for path, leaf in flat.items()})
  specs = {path: sharding.spec for path, sharding in placement.params.items()}
  names = ('attn/q/lora_a', 'attn/q/lora_b', 'mlp/down/lora_a', 'mlp/down/lora_b')
  axes = (None, 'fsdp'), ('tensor', None), (None, 'tensor'), ('fsdp', None)
  assert [tuple(specs[f'language_model/layers/{name}'])[1:] for name in names] == [
    tuple(entries)[: 2 if entries[1] else 1] for entries in axes
  ]
  trained = trained_in(unflatten(flat))
  one = new_state(unflatten({path: np.array(leaf) for path, leaf in flat.items()}), trained, STEP.optimizer)
  one, exact = jit_train_step('static')(one, batch, values, masks=trained, config=STEP)
  spread = dataclasses.replace(STEP, shardings=tuple(sorted(placement.params.items())))
  state = start_state(unflatten(flat), trained, STEP.optimizer, placement)
  placed = place_batch(batches.batch_of(examples, batches.ROWS, streams=4), mesh)
  state, metrics = jit_train_step('static')(state, placed, values, masks=trained, config=spread)
  np.testing.assert_allclose(metrics['loss_sums'], exact['loss_sums'], rtol=1e-5)
  np.testing.assert_allclose(metrics['grad_norm'], exact['grad_norm'], rtol=1e-4)
  same = jax.tree.map(
    lambda leaf, sharding: leaf.sharding.is_equivalent_to(sharding, leaf.ndim), state, placement.shardings(state)
  )
  assert all(jax.tree.leaves(same))


def test_factors_do_not_depend_on_what_else_has_any():
  module = 'language_model/layers/attn/v'
  kernel = SHAPES[f'{module}/kernel']
  first, again, other = (new_factors(module, kernel, LORA, seed) for seed in (0, 0, 1))
  a = first[f'{module}/lora_a']
  assert {path: value.shape for path, value in first.items()} == factor_shapes(module, kernel, LORA.rank)
  np.testing.assert_array_equal(a, again[f'{module}/lora_a'])
  assert (a != other[f'{module}/lora_a']).mean() > 0.99
  assert (
    a != new_factors('language_model/layers/attn/k', kernel, LORA, 0)['language_model/layers/attn/k/lora_a']
  ).any()
  bound = CONFIG.language_model.width**-0.5
  assert 0.9 * bound < np.abs(a).max() < bound
  assert abs(a.mean()) < bound / 10
  assert not first[f'{module}/lora_b'].any()
  assert first[f'{module}/lora_scale'].tolist() == [2.0]


@pytest.mark.parametrize(
  ('settings', 'expected'),
  [
    ({'config': dataclasses.replace(LORA, targets=('q_proj',))}, "lora.targets: 'q_proj' matches no linear map: expec"),
    ({'config': dataclasses.replace(LORA, targets=('vq',))}, "lora.targets: 'vq' matches no linear map"),
    ({'config': dataclasses.replace(LORA, targets=('a/(',))}, r"lora.targets: 'a/\(' is no regular expression"),
    (
      {'trainable': ('language_model',)},
      r"'language_model' has language_model/layers/attn/k/kernel, which lora adapts",
    ),
  ],
)
def test_what_cannot_be_adapted(settings, expected):
  with pytest.raises(ValueError, match=expected):
    trained_paths(stage(**settings), list(adapted_shapes(SHAPES, settings.get('config', LORA))))


def test_what_was_trained_is_what_peft_computes(batch, tmp_path):
  torch, peft = pytest.importorskip('torch'), pytest.importorskip('peft')
  transformers = pytest.importorskip('transformers')
  tree = adapted()
  trained = trained_in(tree, trainable=('gen_head',))
  state = new_state(tree, trained, STEP.optimizer)
  for _ in range(3):
    state, _ = jit_train_step('static')(state, batch, stage_values(1e-2), masks=trained, config=STEP)
  flat = flatten(to_numpy(state).params)
  base, own = ({p: from_numpy(x, p) for p, x in part.items()} for part in (flatten(params()), flat))
  parts = {p: x for p, x in own.items() if is_adapter(p)}, {p: x for p, x in own.items() if p.startswith('gen_head/')}
  write_peft(Adapter('base', base, *parts), SHAPES, str(tmp_path), 'huggingface', lambda _: None)
  fields = transformers.JanusConfig.from_dict(janus_to_huggingface(CONFIG, 'float32'))
  model = transformers.JanusForConditionalGeneration(fields).eval()
  weights = tensors_from_params(base, 'huggingface')
  model.load_state_dict({name: torch.tensor(array[...]) for name, array in weights.items()})
  model = peft.PeftModel.from_pretrained(model, tmp_path).get_base_model()
  tokens = np.random.default_rng(2).integers(0, 250, (2, 9)).astype(np.int32)
  with torch.inference_mode():
    hidden = model.model.language_model(input_ids=torch.from_numpy(tokens).long()).last_hidden_state
    theirs = model.lm_head(hidden).numpy(), model.model.generation_head(hidden).numpy()

  def logits(janus):
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = janus.language_model.hidden(janus.language_model.embed(tokens), positions)
    return janus.text_logits(hidden), janus.image_logits(hidden)

  for tree, is_same in ((unflatten(flat), True), (params(), False)):
    ours = Janus(CONFIG, STEP.compute).apply({'params': tree}, method=logits)
    far = [np.abs(np.asarray(own) - other).max() for own, other in zip(ours, theirs)]
    assert max(far) < 1e-5 if is_same else min(far) > 0.01
