"""What a Janus checkpoint directory has beside its weights, made small: tokenizers, tokenizer files, tensor shapes.

Token strings are spelled out here as the released files have them, not imported, so that tests compare against those.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence

import pytest

from janus_jax.models.config import PRESETS, JanusConfig

BOS = '<\uff5cbegin\u2581of\u2581sentence\uff5c>'
EOS = '<\uff5cend\u2581of\u2581sentence\uff5c>'
PAD = '<\uff5c\u2581pad\u2581\uff5c>'
BOI = '<begin_of_image>'
EOI = '<end_of_image>'
IMAGE = '<image_placeholder>'
USER = '<|User|>'
ASSISTANT = '<|Assistant|>'
JANUS_TOKENS = (PAD, BOI, EOI, IMAGE, USER, ASSISTANT)

_SENTENCES = (
  'You are a helpful language and vision assistant.',
  'How many red circles are there? There are three, and a blue square.',
  'Describe this image in detail.',
)


def make_tokenizer(special_tokens: Sequence[str]) -> bytes:
  """A byte-level BPE like DeepSeek-LLM's, trained on a few sentences, with `special_tokens` appended to its 300."""
  tokenizers = pytest.importorskip('tokenizers')
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.post_processor = tokenizers.processors.ByteLevel(trim_offsets=True)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=300, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
  )
  tokenizer.train_from_iterator(_SENTENCES, trainer)
  tokenizer.add_special_tokens(list(special_tokens))
  return tokenizer.to_str(pretty=True).encode()


def dump(values: Mapping) -> bytes:
  return json.dumps(values, indent=2).encode()


def deepseek_tokenizer_files(
  tokenizer_json: bytes, config: JanusConfig, sft_format: str = 'deepseek'
) -> dict[str, bytes]:
  """The files of a DeepSeek release, sizes as in `config`."""
  return {
    'tokenizer.json': tokenizer_json,
    'tokenizer_config.json': dump(
      {
        'add_bos_token': True,
        'add_eos_token': False,
        'bos_token': BOS,
        'eos_token': EOS,
        'model_max_length': 16384,
        'pad_token': None,
        'tokenizer_class': 'LlamaTokenizer',
        'unk_token': None,
      }
    ),
    'special_tokens_map.json': dump(
      {'additional_special_tokens': [IMAGE, USER, ASSISTANT], 'bos_token': BOS, 'eos_token': EOS, 'pad_token': PAD}
    ),
    'preprocessor_config.json': dump(
      {
        'background_color': [127, 127, 127],
        'do_normalize': True,
        'image_mean': [0.5, 0.5, 0.5],
        'image_processor_type': 'VLMImageProcessor',
        'image_size': config.vision_encoder.image_size,
        'image_std': [0.5, 0.5, 0.5],
        'min_size': 2,
        'processor_class': 'VLChatProcessor',
        'rescale_factor': 0.00392156862745098,
      }
    ),
    'processor_config.json': dump(
      {
        'add_special_token': False,
        'ignore_id': -100,
        'image_tag': IMAGE,
        'mask_prompt': True,
        'num_image_tokens': config.vision_encoder.num_tokens,
        'processor_class': 'VLChatProcessor',
        'sft_format': sft_format,
      }
    ),
  }


def write_files(directory: pathlib.Path, files: Mapping[str, bytes]) -> str:
  directory.mkdir(parents=True, exist_ok=True)
  for name, content in files.items():
    (directory / name).write_bytes(content)
  return str(directory)


def deepseek_shapes(config: JanusConfig) -> dict[str, tuple[int, ...]]:
  """Names and shapes of those tensors of a DeepSeek checkpoint that tell sizes."""
  vision, vq, llama = config.vision_encoder, config.vq, config.language_model
  shapes = {
    'vision_model.vision_tower.pos_embed': (1, vision.num_tokens, vision.width),
    'vision_model.vision_tower.patch_embed.proj.weight': (vision.width, 3, vision.patch_size, vision.patch_size),
    'gen_vision_model.encoder.conv_in.weight': (vq.base_channels, 3, 3, 3),
    'gen_vision_model.encoder.conv_out.weight': (
      vq.z_channels,
      vq.base_channels * vq.channel_multipliers[-1],
      3,
      3,
    ),
    'gen_vision_model.quantize.embedding.weight': (vq.codebook_size, vq.code_dim),
    'gen_vision_model.quantize.codebook_used': (65536,),
    'language_model.model.embed_tokens.weight': (llama.vocab_size, llama.width),
    'language_model.lm_head.weight': (llama.vocab_size, llama.width),
  }
  for i in range(vision.depth):
    shapes[f'vision_model.vision_tower.blocks.{i}.mlp.fc1.weight'] = (vision.mlp_dim, vision.width)
  channels = vq.base_channels * vq.channel_multipliers[-1]
  for level, multiplier in enumerate(reversed(vq.channel_multipliers)):
    for block in range(vq.num_res_blocks + 1):
      previous, channels = channels, vq.base_channels * multiplier
      name = f'gen_vision_model.decoder.conv_blocks.{level}.res.{block}.conv1.weight'
      shapes[name] = (channels, previous, 3, 3)
  for i in range(llama.depth):
    layer = f'language_model.model.layers.{i}.'
    shapes[f'{layer}self_attn.q_proj.weight'] = (llama.num_heads * llama.head_dim, llama.width)
    shapes[f'{layer}self_attn.k_proj.weight'] = (llama.num_kv_heads * llama.head_dim, llama.width)
    shapes[f'{layer}mlp.gate_proj.weight'] = (llama.mlp_dim, llama.width)
  return shapes


# language_config as the released files write it.
RELEASED_LANGUAGE = {
  'janus_pro_1b': {
    'hidden_size': 2048,
    'intermediate_size': 5632,
    'max_position_embeddings': 16384,
    'model_type': 'llama',
    'num_attention_heads': 16,
    'num_hidden_layers': 24,
    'num_key_value_heads': 16,
    'torch_dtype': 'bfloat16',
    'vocab_size': 102400,
  },
  'janus_pro_7b': {
    'max_position_embeddings': 16384,
    'model_type': 'llama',
    'num_hidden_layers': 30,
    'torch_dtype': 'bfloat16',
    'vocab_size': 102400,
  },
}


def released_config(preset: str) -> dict:
  """The released DeepSeek config.json."""
  width = PRESETS[preset].language_model.width

  def aligner(model_type: str, input_dim: int) -> dict:
    params = {'depth': 2, 'input_dim': input_dim, 'n_embed': width, 'projector_type': 'mlp_gelu'}
    return {'cls': 'MlpProjector', 'model_type': model_type, 'params': params}

  return {
    'architectures': ['MultiModalityCausalLM'],
    'model_type': 'multi_modality',
    'torch_dtype': 'bfloat16',
    'vision_config': {
      'cls': 'CLIPVisionTower',
      'model_type': 'vision',
      'params': {
        'image_size': 384,
        'model_name': 'siglip_large_patch16_384',
        'select_feature': 'same',
        'select_layer': -1,
      },
    },
    'aligner_config': aligner('aligner', 1024),
    'gen_vision_config': {
      'cls': 'VQ-16',
      'model_type': 'gen_vision',
      'params': {'image_token_size': 16384, 'n_embed': 8},
    },
    'gen_aligner_config': aligner('gen_aligner', 8),
    'gen_head_config': {
      'cls': 'vision_head',
      'model_type': 'gen_head',
      'params': {'image_token_embed': width, 'image_token_size': 16384, 'n_embed': width},
    },
    'language_config': RELEASED_LANGUAGE[preset],
  }
