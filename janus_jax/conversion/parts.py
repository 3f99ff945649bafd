"""Composes a new Janus from the pretrained parts a real run starts from (Janus paper section 4.1).

SigLIP becomes the understanding encoder, LlamaGen's VQ-16 the tokenizer, DeepSeek-LLM the decoder. Both adaptors, the
image head and `gen_embed` are new.
"""

import dataclasses
import logging
import os

import numpy as np

from janus_jax.conversion.buckets import local_file, local_files
from janus_jax.conversion.checkpoint import UNUSED_PREFIXES, Checkpoint, read_tensors, tie_head
from janus_jax.conversion.config_section import ConfigSection, read_json
from janus_jax.conversion.configs import SIGLIP_NAMES, read_llama
from janus_jax.conversion.deepseek_config import vq_from_deepseek
from janus_jax.conversion.hub import resolved
from janus_jax.conversion.lazy import Index, LazyArray
from janus_jax.conversion.recognition import check_is_checkpoint
from janus_jax.conversion.safetensors_files import read_safetensors
from janus_jax.conversion.special_tokens import SpecialTokens, extend_tokenizer, special_token_ids
from janus_jax.conversion.tokenizer_files import read_tokenizer_files
from janus_jax.conversion.torch_files import read_torch
from janus_jax.conversion.translate import parameter_shapes, params_from_tensors
from janus_jax.errors import InputError
from janus_jax.models.config import JanusConfig, LlamaConfig, SiglipConfig, VQConfig
from janus_jax.models.initialization import initial_value

GEN_EMBED_CHOICES = ('codebook', 'normal')
# Named as `sft_format` of processor_config.json: roles are the tokens <|User|> and <|Assistant|>, as in Janus-Pro, or
# the words User and Assistant, as in Janus-1.3B, whose tokenizer has no role tokens.
TEMPLATES = ('deepseek', 'deepseek_old')
VOCABULARY_MULTIPLE = 128  # A vocabulary that must grow grows to a multiple of this: divisible over devices.

_TOKEN_TABLES = ('language_model/embed_tokens/table', 'language_model/lm_head/kernel')
# Defaults of transformers' SiglipVisionConfig.
_SIGLIP_DEFAULTS = SiglipConfig(image_size=224, width=768, mlp_dim=3072, depth=12, num_heads=12)


def _part_shapes(config: JanusConfig, *parts: str) -> dict[str, tuple[int, ...]]:
  return {path: shape for path, shape in parameter_shapes(config).items() if path.startswith(parts)}


def _read_config(directory: str) -> ConfigSection:
  check_is_checkpoint(directory, directory)
  path = os.path.join(directory, 'config.json')
  return ConfigSection(read_json(path), path)


def read_siglip(directory: str) -> tuple[SiglipConfig, dict[str, LazyArray]]:
  """Reads a `SiglipModel` or `SiglipVisionModel` of transformers.

  Returns:
    Its architecture, and its tensors by the names they have in transformers' Janus. The activation becomes Janus's
    (exact GELU), which is logged where SigLIP's own differs.

  Raises:
    InputError: no such directory, or another model.
  """
  root = _read_config(directory)
  model_type = root.values.get('model_type')
  if model_type not in ('siglip', 'siglip_vision_model'):
    raise root.error('model_type', "'siglip' or 'siglip_vision_model'")
  vision = root.section('vision_config') if model_type == 'siglip' else root
  config = SiglipConfig(**vision.fields(SIGLIP_NAMES | {'mlp_dim': 'intermediate_size'}, _SIGLIP_DEFAULTS))
  trained_with = vision.values.get('hidden_act', 'gelu_pytorch_tanh')
  if trained_with != 'gelu':
    logging.info('%s was trained with %s; Janus runs exact GELU on it, and so will this', directory, trained_with)
  tensors = {}
  for name, tensor in read_tensors(directory).items():
    short = name.removeprefix('vision_model.')
    is_other_part = short.startswith(('head.', 'text_model.', 'logit_')) or short.endswith('position_ids')
    if not is_other_part:
      short = short.replace('self_attn.out_proj', 'self_attn.projection_layer')
      tensors[f'model.vision_model.{short}'] = tensor
  return config, tensors


def read_llama_part(directory: str) -> tuple[LlamaConfig, dict[str, LazyArray]]:
  """Reads a `LlamaForCausalLM` of transformers; tensors by the names they have in transformers' Janus.

  Raises:
    InputError: no such directory, or another model.
  """
  section = _read_config(directory)
  config = read_llama(section)
  tensors = {}
  for name, tensor in read_tensors(directory).items():
    if name.startswith('model.') and not name.endswith('rotary_emb.inv_freq'):
      tensors[f'model.language_model.{name.removeprefix("model.")}'] = tensor
    elif name == 'lm_head.weight':
      tensors[name] = tensor
  tie_head(tensors, section.values.get('tie_word_embeddings', False))
  return config, tensors


def read_vq(path: str, grid: int) -> tuple[VQConfig, dict[str, LazyArray]]:
  """Reads LlamaGen's VQ-16 (`vq_ds16_t2i.pt`, state dict under "model", or a plain .safetensors).

  Args:
    path: the file.
    grid: codes along one side of an image, which the file does not say.

  Returns:
    Architecture, and tensors by the names they have in DeepSeek's Janus.
  """
  state = read_safetensors(path) if path.endswith('.safetensors') else read_torch(path, subtree='model')
  tensors = {f'gen_vision_model.{name}': tensor for name, tensor in state.items()}
  tensors.pop(UNUSED_PREFIXES[1], None)
  shapes = {name: tensor.shape for name, tensor in tensors.items()}
  return vq_from_deepseek(ConfigSection({'cls': 'VQ-16'}, path), shapes, grid), tensors


def _grown(table: LazyArray, rows: int) -> LazyArray:
  """The table with rows added that are the mean of the existing ones (the usual start for new tokens)."""

  def read(index: Index) -> np.ndarray:
    old = table[...]
    mean = old.astype(np.float32).mean(axis=0, keepdims=True).astype(old.dtype)
    return np.concatenate([old, np.repeat(mean, rows - len(old), axis=0)])[index]

  return LazyArray((rows, table.shape[1]), table.dtype, read, table.origin)


def _extended_tokenizer(directory: str, vocab_size: int, role_tokens: bool) -> tuple[bytes, int]:
  """The base's tokenizer.json with Janus's special tokens, and how many rows of the token table it needs."""
  files = read_tokenizer_files(directory)
  if 'tokenizer.json' not in files:
    raise InputError(f'{directory}: no tokenizer.json: expected the tokenizer of the language model')
  try:
    return extend_tokenizer(files['tokenizer.json'], vocab_size, role_tokens), vocab_size
  except InputError:
    enough = vocab_size + len(dataclasses.fields(SpecialTokens))
    vocab_size = -(-enough // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    return extend_tokenizer(files['tokenizer.json'], vocab_size, role_tokens), vocab_size


def _initial(path: str, shape: tuple[int, ...], seed: int) -> LazyArray:
  """A new parameter, computed when it is read."""
  return LazyArray(shape, np.dtype(np.float32), lambda index: initial_value(path, shape, seed)[index], path)


def _unit_rows(codebook: LazyArray) -> LazyArray:
  """The codebook's rows at unit length, which the released `gen_embed` is close to (correlation 0.99)."""

  def read(index: Index) -> np.ndarray:
    rows = codebook[...].astype(np.float32)
    return (rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12))[index]

  return LazyArray(codebook.shape, np.dtype(np.float32), read, 'gen_embed')


def compose(
  *, vision_encoder: str, vq: str, language_model: str, gen_embed: str, seed: int, template: str = 'deepseek'
) -> Checkpoint:
  """A whole Janus whose pretrained parts are those of the given files, local or in buckets, and whose rest is new.

  Args:
    vision_encoder: directory of a SiglipModel or SiglipVisionModel.
    vq: file of LlamaGen's VQ-16.
    language_model: directory of a LlamaForCausalLM with its tokenizer.json.
    gen_embed: 'codebook' (the VQ's rows at unit length) or 'normal'.
    seed: seed of everything new.
    template: one of TEMPLATES, how it is taught to name who speaks.

  Raises:
    InputError: a part is missing, damaged, or another model; `gen_embed` or `template` is neither choice.
  """
  if template not in TEMPLATES:
    raise InputError(f'template is {template!r}: expected one of {", ".join(TEMPLATES)}')
  if gen_embed not in GEN_EMBED_CHOICES:
    raise InputError(f'gen_embed is {gen_embed!r}: expected one of {", ".join(GEN_EMBED_CHOICES)}')
  sources = (vision_encoder, vq, language_model)
  vision_encoder, language_model = (local_files(resolved(path)) for path in (vision_encoder, language_model))
  vq = local_file(vq)
  siglip_config, siglip = read_siglip(vision_encoder)
  vq_config, codes = read_vq(vq, siglip_config.grid)
  llama_config, llama = read_llama_part(language_model)
  tokenizer, vocab_size = _extended_tokenizer(language_model, llama_config.vocab_size, template == 'deepseek')
  base = JanusConfig(siglip_config, vq_config, llama_config, image_token_id=0)
  new = _part_shapes(base, 'vision_aligner/', 'gen_aligner/', 'gen_head/')
  params = {
    **params_from_tensors(_part_shapes(base, 'vision_encoder/'), siglip, 'huggingface', vision_encoder),
    **params_from_tensors(_part_shapes(base, 'vq/'), codes, 'deepseek', vq),
    **params_from_tensors(_part_shapes(base, 'language_model/'), llama, 'huggingface', language_model),
    **{path: _initial(path, shape, seed) for path, shape in new.items()},
  }
  codebook = params['vq/codebook']
  normal = _initial('gen_embed/table', codebook.shape, seed)
  params['gen_embed/table'] = normal if gen_embed == 'normal' else _unit_rows(codebook)
  if vocab_size != llama_config.vocab_size:
    logging.info('the vocabulary grows from %d to %d for the special tokens', llama_config.vocab_size, vocab_size)
    params |= {path: _grown(params[path], vocab_size) for path in _TOKEN_TABLES}
    llama_config = dataclasses.replace(llama_config, vocab_size=vocab_size)
  image_token_id = special_token_ids(tokenizer).image_placeholder
  config = JanusConfig(siglip_config, vq_config, llama_config, image_token_id)
  # Settings of the base's own chat would contradict Janus's; only the tokenizer itself carries over.
  return Checkpoint(config, params, {'tokenizer.json': tokenizer}, {}, sources)
