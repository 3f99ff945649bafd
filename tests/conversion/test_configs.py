"""`config.json` of both PyTorch layouts: round trips, defaults, and what is refused."""

import copy
import dataclasses
import json
import random

import pytest
from conversion.fixtures import deepseek_shapes, released_config

from janus_jax.conversion.configs import huggingface_to_janus, janus_to_huggingface
from janus_jax.conversion.deepseek_config import deepseek_to_janus, janus_to_deepseek
from janus_jax.conversion.special_tokens import SpecialTokens
from janus_jax.errors import InputError
from janus_jax.models.config import PRESETS, JanusConfig, LlamaConfig, SiglipConfig, VQConfig


def random_config(rng: random.Random, same_grid: bool) -> JanusConfig:
  """Any valid sizes; with `same_grid`, a VQ whose grid is the vision tower's."""
  grid, heads = rng.randint(1, 9), rng.randint(1, 7)
  patch = rng.choice((4, 7, 14, 16))
  vision = SiglipConfig(
    image_size=grid * patch,
    patch_size=patch,
    width=heads * rng.choice((8, 24, 72)),
    mlp_dim=rng.randint(1, 9999),
    depth=rng.randint(1, 5),
    num_heads=heads,
    norm_eps=rng.choice((1e-5, 1e-6)),
    activation='gelu' if same_grid else rng.choice(('gelu', 'gelu_tanh')),  # As transformers can express.
  )
  multipliers = tuple(rng.randint(1, 4) for _ in range(rng.randint(1, 5)))
  vq = VQConfig(
    image_size=(grid if same_grid else rng.randint(1, 9)) * 2 ** (len(multipliers) - 1),
    codebook_size=rng.randint(1, 999),
    code_dim=rng.randint(1, 16),
    z_channels=rng.randint(1, 64),
    base_channels=32 * rng.randint(1, 3),
    channel_multipliers=multipliers,
    num_res_blocks=rng.randint(1 if same_grid else 0, 3),
  )
  kv_heads = rng.randint(1, 3)
  num_heads = kv_heads * rng.randint(1, 3)
  llama = LlamaConfig(
    vocab_size=rng.randint(10, 999),
    width=num_heads * rng.randint(1, 30),
    mlp_dim=rng.randint(1, 999),
    depth=rng.randint(1, 4),
    num_heads=num_heads,
    num_kv_heads=kv_heads,
    head_dim=2 * rng.randint(1, 32),
    rope_theta=rng.choice((100.0, 10000.0, 5e5)),
    norm_eps=rng.choice((1e-5, 1e-6)),
    max_positions=rng.randint(1, 9999),
  )
  return JanusConfig(vision, vq, llama, image_token_id=rng.randint(1, llama.vocab_size - 1))


def through_json(values: dict) -> dict:
  return json.loads(json.dumps(values))


def changed(values: dict, path: str, value: object) -> dict:
  """A copy with one field, named by a dotted path, set to another value."""
  values = copy.deepcopy(values)
  *parents, field = path.split('.')
  target = values
  for parent in parents:
    target = target[parent]
  target[field] = value
  return values


@pytest.mark.parametrize('preset', PRESETS)
def test_presets_survive_both_layouts(preset):
  config = PRESETS[preset]
  # All that transformers' config can say.
  if config.vq.grid == config.vision_encoder.grid and config.vq.num_res_blocks:
    assert huggingface_to_janus(through_json(janus_to_huggingface(config, 'bfloat16')), 'f') == config
  written = through_json(janus_to_deepseek(config, 'bfloat16'))
  assert deepseek_to_janus(written, deepseek_shapes(config), config.image_token_id, 'f') == config


@pytest.mark.parametrize('seed', range(40))
def test_random_sizes_survive_both_layouts(seed):
  rng = random.Random(seed)
  config = random_config(rng, same_grid=True)
  assert huggingface_to_janus(through_json(janus_to_huggingface(config, 'float32')), 'f') == config
  config = random_config(rng, same_grid=False)
  written = through_json(janus_to_deepseek(config, 'float32'))
  assert deepseek_to_janus(written, deepseek_shapes(config), config.image_token_id, 'f') == config


def test_every_mlp_width_survives_transformers_ratio():
  """896 * (61 / 896) is just below 61 in floating point, and transformers rounds down."""
  for width in (64, 104, 896, 1152):
    for mlp_dim in range(61, 4000, 18):
      vision = SiglipConfig(image_size=64, patch_size=16, width=width, mlp_dim=mlp_dim, depth=1, num_heads=1)
      config = dataclasses.replace(PRESETS['test_tiny'], vision_encoder=vision)
      ratio = janus_to_huggingface(config, 'float32')['vision_config']['mlp_ratio']
      assert int(width * ratio) == mlp_dim


@pytest.mark.parametrize('preset', ['janus_pro_1b', 'janus_pro_7b'])
def test_released_deepseek_config(preset):
  """The 7B's sparse language_config means LlamaConfig's defaults."""
  config = PRESETS[preset]
  assert deepseek_to_janus(released_config(preset), deepseek_shapes(config), config.image_token_id, 'f') == config


@pytest.mark.parametrize('preset', ['janus_pro_1b', 'janus_pro_7b'])
def test_deepseek_export_has_the_fields_of_the_release(preset):
  def contains(part: object, whole: object) -> bool:
    if isinstance(part, dict):
      return all(field in whole and contains(value, whole[field]) for field, value in part.items())
    return part == whole

  written = janus_to_deepseek(PRESETS[preset], 'bfloat16')
  assert contains(released_config(preset), written)
  assert written['vision_config'] == released_config(preset)['vision_config']  # Nothing that the code must ignore.
  assert written['gen_vision_config'] == released_config(preset)['gen_vision_config']


def test_sizes_absent_from_a_deepseek_config_are_read_off_the_tensors():
  config = random_config(random.Random(0), same_grid=True)
  written = janus_to_deepseek(config, 'float32')
  del written['vision_config']['params']['image_size']
  for field in ('vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_key_value_heads'):
    del written['language_config'][field]
  written['gen_vision_config']['params'] = {}
  for part in ('aligner_config', 'gen_aligner_config'):
    del written[part]['params']['input_dim'], written[part]['params']['n_embed']
  written['gen_head_config']['params'] = {}
  assert deepseek_to_janus(written, deepseek_shapes(config), config.image_token_id, 'f') == config


def test_heads_of_the_towers_in_deepseeks_table():
  """siglip_large: 1024 wide, 16 heads of 64. siglip_so400m: 1152 wide, 16 heads of 72. Others: heads of 64."""
  for width, heads in ((1024, 16), (1152, 16), (768, 12)):
    vision = SiglipConfig(image_size=28, patch_size=14, width=width, mlp_dim=8, depth=1, num_heads=heads)
    config = dataclasses.replace(
      PRESETS['test_tiny'], vision_encoder=vision, vq=dataclasses.replace(PRESETS['test_tiny'].vq, image_size=16)
    )
    written = janus_to_deepseek(config, 'float32')
    written['vision_config']['params'] = {'model_name': 'siglip_so400m_patch14_384', 'select_layer': -1}
    assert deepseek_to_janus(written, deepseek_shapes(config), 500, 'f') == config


@pytest.mark.parametrize(
  'sparse',
  [
    {'model_type': 'janus', 'text_config': {'hidden_size': 2048, 'vocab_size': 102400}},
    {
      'model_type': 'janus',
      'image_token_id': 7,
      'text_config': {'model_type': 'llama', 'hidden_size': 2048, 'num_attention_heads': 16, 'rope_theta': 500.0},
      'vision_config': {'image_size': 64, 'mlp_ratio': 3.5},
      'vq_config': {'channel_multiplier': [1, 2], 'num_embeddings': 99},
    },
  ],
)
def test_absent_fields_mean_transformers_defaults(sparse):
  """Read sparsely, and with every default that transformers' own classes fill in, a config is the same."""
  transformers = pytest.importorskip('transformers')
  filled = transformers.JanusConfig(**copy.deepcopy(sparse)).to_dict()
  assert huggingface_to_janus(sparse, 'f') == huggingface_to_janus(filled, 'f')


def test_transformers_reads_what_we_write(tmp_path):
  transformers = pytest.importorskip('transformers')
  torch = pytest.importorskip('torch')
  tiny = PRESETS['test_tiny']
  (tmp_path / 'config.json').write_text(json.dumps(janus_to_huggingface(tiny, 'bfloat16')))
  config = transformers.AutoConfig.from_pretrained(tmp_path)
  assert isinstance(config, transformers.JanusConfig)
  assert config.dtype == torch.bfloat16
  with torch.device('meta'):
    model = transformers.JanusForConditionalGeneration(config)
  weights = model.state_dict()
  assert model.lm_head.weight is not model.model.language_model.embed_tokens.weight  # Not tied.
  layer = weights['model.language_model.layers.2.self_attn.k_proj.weight']
  assert layer.shape == (tiny.language_model.num_kv_heads * tiny.language_model.head_dim, tiny.language_model.width)
  assert weights['model.vision_model.encoder.layers.1.mlp.fc1.weight'].shape == (128, 64)
  assert model.model.vqmodel.quantize.quant_state_dims == [tiny.vq.grid] * 2
  # Saved by transformers, which leaves defaults out, it is still the same config.
  config.save_pretrained(tmp_path / 'saved')
  assert huggingface_to_janus(json.loads((tmp_path / 'saved' / 'config.json').read_text()), 'f') == tiny


def test_token_ids_go_into_the_huggingface_config():
  tokens = SpecialTokens(1, 2, 3, 4, 5, 500, None, None)
  text = janus_to_huggingface(PRESETS['test_tiny'], 'float32', tokens)['text_config']
  assert (text['bos_token_id'], text['eos_token_id'], text['pad_token_id']) == (1, 2, 3)
  text = janus_to_huggingface(PRESETS['test_tiny'], 'float32')['text_config']
  # Absent, transformers would fill in Llama's 1 and 2 and stop answers there.
  assert [text[f'{name}_token_id'] for name in ('bos', 'eos', 'pad')] == [None, None, None]


@pytest.mark.parametrize(
  ('path', 'value'),
  [
    ('model_type', 'llava'),
    ('model_type', None),
    ('image_token_id', 512),
    ('image_token_id', '500'),
    ('text_config', [1]),
    ('text_config.model_type', 'qwen2'),
    ('text_config.hidden_act', 'gelu'),
    ('text_config.attention_bias', True),
    ('text_config.mlp_bias', True),
    ('text_config.num_attention_heads', 6),
    ('text_config.num_key_value_heads', 3),
    ('text_config.hidden_size', 64.0),
    ('text_config.rope_theta', -1),
    ('text_config.rope_scaling', {'type': 'linear', 'factor': 2.0}),
    ('text_config.rope_parameters', {'rope_type': 'yarn', 'factor': 2.0}),
    ('text_config.rope_parameters', {'rope_type': 'default', 'partial_rotary_factor': 0.5}),
    ('vision_config.use_qk_norm', True),
    ('vision_config.attention_bias', False),
    ('vision_config.hidden_act', 'relu'),
    ('vision_config.depth', 3),
    ('vision_config.num_channels', 1),
    ('vision_config.projection_dim', 128),
    ('vision_config.image_size', [32, 32]),
    ('vision_config.image_size', 33),
    ('vision_config.patch_size', 0),
    ('vision_config.num_attention_heads', 5),
    ('vq_config.double_latent', True),
    ('vq_config.hidden_act', 'silu'),
    ('vq_config.num_hidden_layers', 1),
    ('vq_config.projection_dim', 128),
    ('vq_config.image_token_embed_dim', 128),
    ('vq_config.channel_multiplier', []),
    ('vq_config.channel_multiplier', [1, '2']),
    ('vq_config.base_channels', 48),
  ],
)
def test_huggingface_configs_that_are_not_janus_are_refused(path, value):
  values = changed(janus_to_huggingface(PRESETS['test_tiny'], 'float32'), path, value)
  with pytest.raises(InputError) as error:
    huggingface_to_janus(values, 'some/config.json')
  message = str(error.value)
  assert message.startswith('some/config.json: ')
  assert 'expected' in message
  assert '\n' not in message


@pytest.mark.parametrize(
  ('path', 'value', 'named'),
  [
    ('model_type', 'llava', ['model_type', 'llava', 'multi_modality']),
    ('vision_config.cls', 'SamTower', ['vision_config.cls']),
    ('vision_config.params.model_name', 'sam_b', ['vision_config.params.model_name']),
    ('vision_config.params.select_layer', -2, ['vision_config.params.select_layer', '-2', '-1']),
    ('vision_config.params.pixel_mean', [0.5] * 3, ['vision_config.params.pixel_mean']),
    ('vision_config.params.image_size', 64, ['vision_config.params.image_size', '64', '32', 'pos_embed']),
    ('vision_config.params.num_heads', 5, ['num_heads', '5']),
    ('vision_config.params.activation', 'relu', ['activation', 'relu']),
    ('aligner_config.params.depth', 1, ['aligner_config.params.depth']),
    ('aligner_config.params.projector_type', 'linear', ['aligner_config.params.projector_type']),
    ('aligner_config.params.n_embed', 128, ['aligner_config.params.n_embed', '128', '64', 'embed_tokens']),
    ('gen_aligner_config.params.input_dim', 9, ['gen_aligner_config.params.input_dim', 'quantize.embedding']),
    ('gen_head_config.params.image_token_size', 99, ['gen_head_config.params.image_token_size', '99', '128']),
    ('gen_vision_config.cls', 'VQ-8', ['gen_vision_config.cls']),
    ('gen_vision_config.params.n_embed', 4, ['gen_vision_config.params.n_embed', 'quantize.embedding']),
    ('language_config.vocab_size', 99, ['language_config.vocab_size', '99', '512', 'embed_tokens']),
    ('language_config.hidden_size', 32, ['language_config.hidden_size', '32', '64', 'embed_tokens']),
    ('language_config.intermediate_size', 99, ['language_config.intermediate_size', '99', '160', 'gate_proj']),
    ('language_config.num_hidden_layers', 4, ['language_config.num_hidden_layers', '4', '3', 'layers']),
    ('language_config.num_key_value_heads', 4, ['language_config.num_key_value_heads', '4', '2', 'k_proj']),
    ('language_config.rope_scaling', {'type': 'linear'}, ['language_config.rope_scaling.type', 'linear']),
    ('language_config.head_dim', 12, ['k_proj', '32', '12']),
  ],
)
def test_deepseek_configs_that_contradict_are_refused(path, value, named):
  tiny = PRESETS['test_tiny']
  values = changed(janus_to_deepseek(tiny, 'float32'), path, value)
  with pytest.raises(InputError) as error:
    deepseek_to_janus(values, deepseek_shapes(tiny), 500, 'some/config.json')
  message = str(error.value)
  assert message.startswith('some/config.json: ')
  assert 'expected' in message
  assert '\n' not in message
  assert all(name in message for name in named), message


@pytest.mark.parametrize(
  ('tensor', 'shape'),
  [
    ('language_model.model.embed_tokens.weight', None),
    ('language_model.model.embed_tokens.weight', (512,)),
    ('language_model.model.layers.0.mlp.gate_proj.weight', None),
    ('language_model.model.layers.0.self_attn.k_proj.weight', None),
    ('vision_model.vision_tower.pos_embed', (1, 17, 64)),
    ('vision_model.vision_tower.blocks.0.mlp.fc1.weight', None),
    ('gen_vision_model.decoder.conv_blocks.2.res.0.conv1.weight', (33, 32, 3, 3)),
    ('gen_vision_model.decoder.conv_blocks.0.res.0.conv1.weight', None),
    ('gen_vision_model.quantize.embedding.weight', None),
  ],
)
def test_missing_or_odd_tensors_are_named(tensor, shape):
  tiny = PRESETS['test_tiny']
  shapes = {name: size for name, size in deepseek_shapes(tiny).items() if name != tensor}
  if shape is not None:
    shapes[tensor] = shape
  with pytest.raises(InputError, match=tensor):
    deepseek_to_janus(janus_to_deepseek(tiny, 'float32'), shapes, 500, 'config.json')


def test_a_grid_that_transformers_cannot_express_is_refused():
  config = dataclasses.replace(PRESETS['test_tiny'], vq=dataclasses.replace(PRESETS['test_tiny'].vq, image_size=64))
  with pytest.raises(InputError, match=r'vq\.image_size .* 8 x 8 .* expected 4 x 4'):
    janus_to_huggingface(config, 'float32')


@pytest.mark.parametrize('write', [janus_to_huggingface, janus_to_deepseek])
def test_a_shared_encoder_has_no_pytorch_layout(write):
  with pytest.raises(InputError, match=r'^shared_encoder is True: PyTorch layouts can only'):
    write(dataclasses.replace(PRESETS['test_tiny'], shared_encoder=True), 'float32')


def test_an_activation_that_transformers_cannot_express_is_refused():
  tower = dataclasses.replace(PRESETS['test_tiny'].vision_encoder, activation='gelu_tanh')
  config = dataclasses.replace(PRESETS['test_tiny'], vision_encoder=tower)
  with pytest.raises(InputError, match=r"activation is 'gelu_tanh'.* one activation for tower and adaptor"):
    janus_to_huggingface(config, 'float32')
  written = janus_to_huggingface(PRESETS['test_tiny'], 'float32')
  values = changed(written, 'vision_config.hidden_act', 'gelu_pytorch_tanh')
  with pytest.raises(InputError, match=r"vision_config\.hidden_act is 'gelu_pytorch_tanh': expected 'gelu'"):
    huggingface_to_janus(values, 'config.json')


def test_heads_that_transformers_refuses_are_refused_at_export():
  llama = dataclasses.replace(PRESETS['test_tiny'].language_model, num_heads=6)
  config = dataclasses.replace(PRESETS['test_tiny'], language_model=llama)
  for write in (janus_to_huggingface, janus_to_deepseek):
    with pytest.raises(InputError, match='num_heads is 6'):
      write(config, 'float32')
