"""The architecture as transformers writes it in `config.json`: pure functions between dicts and dataclasses.

transformers' `configuration_janus.py` and `configuration_llama.py` are the source of the field names, and of the
defaults that a file may leave out. DeepSeek's `config.json` (`deepseek_config.py`) has the decoder in the same form.

Neither reader looks at `tie_word_embeddings`. transformers' JanusConfig defaults to tied although every released
checkpoint has an `lm_head` of its own, so only the weights can say: the loader takes `lm_head` from them.
Dropout rates and initializer ranges are not read either: they do not change what the weights mean.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from janus_jax.conversion.config_section import ConfigSection, written_section
from janus_jax.conversion.special_tokens import SpecialTokens
from janus_jax.errors import InputError
from janus_jax.models.config import JanusConfig, LlamaConfig, SiglipConfig, VQConfig

# Our fields -> transformers' names for them, and the fields that have one value in every Janus.
SIGLIP_NAMES = {
  'image_size': 'image_size',
  'patch_size': 'patch_size',
  'width': 'hidden_size',
  'depth': 'num_hidden_layers',
  'num_heads': 'num_attention_heads',
  'norm_eps': 'layer_norm_eps',
}
_SIGLIP_FIXED = {
  'model_type': 'janus_vision_model',
  'attention_bias': True,
  'use_qk_norm': False,
  'num_channels': 3,
  'depth': 2,  # Layers of the understanding adaptor.
  'hidden_act': 'gelu',  # The tower's and the adaptor's alike; ours always has exact GELU.
}
_VQ_NAMES = {
  'codebook_size': 'num_embeddings',
  'code_dim': 'embed_dim',
  'z_channels': 'latent_channels',
  'base_channels': 'base_channels',
  'channel_multipliers': 'channel_multiplier',
  'num_res_blocks': 'num_res_blocks',
}
_VQ_FIXED = {
  'model_type': 'janus_vqgan',
  'double_latent': False,
  'in_channels': 3,
  'out_channels': 3,
  'num_hidden_layers': 2,  # Layers of the generation adaptor.
  'hidden_act': 'gelu',  # The generation adaptor's and the image head's.
}
_LLAMA_NAMES = {
  'vocab_size': 'vocab_size',
  'width': 'hidden_size',
  'mlp_dim': 'intermediate_size',
  'depth': 'num_hidden_layers',
  'num_heads': 'num_attention_heads',
  'num_kv_heads': 'num_key_value_heads',
  'head_dim': 'head_dim',
  'norm_eps': 'rms_norm_eps',
  'max_positions': 'max_position_embeddings',
}
_LLAMA_FIXED = {'model_type': 'llama', 'hidden_act': 'silu', 'attention_bias': False, 'mlp_bias': False}
_LLAMA_DEFAULTS = LlamaConfig(vocab_size=32000, width=4096, mlp_dim=11008, depth=32, num_heads=32, max_positions=2048)


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
  vision, vq = root.section('vision_config'), root.section('vq_config')
  vision_encoder = _siglip_from_huggingface(vision)
  language_model = read_llama(root.section('text_config'))
  vq_config = _vq_from_huggingface(vq, vision_encoder.grid)
  for section, field in ((vision, 'projection_dim'), (vq, 'projection_dim'), (vq, 'image_token_embed_dim')):
    section.require(field, language_model.width, default=2048)
  return whole_config(source, vision_encoder, vq_config, language_model, root.integer('image_token_id', 100581))


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
  check_two_encoders(config)
  vision, vq, llama = config.vision_encoder, config.vq, config.language_model
  if vq.grid != vision.grid:
    raise InputError(
      f'vq.image_size gives a grid of {vq.grid} x {vq.grid} codes: the huggingface layout can only express the grid '
      f'of the vision tower, expected {vision.grid} x {vision.grid} (vision_encoder.image_size // patch_size)'
    )
  if not vq.num_res_blocks:
    raise InputError(
      'vq.num_res_blocks is 0: the huggingface layout can only express a VQ whose residual blocks change the number of '
      'channels, expected 1 or more'
    )
  if vision.activation != 'gelu':
    raise InputError(
      f'vision_encoder.activation is {vision.activation!r}: the huggingface layout has one activation for tower and '
      "adaptor, and the adaptor's is 'gelu'"
    )
  common = {'dtype': dtype, 'projection_dim': llama.width}
  vision_sizes = {'mlp_ratio': _mlp_ratio(vision.width, vision.mlp_dim), 'num_image_tokens': vision.num_tokens}
  vq_sizes = {'image_token_embed_dim': llama.width, 'num_patches': vq.grid}
  # Null, not absent: absent means Llama's own ids 1 and 2, at which transformers would stop an answer.
  token_ids = {f'{name}_token_id': getattr(special_tokens, name, None) for name in ('bos', 'eos', 'pad')}
  return {
    'architectures': ['JanusForConditionalGeneration'],
    'dtype': dtype,
    'image_token_id': config.image_token_id,
    'model_type': 'janus',
    'text_config': {**llama_fields(llama), 'dtype': dtype, **token_ids},
    # transformers' default is True, which would replace the trained lm_head by the token table.
    'tie_word_embeddings': False,
    'vision_config': written_section(vision, SIGLIP_NAMES, _SIGLIP_FIXED | common | vision_sizes),
    'vq_config': written_section(vq, _VQ_NAMES, _VQ_FIXED | common | vq_sizes),
  }


def read_llama(llama: ConfigSection) -> LlamaConfig:
  """Reads transformers' LlamaConfig, with its defaults."""
  llama.allow(_LLAMA_FIXED)
  width = llama.integer('hidden_size', _LLAMA_DEFAULTS.width)
  num_heads = llama.integer('num_attention_heads', _LLAMA_DEFAULTS.num_heads)
  if width % num_heads:
    raise llama.error('num_attention_heads', f'a divisor of {llama.name("hidden_size")} {width}')
  defaults = dataclasses.replace(_LLAMA_DEFAULTS, num_kv_heads=num_heads, head_dim=width // num_heads)
  # `rope_parameters.rope_theta` (transformers 5) or `rope_theta` (before); frequencies must not be rescaled.
  theta = llama.number('rope_theta', defaults.rope_theta)
  for rope in (llama.section('rope_scaling'), llama.section('rope_parameters')):
    rope.require('rope_type' if 'rope_type' in rope.values else 'type', 'default', default='default')
    rope.require('partial_rotary_factor', 1.0, default=1.0)
    theta = rope.number('rope_theta', theta)
  return LlamaConfig(**llama.fields(_LLAMA_NAMES, defaults), rope_theta=theta)


def llama_fields(llama: LlamaConfig) -> dict[str, Any]:
  """The decoder's object in a config file; InputError where its heads do not divide its width."""
  if llama.width % llama.num_heads:
    raise InputError(
      f'language_model.num_heads is {llama.num_heads}: the PyTorch layouts expect a divisor of width {llama.width}'
    )
  fixed = {
    **_LLAMA_FIXED,
    # transformers 5 reads the first, earlier ones the second.
    'rope_parameters': {'rope_theta': llama.rope_theta, 'rope_type': 'default'},
    'rope_theta': llama.rope_theta,
    'tie_word_embeddings': False,
  }
  return written_section(llama, _LLAMA_NAMES, fixed)


def check_two_encoders(config: JanusConfig) -> None:
  if config.shared_encoder:
    raise InputError(
      'shared_encoder is True: PyTorch layouts can only say that understanding has an encoder of its own'
    )


def whole_config(
  source: str, vision_encoder: SiglipConfig, vq: VQConfig, language_model: LlamaConfig, image_token_id: int
) -> JanusConfig:
  try:
    return JanusConfig(vision_encoder, vq, language_model, image_token_id)
  except InputError as error:  # It names our field; the reader also needs the file.
    raise InputError(f'{source}: {error}') from None


def _siglip_from_huggingface(vision: ConfigSection) -> SiglipConfig:
  vision.allow(_SIGLIP_FIXED)
  fields = vision.fields(SIGLIP_NAMES, SiglipConfig())
  mlp_dim = int(fields['width'] * vision.number('mlp_ratio', 4.0))  # As transformers rounds it: down.
  return SiglipConfig(**fields, mlp_dim=mlp_dim)


def _mlp_ratio(width: int, mlp_dim: int) -> float:
  """The ratio for which `int(width * ratio)` is `mlp_dim` (896 * (61 / 896) is 60.99...)."""
  ratio = mlp_dim / width
  return ratio if int(width * ratio) == mlp_dim else math.nextafter(ratio, math.inf)


def _vq_from_huggingface(vq: ConfigSection, grid: int) -> VQConfig:
  """`grid` is the vision tower's: transformers overwrites `num_patches` with it."""
  vq.allow(_VQ_FIXED)
  fields = vq.fields(_VQ_NAMES, VQConfig())
  return VQConfig(**fields, image_size=grid * 2 ** (len(fields['channel_multipliers']) - 1))
