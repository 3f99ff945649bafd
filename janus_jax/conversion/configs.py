"""The architecture as the two PyTorch layouts write it in `config.json`: pure functions between dicts and dataclasses.

`huggingface` is transformers' `JanusConfig` (its `configuration_janus.py` and `configuration_llama.py` are the source
of the field names and of the defaults that a file may leave out). `deepseek` is `MultiModalityConfig` of DeepSeek's
own repository (`janus/models/modeling_vlm.py`), which says little about sizes: those are read off the tensors.

Neither reader looks at `tie_word_embeddings`. transformers' JanusConfig defaults to tied although every released
checkpoint has an `lm_head` of its own, so only the weights can say: the loader takes `lm_head` from them.
Dropout rates and initializer ranges are not read either: they do not change what the weights mean.
"""

import math
from collections.abc import Mapping
from typing import Any

from janus_jax.conversion.config_section import ConfigSection
from janus_jax.conversion.deepseek_config import (
  Shapes,
  check_adaptors,
  llama_from_deepseek,
  siglip_from_deepseek,
  tower_params,
  vq_from_deepseek,
)
from janus_jax.conversion.llama_config import llama_fields, read_llama, token_fields
from janus_jax.conversion.special_tokens import SpecialTokens
from janus_jax.errors import InputError
from janus_jax.models.config import JanusConfig, LlamaConfig, SiglipConfig, VQConfig


def huggingface_to_janus(config: Mapping[str, Any], source: str) -> JanusConfig:
  """Reads transformers' `config.json`.

  Args:
    config: the parsed file. Absent fields have the defaults of transformers' config classes.
    source: name of the file, for error messages.

  Raises:
    InputError: another model's config, a setting that Janus does not have, or sizes that do not fit each other.
  """
  root = ConfigSection(config, source)
  root.require('model_type', 'janus')
  vision_encoder = _siglip_from_huggingface(root.section('vision_config'))
  language_model = read_llama(root.section('text_config'))
  vq = _vq_from_huggingface(root.section('vq_config'), vision_encoder.grid)
  for section, field in (
    (root.section('vision_config'), 'projection_dim'),
    (root.section('vq_config'), 'projection_dim'),
    (root.section('vq_config'), 'image_token_embed_dim'),
  ):
    section.require(field, language_model.width, default=2048)
  return _janus(source, vision_encoder, vq, language_model, root.integer('image_token_id', 100581))


def janus_to_huggingface(
  config: JanusConfig, dtype: str, special_tokens: SpecialTokens | None = None
) -> dict[str, Any]:
  """Writes the `config.json` that `JanusForConditionalGeneration.from_pretrained` accepts.

  Args:
    config: the architecture.
    dtype: what the weights beside it are stored in ("bfloat16").
    special_tokens: where given, the decoder's begin, end and pad ids (otherwise null).

  Raises:
    InputError: transformers' classes cannot express this architecture.
  """
  _check_two_encoders(config)
  vision, vq, llama = config.vision_encoder, config.vq, config.language_model
  if vq.grid != vision.grid:
    raise InputError(
      f'vq.image_size gives a grid of {vq.grid} x {vq.grid} codes: the huggingface layout can only express the grid '
      f'of the vision tower, expected {vision.grid} x {vision.grid} (vision_encoder.image_size // patch_size)'
    )
  if vision.activation != 'gelu':
    raise InputError(
      f'vision_encoder.activation is {vision.activation!r}: the huggingface layout has one activation for tower and '
      "adaptor, and the adaptor's is 'gelu'"
    )
  return {
    'architectures': ['JanusForConditionalGeneration'],
    'dtype': dtype,
    'image_token_id': config.image_token_id,
    'model_type': 'janus',
    'text_config': llama_fields(llama) | {'dtype': dtype} | token_fields(special_tokens),
    # transformers' default is True, which would replace the trained lm_head by the token table.
    'tie_word_embeddings': False,
    'vision_config': {
      'attention_bias': True,
      'depth': 2,
      'dtype': dtype,
      'hidden_act': 'gelu',
      'hidden_size': vision.width,
      'image_size': vision.image_size,
      'layer_norm_eps': vision.norm_eps,
      'mlp_ratio': _mlp_ratio(vision.width, vision.mlp_dim),
      'model_type': 'janus_vision_model',
      'num_attention_heads': vision.num_heads,
      'num_channels': 3,
      'num_hidden_layers': vision.depth,
      'num_image_tokens': vision.num_tokens,
      'patch_size': vision.patch_size,
      'projection_dim': llama.width,
      'use_qk_norm': False,
    },
    'vq_config': {
      'base_channels': vq.base_channels,
      'channel_multiplier': list(vq.channel_multipliers),
      'double_latent': False,
      'dtype': dtype,
      'embed_dim': vq.code_dim,
      'hidden_act': 'gelu',
      'image_token_embed_dim': llama.width,
      'in_channels': 3,
      'latent_channels': vq.z_channels,
      'model_type': 'janus_vqgan',
      'num_embeddings': vq.codebook_size,
      'num_hidden_layers': 2,
      'num_patches': vq.grid,
      'num_res_blocks': vq.num_res_blocks,
      'out_channels': 3,
      'projection_dim': llama.width,
    },
  }


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
  language_model = llama_from_deepseek(root.section('language_config'), shapes)
  vision_encoder = siglip_from_deepseek(root.section('vision_config'), shapes)
  vq = vq_from_deepseek(root.section('gen_vision_config'), shapes, vision_encoder.grid)
  check_adaptors(root, vision_encoder.width, vq, language_model.width)
  return _janus(source, vision_encoder, vq, language_model, image_token_id)


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
  _check_two_encoders(config)
  vision, vq, width = config.vision_encoder, config.vq, config.language_model.width

  def part(model_type: str, cls: str, params: dict[str, Any]) -> dict[str, Any]:
    return {'cls': cls, 'model_type': model_type, 'params': params}

  def adaptor(model_type: str, input_dim: int) -> dict[str, Any]:
    params = {'depth': 2, 'input_dim': input_dim, 'n_embed': width, 'projector_type': 'mlp_gelu'}
    return part(model_type, 'MlpProjector', params)

  codes = {'image_token_size': vq.codebook_size, 'n_embed': vq.code_dim}
  if vq.grid != vision.grid:
    codes['image_size'] = vq.image_size
  return {
    'aligner_config': adaptor('aligner', vision.width),
    'architectures': ['MultiModalityCausalLM'],
    'gen_aligner_config': adaptor('gen_aligner', vq.code_dim),
    'gen_head_config': part(
      'gen_head',
      'vision_head',
      {'image_token_embed': width, 'image_token_size': vq.codebook_size, 'n_embed': width},
    ),
    'gen_vision_config': part('gen_vision', 'VQ-16', codes),
    # For our own reader of an export without a tokenizer; DeepSeek's code asks the tokenizer.
    'image_token_id': config.image_token_id,
    'language_config': llama_fields(config.language_model) | {'torch_dtype': dtype},
    'model_type': 'multi_modality',
    'torch_dtype': dtype,
    'vision_config': part('vision', 'CLIPVisionTower', tower_params(vision)),
  }


def _check_two_encoders(config: JanusConfig) -> None:
  if config.shared_encoder:
    raise InputError(
      'shared_encoder is True: PyTorch layouts can only say that understanding has an encoder of its own'
    )


def _janus(
  source: str, vision_encoder: SiglipConfig, vq: VQConfig, language_model: LlamaConfig, image_token_id: int
) -> JanusConfig:
  try:
    return JanusConfig(vision_encoder, vq, language_model, image_token_id)
  except InputError as error:  # It names our field; the reader also needs the file.
    raise InputError(f'{source}: {error}') from None


def _siglip_from_huggingface(vision: ConfigSection) -> SiglipConfig:
  for field, expected, default in (
    ('model_type', 'janus_vision_model', 'janus_vision_model'),
    ('attention_bias', True, True),
    ('use_qk_norm', False, False),
    ('num_channels', 3, 3),
    ('depth', 2, 2),  # Layers of the understanding adaptor.
    ('hidden_act', 'gelu', 'gelu'),  # Of the tower and of the adaptor alike; ours always has exact GELU.
  ):
    vision.require(field, expected, default)
  width = vision.integer('hidden_size', 1024)
  return SiglipConfig(
    image_size=vision.integer('image_size', 384),
    patch_size=vision.integer('patch_size', 16),
    width=width,
    mlp_dim=int(width * vision.number('mlp_ratio', 4.0)),  # As transformers rounds it: down.
    depth=vision.integer('num_hidden_layers', 24),
    num_heads=vision.integer('num_attention_heads', 16),
    norm_eps=vision.number('layer_norm_eps', 1e-6),
  )


def _mlp_ratio(width: int, mlp_dim: int) -> float:
  """The ratio for which `int(width * ratio)` is `mlp_dim` (896 * (61 / 896) is 60.99...)."""
  ratio = mlp_dim / width
  return ratio if int(width * ratio) == mlp_dim else math.nextafter(ratio, math.inf)


def _vq_from_huggingface(vq: ConfigSection, grid: int) -> VQConfig:
  """`grid` is the vision tower's: transformers overwrites `num_patches` with it."""
  for field, expected, default in (
    ('model_type', 'janus_vqgan', 'janus_vqgan'),
    ('double_latent', False, False),
    ('in_channels', 3, 3),
    ('out_channels', 3, 3),
    ('num_hidden_layers', 2, 2),  # Layers of the generation adaptor.
    ('hidden_act', 'gelu', 'gelu'),  # Of the generation adaptor and the image head.
  ):
    vq.require(field, expected, default)
  multipliers = vq.integers('channel_multiplier', (1, 1, 2, 2, 4))
  return VQConfig(
    image_size=grid * 2 ** (len(multipliers) - 1),
    codebook_size=vq.integer('num_embeddings', 16384),
    code_dim=vq.integer('embed_dim', 8),
    z_channels=vq.integer('latent_channels', 256),
    base_channels=vq.integer('base_channels', 128),
    channel_multipliers=multipliers,
    num_res_blocks=vq.integer('num_res_blocks', 2),
  )
