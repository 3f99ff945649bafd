"""DeepSeek's `config.json`, `MultiModalityConfig` of its own repository (`janus/models/modeling_vlm.py`).

It says little about sizes: those are read off the tensors beside it.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from janus_jax.conversion.config_section import ConfigSection
from janus_jax.conversion.configs import check_two_encoders, llama_fields, read_llama, whole_config
from janus_jax.errors import InputError
from janus_jax.models.config import JanusConfig, LlamaConfig, SiglipConfig, VQConfig

Shapes = Mapping[str, tuple[int, ...]]

_TOWER = 'vision_model.vision_tower.'
_CODEBOOK = 'gen_vision_model.quantize.embedding.weight'
_EMBED = 'language_model.model.embed_tokens.weight'
_RELEASED_TOWER = SiglipConfig()
_RELEASED_TOWER_NAME = 'siglip_large_patch16_384'
_WIDE_TOWERS = {1152: 16}  # Width -> heads of the towers in DeepSeek's table whose heads are not 64 wide (so400m).


def deepseek_to_janus(config: Mapping[str, Any], shapes: Shapes, image_token_id: int, source: str) -> JanusConfig:
  """Reads DeepSeek's `config.json` together with the shapes of the tensors it belongs to.

  What shapes can tell is read off them, and must agree with what the file says. Heads, epsilons and the like are
  not on the tensors: absent ones have the defaults of DeepSeek's code, which for `language_config` are those of
  transformers' LlamaConfig.

  Args:
    config: the parsed file.
    shapes: DeepSeek's tensor names ("language_model.lm_head.weight") -> shapes.
    image_token_id: id of `<image_placeholder>`, from the tokenizer (the file does not hold it).
    source: name of the file, for error messages.

  Raises:
    InputError: another model's config, an unsupported setting, a missing tensor, or file and tensors disagree.
  """
  root = ConfigSection(config, source)
  root.require('model_type', 'multi_modality')
  language_model = _llama_from_deepseek(root.section('language_config'), shapes)
  vision_encoder = _siglip_from_deepseek(root.section('vision_config'), shapes)
  vq = vq_from_deepseek(root.section('gen_vision_config'), shapes, vision_encoder.grid)
  _check_adaptors(root, vision_encoder.width, vq, language_model.width)
  return whole_config(source, vision_encoder, vq, language_model, image_token_id)


def janus_to_deepseek(config: JanusConfig, dtype: str) -> dict[str, Any]:
  """Writes DeepSeek's `config.json`, for the released models with the fields of the released files.

  DeepSeek's code builds the released SigLIP and VQ only. For others, the params objects also carry what shapes do
  not tell (its code ignores such fields), so that `deepseek_to_janus` gives the same config back.

  Args:
    config: the architecture.
    dtype: what the weights beside it are stored in ("bfloat16").

  Raises:
    InputError: a model with one encoder.
  """
  check_two_encoders(config)
  vision, vq, width = config.vision_encoder, config.vq, config.language_model.width

  def part(model_type: str, cls: str, params: dict[str, Any]) -> dict[str, Any]:
    return {'cls': cls, 'model_type': model_type, 'params': params}

  def adaptor(model_type: str, input_dim: int) -> dict[str, Any]:
    params = {'depth': 2, 'input_dim': input_dim, 'n_embed': width, 'projector_type': 'mlp_gelu'}
    return part(model_type, 'MlpProjector', params)

  codes = {'image_token_size': vq.codebook_size, 'n_embed': vq.code_dim}
  if vq.grid != vision.grid:
    codes['image_size'] = vq.image_size
  head = {'image_token_embed': width, 'image_token_size': vq.codebook_size, 'n_embed': width}
  return {
    'aligner_config': adaptor('aligner', vision.width),
    'architectures': ['MultiModalityCausalLM'],
    'gen_aligner_config': adaptor('gen_aligner', vq.code_dim),
    'gen_head_config': part('gen_head', 'vision_head', head),
    'gen_vision_config': part('gen_vision', 'VQ-16', codes),
    # For our own reader of an export without a tokenizer; DeepSeek's code asks the tokenizer.
    'image_token_id': config.image_token_id,
    'language_config': {**llama_fields(config.language_model), 'torch_dtype': dtype},
    'model_type': 'multi_modality',
    'torch_dtype': dtype,
    'vision_config': part('vision', 'CLIPVisionTower', _tower_params(vision)),
  }


def _shape(shapes: Shapes, tensor: str, rank: int, source: str) -> tuple[int, ...]:
  shape = shapes.get(tensor)
  if shape is None:
    raise InputError(f'{source}: the checkpoint has no tensor {tensor}: expected the tensors of a DeepSeek Janus')
  if len(shape) != rank:
    raise InputError(f'{source}: tensor {tensor} has shape {tuple(shape)}: expected {rank} dimensions')
  return tuple(shape)


def _count(shapes: Shapes, prefix: str) -> int:
  """Number of modules PREFIX0, PREFIX1, ...: one more than the highest number."""
  numbers = [int(match[1]) for match in map(re.compile(rf'{re.escape(prefix)}(\d+)\.').match, shapes) if match]
  return max(numbers, default=-1) + 1


def _llama_from_deepseek(llama: ConfigSection, shapes: Shapes) -> LlamaConfig:
  """The decoder: sizes from the tensors, the rest as the file says or as LlamaConfig defaults."""
  layer = 'language_model.model.layers.0.'
  mlp, keys = f'{layer}mlp.gate_proj.weight', f'{layer}self_attn.k_proj.weight'
  source = llama.source
  vocab_size, width = _shape(shapes, _EMBED, 2, source)
  llama = llama.agreeing(
    vocab_size=(vocab_size, _EMBED),
    hidden_size=(width, _EMBED),
    intermediate_size=(_shape(shapes, mlp, 2, source)[0], mlp),
    num_hidden_layers=(_count(shapes, 'language_model.model.layers.'), f'{layer}*'),
  )
  config = read_llama(llama)
  key_rows = _shape(shapes, keys, 2, source)[0]
  if key_rows % config.head_dim:
    raise InputError(f'{source}: tensor {keys} has {key_rows} rows: expected a multiple of head_dim {config.head_dim}')
  return read_llama(llama.agreeing(num_key_value_heads=(key_rows // config.head_dim, keys)))


def _siglip_from_deepseek(vision: ConfigSection, shapes: Shapes) -> SiglipConfig:
  """The tower: sizes from the tensors; heads are 64 wide unless the file or DeepSeek's table says otherwise."""
  vision.require('cls', 'CLIPVisionTower')
  params, source = vision.section('params'), vision.source
  if not str(params.values.get('model_name') or _RELEASED_TOWER_NAME).startswith('siglip'):
    raise params.error('model_name', repr(_RELEASED_TOWER_NAME))
  # CLIPVisionTower's own default of select_layer is -2, but then the last block is not in the file: blocks decide.
  params.require('select_layer', -1, default=-1)
  for field in ('pixel_mean', 'pixel_std'):
    params.require(field, None)
  positions, mlp = f'{_TOWER}pos_embed', f'{_TOWER}blocks.0.mlp.fc1.weight'
  width, _, patch_size, _ = _shape(shapes, f'{_TOWER}patch_embed.proj.weight', 4, source)
  num_positions = _shape(shapes, positions, 3, source)[1]
  grid = math.isqrt(num_positions)
  if grid**2 != num_positions:
    raise InputError(f'{source}: tensor {positions} has {num_positions} positions: expected those of a square image')
  params.agreeing(image_size=(grid * patch_size, positions))
  return SiglipConfig(
    image_size=grid * patch_size,
    patch_size=patch_size,
    width=width,
    mlp_dim=_shape(shapes, mlp, 2, source)[0],
    depth=_count(shapes, f'{_TOWER}blocks.'),
    num_heads=params.integer('num_heads', _WIDE_TOWERS.get(width, max(1, width // 64))),
    norm_eps=params.number('norm_eps', 1e-6),
    activation=params.values.get('activation') or 'gelu',
  )


def vq_from_deepseek(gen_vision: ConfigSection, shapes: Shapes, grid: int) -> VQConfig:
  """`grid` is the vision tower's, which the VQ has too unless the file says otherwise."""
  gen_vision.require('cls', 'VQ-16')
  source, encoder, decoder = gen_vision.source, 'gen_vision_model.encoder.', 'gen_vision_model.decoder.'
  codebook_size, code_dim = _shape(shapes, _CODEBOOK, 2, source)
  params = gen_vision.section('params')
  params = params.agreeing(image_token_size=(codebook_size, _CODEBOOK), n_embed=(code_dim, _CODEBOOK))
  base_channels = _shape(shapes, f'{encoder}conv_in.weight', 4, source)[0]
  multipliers = []
  # Read off the decoder, which has a residual block in every level, the lowest first; the encoder may have none.
  num_levels = max(1, _count(shapes, f'{decoder}conv_blocks.'))  # Without any, the first one's absence is reported.
  for level in reversed(range(num_levels)):
    tensor = f'{decoder}conv_blocks.{level}.res.0.conv1.weight'
    channels = _shape(shapes, tensor, 4, source)[0]
    if channels % base_channels:
      raise InputError(f'{source}: tensor {tensor} has {channels} channels: expected a multiple of {base_channels}')
    multipliers.append(channels // base_channels)
  return VQConfig(
    image_size=params.integer('image_size', grid * 2 ** (len(multipliers) - 1)),
    codebook_size=codebook_size,
    code_dim=code_dim,
    z_channels=_shape(shapes, f'{encoder}conv_out.weight', 4, source)[0],
    base_channels=base_channels,
    channel_multipliers=tuple(multipliers),
    num_res_blocks=_count(shapes, f'{decoder}conv_blocks.0.res.') - 1,  # One more than the encoder has.
  )


def _check_adaptors(root: ConfigSection, tower_width: int, vq: VQConfig, width: int) -> None:
  """Raises InputError unless adaptors and image head are those of Janus and fit the parts they join."""
  for name, input_dim, tensor in (
    ('aligner_config', tower_width, f'{_TOWER}patch_embed.proj.weight'),
    ('gen_aligner_config', vq.code_dim, _CODEBOOK),
  ):
    adaptor = root.section(name)
    adaptor.require('cls', 'MlpProjector')
    params = adaptor.section('params')
    params.require('projector_type', 'mlp_gelu')
    params.require('depth', 2)
    params.agreeing(input_dim=(input_dim, tensor), n_embed=(width, _EMBED))
  head = root.section('gen_head_config')
  head.require('cls', 'vision_head')
  head.section('params').agreeing(
    n_embed=(width, _EMBED), image_token_embed=(width, _EMBED), image_token_size=(vq.codebook_size, _CODEBOOK)
  )


def _tower_params(vision: SiglipConfig) -> dict[str, Any]:
  """`vision_config.params`, with what shapes do not tell where the tower is not the released one."""
  params = {'image_size': vision.image_size, 'select_feature': 'same', 'select_layer': -1}
  if dataclasses.replace(vision, image_size=_RELEASED_TOWER.image_size) == _RELEASED_TOWER:
    return params | {'model_name': _RELEASED_TOWER_NAME}
  return params | {
    # Not a name that DeepSeek's code knows: it says so at once instead of building another tower.
    'model_name': f'siglip_width{vision.width}_depth{vision.depth}_patch{vision.patch_size}',
    'activation': vision.activation,
    'norm_eps': vision.norm_eps,
    'num_heads': vision.num_heads,
  }
