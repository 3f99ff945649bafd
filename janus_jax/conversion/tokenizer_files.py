"""The files beside the weights: tokenizer, processor, chat template, generation settings.

They travel as bytes. An Orbax directory keeps what its source had; a PyTorch directory gets what its own loader
needs: `AutoProcessor` of transformers (huggingface), `VLChatProcessor` of DeepSeek's repository (deepseek). Files
that come from the same layout pass through unchanged, byte for byte, unless they contradict the model's sizes.
"""

import json
import os
from collections.abc import Mapping
from typing import Any, Literal

from janus_jax.conversion import special_tokens
from janus_jax.conversion.chat_template import chat_template
from janus_jax.conversion.config_section import json_object
from janus_jax.conversion.mapping import Format, Layout
from janus_jax.conversion.special_tokens import SpecialTokens, complete_tokenizer, special_token_ids, token_ids
from janus_jax.data.pointers import check_content
from janus_jax.errors import InputError
from janus_jax.models.config import JanusConfig

TokenizerFiles = Mapping[str, bytes]  # Name -> content.

FILE_NAMES = (
  'tokenizer.json',
  'tokenizer.model',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'chat_template.jinja',
  'chat_template.json',
  'processor_config.json',
  'preprocessor_config.json',
  'generation_config.json',
)

_CLASSES = {  # What either layout's files say they are for.
  'JanusProcessor': 'huggingface',
  'JanusImageProcessor': 'huggingface',
  'JanusImageProcessorFast': 'huggingface',
  'VLChatProcessor': 'deepseek',
  'VLMImageProcessor': 'deepseek',
}
# What the released files say of understanding images; a source's own file has precedence.
_IMAGE_DEFAULTS = {
  'background_color': [127, 127, 127],  # Both processors compute it anew, as int(255 * image_mean).
  'do_normalize': True,
  'image_mean': [0.5, 0.5, 0.5],
  'image_std': [0.5, 0.5, 0.5],
  'min_size': 14,
  'rescale_factor': 1 / 255,
}


def read_tokenizer_files(directory: str) -> dict[str, bytes]:
  """Reads those of FILE_NAMES that a checkpoint directory has: name -> content. InputError: a Git-LFS pointer."""
  found = {}
  for name in FILE_NAMES:
    path = os.path.join(directory, name)
    if os.path.isfile(path):
      with open(path, 'rb') as file:
        found[name] = file.read()
      check_content(found[name], path)
  return found


def tokenizer_files_for(layout: Format, files: TokenizerFiles, config: JanusConfig) -> dict[str, bytes]:
  """The tokenizer files of an export.

  Args:
    layout: what is exported to.
    files: what the source had, of either PyTorch layout, or only a tokenizer.json.
    config: architecture; sizes and the placeholder's id must be those of the files.

  Returns:
    Name -> content. Without a tokenizer in the source, only what does not need one.

  Raises:
    InputError: a file is not JSON, or the tokenizer lacks a token or has another placeholder id than `config`.
  """
  tokens = special_tokens_of(files, config)
  if layout == 'orbax':
    return dict(files)
  described = {'preprocessor_config.json': _image_processor(layout, files, config)}
  if tokens is not None:
    described |= (_huggingface_files if layout == 'huggingface' else _deepseek_files)(files, config, tokens)
  complete = {name: _dump(content) if isinstance(content, dict) else content for name, content in described.items()}
  if _layout_of(files) != layout:
    return complete
  if 'chat_template.json' in files or 'chat_template' in _json(files, 'tokenizer_config.json'):
    complete.pop('chat_template.jinja', None)  # The source has one, elsewhere.
  if 'image_processor' in _json(files, 'processor_config.json'):
    complete.pop('preprocessor_config.json')
  return {**complete, **_with_sizes(files, config)}


def special_tokens_of(files: TokenizerFiles, config: JanusConfig) -> SpecialTokens | None:
  """The ids of the source's tokenizer; None without one.

  Raises:
    InputError: not a Janus's tokenizer, another placeholder than the model's, an id beyond its embedding table.
  """
  if 'tokenizer.json' not in files:
    return None
  tokens = special_token_ids(files['tokenizer.json'])
  if tokens.image_placeholder != config.image_token_id:
    raise InputError(
      f'tokenizer.json: {special_tokens.IMAGE_PLACEHOLDER} has id {tokens.image_placeholder}: '
      f'expected the image_token_id of the model, {config.image_token_id}'
    )
  vocab_size = config.language_model.vocab_size
  largest = max(*token_ids(files['tokenizer.json']).values(), tokens.image_placeholder)  # It may yet have to be added.
  if largest >= vocab_size:
    raise InputError(f'tokenizer.json: has a token with id {largest}: expected ids below vocab_size, {vocab_size}')
  return tokens


def template_of(files: TokenizerFiles, tokens: SpecialTokens) -> Literal['deepseek', 'deepseek_old']:
  """The prompt style, as `sft_format` calls it: role tokens name who speaks, or plain words ("deepseek_old")."""
  old = tokens.user is None or _json(files, 'processor_config.json').get('sft_format') == 'deepseek_old'
  return 'deepseek_old' if old else 'deepseek'


def _layout_of(files: TokenizerFiles) -> Layout | None:
  """The PyTorch layout of the files; None where they do not say (a plain language model's tokenizer)."""
  for name in ('processor_config.json', 'preprocessor_config.json', 'tokenizer_config.json'):
    values = _json(files, name)
    for field in ('processor_class', 'image_processor_type'):
      if values.get(field) in _CLASSES:
        return _CLASSES[values[field]]
  return None


def _json(files: TokenizerFiles, name: str) -> dict[str, Any]:
  """The object in a file; empty where there is no such file."""
  return json_object(files.get(name, b'{}'), name)


def _dump(values: Mapping[str, Any]) -> bytes:
  return (json.dumps(values, ensure_ascii=False, indent=2, sort_keys=True) + '\n').encode()


def _image_processor(layout: Layout, files: TokenizerFiles, config: JanusConfig) -> dict[str, Any]:
  nested = _json(files, 'processor_config.json').get('image_processor')
  source = nested if isinstance(nested, dict) else _json(files, 'preprocessor_config.json')
  settings = {name: source.get(name, default) for name, default in _IMAGE_DEFAULTS.items()}
  side = config.image_size
  if layout == 'deepseek':
    return settings | {
      'image_processor_type': 'VLMImageProcessor',
      'image_size': side,
      'processor_class': 'VLChatProcessor',
    }
  return settings | {
    'do_pad': True,
    'do_rescale': True,
    'do_resize': True,
    'image_processor_type': 'JanusImageProcessor',
    'processor_class': 'JanusProcessor',
    'resample': 3,  # PIL's number for bicubic.
    'size': {'height': side, 'width': side},
  }


def _tokenizer_settings(files: TokenizerFiles, config: JanusConfig) -> dict[str, Any]:
  max_length = _json(files, 'tokenizer_config.json').get('model_max_length')
  return {
    'add_bos_token': True,
    'add_eos_token': False,
    'bos_token': special_tokens.BOS,
    'clean_up_tokenization_spaces': False,
    'eos_token': special_tokens.EOS,
    'legacy': True,
    'model_max_length': max_length or config.language_model.max_positions,
    'pad_token': special_tokens.PAD,
    'padding_side': 'left',
    # JanusProcessor of transformers 4 accepts no other class; transformers 5 takes tokenizer.json as it stands.
    'tokenizer_class': 'LlamaTokenizerFast',
    # Null, not absent: the class would add its default "<unk>" to the vocabulary.
    'unk_token': None,
  }


def _huggingface_files(files: TokenizerFiles, config: JanusConfig, tokens: SpecialTokens) -> dict[str, bytes | dict]:
  named_tokens = {
    'boi_token': special_tokens.BEGIN_OF_IMAGE,
    'eoi_token': special_tokens.END_OF_IMAGE,
    'image_token': special_tokens.IMAGE_PLACEHOLDER,
  }
  return {
    'chat_template.jinja': chat_template(template_of(files, tokens) == 'deepseek').encode(),
    'generation_config.json': {
      'bos_token_id': tokens.bos,
      'eos_token_id': tokens.eos,
      'generation_kwargs': {'boi_token_id': tokens.begin_of_image},
      'guidance_scale': 5,
      'pad_token_id': tokens.pad,
      # All codes can be sampled, as in DeepSeek's generation_inference.py; transformers' default is the 50 likeliest.
      # Greedy stays the default of `generate`, so transformers remarks at loading that top_k has no effect.
      'top_k': 0,
    },
    'processor_config.json': {
      'num_image_tokens': config.num_image_tokens,
      'processor_class': 'JanusProcessor',
      'use_default_system_prompt': True,
    },
    'tokenizer.json': complete_tokenizer(files['tokenizer.json']),
    'tokenizer_config.json': {
      **_tokenizer_settings(files, config),
      'extra_special_tokens': named_tokens,  # How JanusProcessor finds `tokenizer.image_token` and so on.
      'processor_class': 'JanusProcessor',
    },
  }


def _deepseek_files(files: TokenizerFiles, config: JanusConfig, tokens: SpecialTokens) -> dict[str, bytes | dict]:
  tokenizer_json = complete_tokenizer(files['tokenizer.json'])
  present = token_ids(tokenizer_json)
  return {
    'processor_config.json': {
      'add_special_token': False,
      'ignore_id': -100,
      'image_tag': special_tokens.IMAGE_PLACEHOLDER,
      'mask_prompt': True,
      'num_image_tokens': config.num_image_tokens,
      'processor_class': 'VLChatProcessor',
      'sft_format': template_of(files, tokens),
    },
    'special_tokens_map.json': {
      # Only those that are there: loading would add the others, with new ids.
      'additional_special_tokens': [token for token in special_tokens.ADDITIONAL if token in present],
      'bos_token': special_tokens.BOS,
      'eos_token': special_tokens.EOS,
      'pad_token': special_tokens.PAD,
    },
    'tokenizer.json': tokenizer_json,
    'tokenizer_config.json': _tokenizer_settings(files, config),
  }


def _with_sizes(files: TokenizerFiles, config: JanusConfig) -> dict[str, bytes]:
  """The same files, but for sizes that are no longer the model's (its image size was changed)."""
  new_files = dict(files)
  # Both layouts' processor classes take 576 tokens where their file does not say.
  for name, default_tokens in (('processor_config.json', 576), ('preprocessor_config.json', None)):
    values = _json(files, name)
    resized = _resized(values, config.image_size)
    if values.get('num_image_tokens', default_tokens) not in (None, config.num_image_tokens):
      resized['num_image_tokens'] = config.num_image_tokens
    if name in files and resized != values:
      new_files[name] = _dump(resized)
  return new_files


def _resized(values: Mapping[str, Any], image_size: int) -> dict[str, Any]:
  sizes = {'image_size': image_size, 'size': {'height': image_size, 'width': image_size}}
  resized = {**values, **{name: size for name, size in sizes.items() if name in values}}
  if isinstance(values.get('image_processor'), dict):
    resized['image_processor'] = _resized(values['image_processor'], image_size)
  return resized
