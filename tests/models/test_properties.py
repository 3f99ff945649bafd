"""What must hold of the model whatever its weights: causality, isolation, equivalence of ways to run it, and sizes."""

import dataclasses
import functools
import json

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.errors import InputError
from janus_jax.models.config import PRESETS, ComputeConfig, JanusConfig, config_to_dict, from_dict
from janus_jax.models.initialization import initial_params, initial_std, sample_on_devices
from janus_jax.models.janus import Janus, abstract_params
from janus_jax.models.layers import Linear, input_first
from janus_jax.models.llama import Llama, LlamaBlock
from janus_jax.models.lora import LoraConfig, adapted_shapes
from janus_jax.models.vq import VQ

CONFIG = PRESETS['test_tiny']
LLAMA = CONFIG.language_model
COMPUTE = ComputeConfig()


@pytest.fixture(scope='module')
def params():
  """Random weights of the decoder, larger than the initial ones so that attention is far from uniform."""
  tree = initial_params(CONFIG, seed=0)['language_model']
  return jax.tree.map(lambda leaf: jnp.asarray(leaf * 2 if leaf.ndim > 2 else leaf), tree)


def embeddings(B: int, T: int, seed: int = 0) -> jax.Array:
  return jax.random.normal(jax.random.key(seed), (B, T, LLAMA.width))


@functools.partial(jax.jit, static_argnames='compute')
def hidden(params, x, positions=None, segments=None, compute=COMPUTE):
  if positions is None:
    positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
  return Llama(LLAMA, compute).apply({'params': params}, x, positions, segments, method='hidden')[0]


def test_causality_by_gradient(params):
  T = 8
  jacobian = jax.jit(jax.jacrev(lambda x: hidden(params, x).sum(-1)[0]))(embeddings(1, T))[:, 0]
  influence = np.abs(jacobian).sum(-1)  # [output, input]
  assert (influence[np.triu_indices(T, 1)] == 0).all()
  assert (influence[np.tril_indices(T)] > 0).all()


def test_segments_isolate_packed_examples(params):
  first, second = embeddings(1, 5, seed=1), embeddings(1, 7, seed=2)
  positions = jnp.concatenate([jnp.arange(5), jnp.arange(7)])[None]
  segments = jnp.array([[1] * 5 + [2] * 7])
  packed = hidden(params, jnp.concatenate([first, second], axis=1), positions, segments)
  np.testing.assert_allclose(packed[:, :5], hidden(params, first), atol=1e-5)
  np.testing.assert_allclose(packed[:, 5:], hidden(params, second), atol=1e-5)


def test_left_padding_changes_nothing(params):
  x = embeddings(1, 6)
  padded = jnp.concatenate([embeddings(1, 4, seed=9), x], axis=1)
  positions = jnp.array([[0] * 4 + list(range(6))])
  segments = jnp.array([[0] * 4 + [1] * 6])
  result = hidden(params, padded, positions, segments)
  np.testing.assert_allclose(result[:, 4:], hidden(params, x), atol=1e-5)
  assert np.isfinite(result).all()


def test_layer_loop_equals_layers_applied_one_by_one(params):
  x, positions = embeddings(2, 6), jnp.tile(jnp.arange(6), (2, 1))
  from janus_jax.models.layers import RMSNorm, rotary_tables

  rotary = rotary_tables(positions, LLAMA.head_dim, LLAMA.rope_theta, jnp.float32)
  y = x
  for i in range(LLAMA.depth):
    weights = jax.tree.map(lambda leaf, i=i: leaf[i], params['layers'])
    (y, _), _ = LlamaBlock(LLAMA, COMPUTE).apply({'params': weights}, (y, None), i, rotary, None)
  y = RMSNorm(LLAMA.norm_eps, COMPUTE).apply({'params': params['final_norm']}, y)
  np.testing.assert_allclose(hidden(params, x), y, atol=1e-5)
  unrolled = dataclasses.replace(COMPUTE, unroll=LLAMA.depth)
  np.testing.assert_allclose(hidden(params, x, compute=unrolled), y, atol=1e-5)


@pytest.mark.parametrize('remat', ['dots', 'full'])
def test_remat_changes_neither_values_nor_gradients(params, remat):
  x = embeddings(2, 6)

  def loss(params, compute):
    return jnp.square(hidden(params, x, compute=compute) + 1).sum()

  other = dataclasses.replace(COMPUTE, remat=remat)
  # The gradient's program must really differ, else this compares a thing with itself.
  programs = [str(jax.make_jaxpr(jax.grad(lambda p, c=c: loss(p, c)))(params)) for c in (COMPUTE, other)]
  assert 'remat' not in programs[0]
  assert 'remat' in programs[1]
  value_and_grad = jax.jit(jax.value_and_grad(loss), static_argnums=1)
  expected, result = value_and_grad(params, COMPUTE), value_and_grad(params, other)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), result, expected)


def test_unknown_remat_policy_is_named():
  with pytest.raises(InputError, match=r"remat is 'some'.*dots"):
    abstract_params(CONFIG, dataclasses.replace(COMPUTE, remat='some'))


def test_parameter_and_compute_dtypes_are_separate(params):
  compute = ComputeConfig(dtype='bfloat16', param_dtype='float32')
  tree = abstract_params(CONFIG, compute)
  assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype('float32')}
  half = abstract_params(CONFIG, ComputeConfig(dtype='float32', param_dtype='bfloat16'))
  assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype('bfloat16')}
  x = embeddings(1, 4)
  result = hidden(params, x, compute=compute)
  assert result.dtype == jnp.bfloat16
  np.testing.assert_allclose(result, hidden(params, x), atol=0.15)
  logits = Llama(LLAMA, compute).apply({'params': params}, result, method='logits')
  assert logits.dtype == jnp.float32


@pytest.mark.parametrize('rows', [1, 2, 5, 32])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize(('features', 'inputs'), [((40,), (192,)), ((5, 8), (192,)), ((40,), (3, 64))])
def test_a_kernel_that_lies_input_first_gives_the_same_product(rows, dtype, features, inputs):
  """Few rows take another path on CPU; bfloat16 accumulates in float32 on either."""
  linear = Linear(features, inputs, ComputeConfig(dtype=dtype), use_bias=False, out_dtype='float32')
  keys = jax.random.split(jax.random.key(0))
  # The shape of a decode step: one position.
  x, kernel = (jax.random.normal(key, shape) for key, shape in zip(keys, [(rows, 1, *inputs), (*features, *inputs)]))
  result = jax.jit(linear.apply)({'params': {'input_first': input_first(kernel, len(inputs))}}, x)
  assert result.dtype == jnp.float32
  np.testing.assert_allclose(result, linear.apply({'params': {'kernel': kernel}}, x), rtol=1e-5, atol=1e-4)
  rounded, matrix = (np.asarray(a.astype(dtype), np.float64).reshape(-1, 192) for a in (x, kernel))
  np.testing.assert_allclose(result.reshape(rows, 40), rounded @ matrix.T, rtol=1e-5, atol=1e-4)


def test_parameters_sampled_on_the_device_have_the_scales_of_those_on_the_host():
  # Every kind of layer; each shape is a program to compile.
  config = dataclasses.replace(CONFIG, vq=dataclasses.replace(CONFIG.vq, channel_multipliers=(1, 2)))
  abstract = flax.traverse_util.flatten_dict(abstract_params(config, COMPUTE), sep='/')
  shapes = {path: leaf.shape for path, leaf in abstract.items()}
  place = jax.sharding.SingleDeviceSharding(jax.devices()[1])
  dtypes = {path: 'bfloat16' if path.startswith('language_model/') else 'float32' for path in shapes}
  make = functools.partial(sample_on_devices, shapes, dtypes=dtypes, shardings=dict.fromkeys(shapes, place))
  first, again, other = (flax.traverse_util.flatten_dict(make(seed), sep='/') for seed in (0, 0, 1))
  assert {path: (leaf.shape, leaf.dtype.name, leaf.sharding) for path, leaf in first.items()} == {
    path: (shape, dtypes[path], place) for path, shape in shapes.items()
  }
  for path, leaf in first.items():
    values, std = np.asarray(leaf, np.float64), initial_std(path, leaf.shape)
    np.testing.assert_array_equal(leaf, again[path], err_msg=path)
    if std == 0:
      assert (values == path.endswith('/scale')).all(), path
    else:
      assert (values != np.asarray(other[path], np.float64)).any(), path
      np.testing.assert_allclose(values.std(), std, rtol=5 / values.size**0.5, err_msg=path)
      np.testing.assert_allclose(values.mean(), 0, atol=5 * std / values.size**0.5, err_msg=path)
  alike = [path for path in first if path.startswith('language_model/layers/mlp/') and path.endswith('kernel')]
  assert len({np.asarray(first[path], np.float32).sum() for path in alike}) == len(alike)


def test_kernels_in_int8_and_factors_sampled_on_the_device_have_the_scales_of_fresh_ones():
  module, kernel = 'language_model/layers/mlp/up', (2, 160, 64)
  shapes = adapted_shapes({f'{module}/kernel': kernel}, LoraConfig(rank=8, base_dtype='int8'))
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  dtypes = {path: 'int8' if path.endswith('int8') else 'float32' for path in shapes}
  leaves = sample_on_devices(shapes, 0, dtypes, dict.fromkeys(shapes, place))['language_model']['layers']['mlp']['up']
  assert leaves['int8'].dtype == 'int8'
  values = np.asarray(leaves['int8'], np.float64) * np.asarray(leaves['scale'])[..., None]
  np.testing.assert_allclose([values.std(), np.std(leaves['lora_a'])], 64**-0.5, rtol=0.1)
  assert not leaves['lora_b'].any()
  assert (leaves['lora_scale'] == 1).all()


def test_codes_are_the_same_whatever_the_compute_dtype():
  tree = initial_params(CONFIG, seed=1)['vq']
  pixels = jnp.tanh(jax.random.normal(jax.random.key(2), (2, CONFIG.vq.image_size, CONFIG.vq.image_size, 3)))
  codes = [
    jax.jit(lambda tree, compute=compute: VQ(CONFIG.vq, compute).apply({'params': tree}, pixels, method='encode'))(tree)
    for compute in (COMPUTE, ComputeConfig(dtype='bfloat16', vq_dtype='bfloat16'))
  ]
  np.testing.assert_array_equal(codes[0], codes[1])


def test_wrong_number_of_placeholders_shows():
  tree = initial_params(CONFIG, seed=0)
  P, size = CONFIG.vision_encoder.num_tokens, CONFIG.vision_encoder.image_size
  tokens = jnp.full((1, P + 1), CONFIG.image_token_id)
  embed = jax.jit(functools.partial(Janus(CONFIG).apply, method='embed_prompt'))
  result = embed({'params': tree}, tokens, jnp.zeros((1, size, size, 3)))
  assert np.isfinite(result[:, :P]).all()
  assert np.isnan(result[:, P]).all()


# Measured on transformers' classes; the Hub states the 1B's total too.
COUNTS = {
  'janus_pro_1b': {
    'vision_aligner': 6_295_552,
    'vq': 71_883_403,
    'gen_embed': 131_072,
    'gen_aligner': 4_214_784,
    'gen_head': 37_767_168,
    'language_model': 1_652_656_128,
    'vision_encoder': 316_283_904 - 12_595_200,  # without the pooling head that never runs
  },
  'janus_pro_7b': {
    'vision_aligner': 20_979_712,
    'vq': 71_883_403,
    'gen_embed': 131_072,
    'gen_aligner': 16_818_176,
    'gen_head': 83_906_560,
    'language_model': 6_910_365_696,
    'vision_encoder': 316_283_904 - 12_595_200,
  },
}
TOTALS = {'janus_pro_1b': 2_076_636_811, 'janus_pro_7b': 7_407_773_323, 'janus_1_3b': 2_076_636_811}


def counts(config: JanusConfig) -> dict[str, int]:
  tree = abstract_params(config, COMPUTE)
  return {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in tree.items()}


@pytest.mark.parametrize('preset', sorted(COUNTS))
def test_parameter_counts_per_part(preset):
  assert counts(PRESETS[preset]) == COUNTS[preset]


@pytest.mark.parametrize('preset', sorted(TOTALS))
def test_parameter_totals(preset):
  assert sum(counts(PRESETS[preset]).values()) == TOTALS[preset]


def test_a_shared_encoder_changes_no_parameter():
  assert abstract_params(dataclasses.replace(CONFIG, shared_encoder=True), COMPUTE) == abstract_params(CONFIG, COMPUTE)


@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize('preset', sorted(PRESETS))
def test_config_survives_json(preset, shared):
  config = dataclasses.replace(PRESETS[preset], shared_encoder=shared)
  assert from_dict(json.loads(json.dumps(config_to_dict(config)))) == config


@pytest.mark.parametrize(
  ('part', 'fields', 'message'),
  [
    ('vision_encoder', {'image_size': 33}, r'vision_encoder.image_size is 33: expected a multiple of 8'),
    ('vision_encoder', {'activation': 'relu'}, r"vision_encoder.activation is 'relu'"),
    ('language_model', {'num_kv_heads': 3}, r'num_heads is 4: expected a multiple of 3'),
    ('language_model', {'depth': 0}, r'language_model.depth is 0: expected more than 0'),
    ('vq', {'image_size': 36}, r'vq.image_size is 36: expected a multiple of 8'),
  ],
)
def test_sizes_that_do_not_fit_are_refused(part, fields, message):
  with pytest.raises(InputError, match=message):
    dataclasses.replace(CONFIG, **{part: dataclasses.replace(getattr(CONFIG, part), **fields)})


def test_unknown_config_field_is_named():
  values = config_to_dict(CONFIG)
  values['vq']['colour'] = 1
  with pytest.raises(InputError, match=r'vq.colour is unknown'):
    from_dict(values)


def test_every_parameter_gets_a_gradient():
  """No dead parameter: each one reaches one of the two losses (the VQ's through its own)."""
  tree = initial_params(CONFIG, seed=3)
  key = jax.random.key(4)
  pixels = jnp.tanh(jax.random.normal(key, (1, 32, 32, 3)))
  P = CONFIG.vision_encoder.num_tokens
  tokens = jnp.concatenate([jnp.array([[1, 2]]), jnp.full((1, P), CONFIG.image_token_id), jnp.array([[3, 4]])], axis=1)
  codes = jax.random.randint(key, (1, 16), 0, CONFIG.vq.codebook_size)

  def loss(tree):
    run = lambda *args, method: Janus(CONFIG).apply({'params': tree}, *args, method=method)  # noqa: E731
    x = jnp.concatenate([run(tokens, pixels, method='embed_prompt'), run(codes, method='embed_codes')], axis=1)
    h, _ = run(x, jnp.arange(x.shape[1])[None], method='hidden')
    logits = run(h, method='text_logits'), run(h, method='image_logits')
    vq = VQ(CONFIG.vq, COMPUTE).apply({'params': tree['vq']}, pixels)
    losses = [jnp.square(part).mean() for part in (*logits, vq.pixels - pixels)]
    return sum(losses) + vq.codebook_loss + vq.commitment_loss

  gradients = flax.traverse_util.flatten_dict(jax.jit(jax.grad(loss))(tree), sep='/')
  dead = [path for path, leaf in gradients.items() if not np.abs(leaf).max() > 0]
  # A bias before softmax shifts every score of a query alike; the gradient of a key's bias is zero up to rounding.
  assert not [path for path in dead if not path.endswith('/k/bias')]


@pytest.mark.parametrize('part', ['gen_head', 'language_model'])
def test_host_initialisation_has_the_scales_of_the_modules_own(part):
  from janus_jax.models.layers import Adaptor

  width = LLAMA.width
  modules = {
    'gen_head': (Adaptor(width, width, CONFIG.vq.codebook_size, COMPUTE), jnp.zeros((1, width))),
    'language_model': (Llama(LLAMA, COMPUTE), jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 1), jnp.int32)),
  }
  module, *inputs = modules[part]
  theirs = flax.traverse_util.flatten_dict(jax.jit(module.init)(jax.random.key(0), *inputs)['params'], sep='/')
  ours = flax.traverse_util.flatten_dict(initial_params(CONFIG, seed=0)[part], sep='/')
  assert ours.keys() == theirs.keys()
  for path, leaf in theirs.items():
    assert leaf.shape == ours[path].shape
    std = initial_std(f'{part}/{path}', leaf.shape)
    np.testing.assert_allclose([np.std(leaf), np.std(ours[path])], std, rtol=0.15, atol=0)
    np.testing.assert_allclose(np.mean(ours[path]), np.mean(leaf), atol=max(8 * std / leaf.size**0.5, 1e-6))


def test_initial_values_depend_on_seed_and_path_only():
  first, again, other = (initial_params(CONFIG, seed)['gen_head'] for seed in (0, 0, 1))
  jax.tree.map(np.testing.assert_array_equal, first, again)
  assert (first['fc1']['kernel'] != other['fc1']['kernel']).all()
  assert (first['fc1']['kernel'] != first['fc2']['kernel'][:64]).all()
