"""Whole checkpoint directories, made by transformers and by hand, for tests of loading and writing."""

import copy
import dataclasses
import json
import pathlib
import re

import numpy as np
import reference
import safetensors.torch
import torch
from conversion.fixtures import BOS, EOS, JANUS_TOKENS, deepseek_tokenizer_files, make_tokenizer, write_files

from janus_jax.conversion.deepseek_config import janus_to_deepseek
from janus_jax.conversion.special_tokens import special_token_ids
from janus_jax.conversion.tokenizer_files import tokenizer_files_for
from janus_jax.models.config import PRESETS, JanusConfig

TOKENIZER = make_tokenizer((BOS, EOS, *JANUS_TOKENS))
TINY = dataclasses.replace(PRESETS['test_tiny'], image_token_id=special_token_ids(TOKENIZER).image_placeholder)

# transformers' names as regular expressions over DeepSeek's, as in transformers' conversion script.
RENAMES = [
  (r'^vision_model\.vision_tower\.pos_embed$', 'model.vision_model.embeddings.position_embedding.weight'),
  (r'^vision_model\.vision_tower\.patch_embed\.proj\.', 'model.vision_model.embeddings.patch_embedding.'),
  (r'^vision_model\.vision_tower\.norm\.', 'model.vision_model.post_layernorm.'),
  (r'^vision_model\.vision_tower\.blocks\.(\d+)\.norm(\d)\.', r'model.vision_model.encoder.layers.\1.layer_norm\2.'),
  (
    r'^vision_model\.vision_tower\.blocks\.(\d+)\.attn\.proj\.',
    r'model.vision_model.encoder.layers.\1.self_attn.projection_layer.',
  ),
  (r'^vision_model\.vision_tower\.blocks\.(\d+)\.', r'model.vision_model.encoder.layers.\1.'),
  (r'^aligner\.layers\.0\.', 'model.aligner.fc1.'),
  (r'^aligner\.layers\.2\.', 'model.aligner.hidden_layers.0.'),
  (r'^gen_aligner\.layers\.0\.', 'model.generation_aligner.fc1.'),
  (r'^gen_aligner\.layers\.2\.', 'model.generation_aligner.hidden_layers.0.'),
  (r'^gen_head\.output_mlp_projector\.', 'model.generation_head.proj_out.'),
  (r'^gen_head\.vision_head\.', 'model.generation_head.vision_head.'),
  (r'^gen_embed\.', 'model.generation_embeddings.'),
  (r'^gen_vision_model\.', 'model.vqmodel.'),
  (r'encoder\.conv_blocks\.', 'encoder.down.'),
  (r'decoder\.conv_blocks\.', 'decoder.up.'),
  (r'\.res\.', '.block.'),
  (r'\.mid\.0\.', '.mid.block_1.'),
  (r'\.mid\.1\.', '.mid.attn_1.'),
  (r'\.mid\.2\.', '.mid.block_2.'),
  (r'^language_model\.model\.', 'model.language_model.'),
  (r'^language_model\.lm_head\.', 'lm_head.'),
]


def huggingface_from_deepseek(state: dict[str, 'torch.Tensor']) -> dict[str, 'torch.Tensor']:
  """transformers' state dict made of DeepSeek's, by transformers' own rules; an independent check of our table."""
  result = {}
  for name, tensor in state.items():
    if 'attn_pool' in name or 'codebook_used' in name:
      continue
    new = name
    for pattern, replacement in RENAMES:
      new = re.sub(pattern, replacement, new)
    if '.attn.qkv.' in new:
      for part, third in zip('qkv', tensor.chunk(3)):
        result[new.replace('attn.qkv', f'self_attn.{part}_proj')] = third.contiguous()
    else:
      result[new] = tensor[0] if name.endswith('pos_embed') else tensor
  return result


def deepseek_from_huggingface(state: dict[str, 'torch.Tensor'], config: JanusConfig) -> dict[str, 'torch.Tensor']:
  """DeepSeek's state dict holding the same values, with a pooling head and a usage buffer of random values."""
  from janus_jax.conversion.mapping import torch_names
  from janus_jax.conversion.translate import parameter_shapes

  generator = torch.Generator().manual_seed(7)
  names = torch_names(parameter_shapes(config), 'deepseek')
  result = {}
  for name in names:
    probe = {name: torch.zeros(3, 1)}
    sources = list(huggingface_from_deepseek(probe))
    tensors = [state[source] for source in sources]
    tensor = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
    result[name] = tensor[None].clone() if name.endswith('pos_embed') else tensor.clone()
  D, F = config.vision_encoder.width, config.vision_encoder.mlp_dim
  pool = 'vision_model.vision_tower.attn_pool.'
  shapes = {'latent': (1, 1, D), 'norm.weight': (D,), 'norm.bias': (D,)}
  for module, out, inputs in (('q', D, D), ('kv', 2 * D, D), ('proj', D, D), ('mlp.fc1', F, D), ('mlp.fc2', D, F)):
    shapes |= {f'{module}.weight': (out, inputs), f'{module}.bias': (out,)}
  dtype = next(iter(state.values())).dtype
  for name, shape in shapes.items():
    result[pool + name] = torch.randn(shape, generator=generator).to(dtype)
  result['gen_vision_model.quantize.codebook_used'] = torch.rand(65536, generator=generator)
  return result


def huggingface_directory(
  directory: pathlib.Path, dtype: str = 'float32', config: JanusConfig = TINY, **save_options
) -> str:
  """What `save_pretrained` of transformers writes, with tokenizer and processor files."""
  # A copy: casting also rounds the rotary frequencies, which casting back does not restore.
  model = copy.deepcopy(reference.huggingface_model(config)).to(getattr(torch, dtype))
  model.save_pretrained(directory, **save_options)
  files = tokenizer_files_for('huggingface', {'tokenizer.json': TOKENIZER}, config)
  return write_files(directory, files)


def deepseek_directory(directory: pathlib.Path, dtype: str = 'bfloat16', shards: int = 2) -> str:
  """A release as DeepSeek's: pickled .bin files (with an index where there are several), sparse configs."""
  state = {
    name: tensor.to(getattr(torch, dtype)) for name, tensor in reference.huggingface_model(TINY).state_dict().items()
  }
  state = deepseek_from_huggingface(state, TINY)
  path = write_files(directory, deepseek_tokenizer_files(TOKENIZER, TINY))
  (directory / 'config.json').write_text(json.dumps(janus_to_deepseek(TINY, dtype)))
  if shards == 1:
    torch.save(state, directory / 'pytorch_model.bin')
    return path
  weight_map = {}
  for shard in range(shards):
    file = f'pytorch_model-{shard + 1:05}-of-{shards:05}.bin'
    part = dict(list(state.items())[shard::shards])
    torch.save(part, directory / file)
    weight_map |= dict.fromkeys(part, file)
  (directory / 'pytorch_model.bin.index.json').write_text(json.dumps({'metadata': {}, 'weight_map': weight_map}))
  return path


def state_dict(directory: str) -> dict[str, 'torch.Tensor']:
  """Every tensor of a PyTorch directory, read by the official packages."""
  state = {}
  for path in sorted(pathlib.Path(directory).iterdir()):
    if path.suffix == '.safetensors' and path.name.startswith('model'):
      state |= safetensors.torch.load_file(path)
    elif path.suffix == '.bin':
      state |= torch.load(path, weights_only=True)
  return state


def assert_same_bits(first: dict[str, 'torch.Tensor'], second: dict[str, 'torch.Tensor']) -> None:
  assert first.keys() == second.keys()
  for name, tensor in first.items():
    other = second[name]
    assert tensor.dtype == other.dtype, name
    assert tensor.shape == other.shape, name
    bits = [np.frombuffer(t.contiguous().view(torch.uint8).numpy().tobytes(), np.uint8) for t in (tensor, other)]
    assert (bits[0] == bits[1]).all(), name
