"""The files beside the weights: tokenizer, processor, chat template, generation settings.

They travel as bytes. An Orbax directory keeps what its source had; a PyTorch directory gets what its own loader
needs: `AutoProcessor` of transformers (huggingface), `VLChatProcessor` of DeepSeek's repository (deepseek). Files
that come from the same layout pass through unchanged, byte for byte, unless they contradict the model's sizes.
"""

import json
import os
from collections.abc import Mapping
from typing import Any, Literal

from janus_jax.conversion.chat_template import chat_template
from janus_jax.conversion.special_tokens import (
  ADDITIONAL,
  BEGIN_OF_IMAGE,
  BOS,
  END_OF_IMAGE,
  EOS,
  IMAGE_PLACEHOLDER,
  PAD,
  SpecialTokens,
  complete_tokenizer,
  largest_id,
  present_tokens,
  special_token_ids,
)
from janus_jax.data.pointers import check_content
from janus_jax.errors import InputError
from janus_jax.models.config import JanusConfig

Companions = Mapping[str, bytes]
Layout = Literal['orbax', 'huggingface', 'deepseek']

COMPANION_FILES = (
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
_DEFAULT_IMAGE_TOKENS = 576  # Of both processors' classes.


def find_companions(directory: str) -> dict[str, bytes]:
  """Reads those companion files that a checkpoint directory has: name -> content. InputError: a Git-LFS pointer."""
  found = {}
  for name in COMPANION_FILES:
    path = os.path.join(directory, name)
    if os.path.isfile(path):
      with open(path, 'rb') as file:
        found[name] = file.read()
      check_content(found[name], path)
  return found


def companions_for(layout: Layout, companions: Companions, config: JanusConfig) -> dict[str, bytes]:
  """The companion files of an export.

  Args:
    layout: what is exported to.
    companions: what the source had, of either PyTorch layout, or only a tokenizer.json.
    config: architecture; sizes and the placeholder's id must be those of the files.

  Returns:
    Name -> content. Without a tokenizer in the source, only what does not need one.

  Raises:
    InputError: a file is not JSON, or the tokenizer lacks a token or has another placeholder id than `config`.
  """
  tokens = special_tokens_of(companions, config)
  if layout == 'orbax':
    return dict(companions)
  if layout == 'huggingface':
    complete = _huggingface_files(companions, config, tokens)
  else:
    complete = _deepseek_files(companions, config, tokens)
  if layout_of(companions) != layout:
    return complete
  kept = dict(companions)
  if 'chat_template.json' in kept or 'chat_template' in _json(kept, 'tokenizer_config.json'):
    complete.pop('chat_template.jinja', None)  # The source has one, elsewhere.
  if 'image_processor' in _json(kept, 'processor_config.json'):
    complete.pop('preprocessor_config.json', None)
  return {**complete, **_with_sizes(kept, config)}


def layout_of(companions: Companions) -> Literal['huggingface', 'deepseek'] | None:
  """Which PyTorch layout the files are from; None where they do not say (a plain language model's tokenizer)."""
  for name in ('processor_config.json', 'preprocessor_config.json', 'tokenizer_config.json'):
    values = _json(companions, name)
    for field in ('processor_class', 'image_processor_type'):
      if values.get(field) in _CLASSES:
        return _CLASSES[values[field]]
  return None


def _json(companions: Companions, name: str) -> dict[str, Any]:
  """A companion file's object; empty where there is no such file."""
  try:
    values = json.loads(companions.get(name, b'{}'))
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise InputError(f'{name}: not JSON ({error})') from None
  if not isinstance(values, dict):
    raise InputError(f'{name}: expected a JSON object, found {type(values).__name__}')
  return values


def special_tokens_of(companions: Companions, config: JanusConfig) -> SpecialTokens | None:
  """The ids of the source's tokenizer; None without one.

  Raises:
    InputError: not a Janus's tokenizer, another placeholder than the model's, an id beyond its embedding table.
  """
  if 'tokenizer.json' not in companions:
    return None
  tokens = special_token_ids(companions['tokenizer.json'])
  if tokens.image_placeholder != config.image_token_id:
    raise InputError(
      f'tokenizer.json: {IMAGE_PLACEHOLDER} has id {tokens.image_placeholder}: '
      f'expected the image_token_id of the model, {config.image_token_id}'
    )
  largest, vocab_size = largest_id(companions['tokenizer.json']), config.language_model.vocab_size
  largest = max(largest, tokens.image_placeholder)  # Which may yet have to be added.
  if largest >= vocab_size:
    raise InputError(f'tokenizer.json: has a token with id {largest}: expected ids below vocab_size, {vocab_size}')
  return tokens


def template_of(companions: Companions, tokens: SpecialTokens) -> Literal['deepseek', 'deepseek_old']:
  """How the checkpoint of the files names who speaks, as `sft_format` calls it: by role tokens, or by plain words."""
  old = tokens.user is None or _json(companions, 'processor_config.json').get('sft_format') == 'deepseek_old'
  return 'deepseek_old' if old else 'deepseek'


def _image_settings(companions: Companions, image_size: Mapping[str, Any]) -> dict[str, Any]:
  """How understanding images become pixel values: what both layouts write alike, and their own form of the size."""
  nested = _json(companions, 'processor_config.json').get('image_processor')
  source = nested if isinstance(nested, dict) else _json(companions, 'preprocessor_config.json')
  settings = {name: source.get(name, default) for name, default in _IMAGE_DEFAULTS.items()}
  return {**settings, **image_size}


def _tokenizer_settings(companions: Companions, config: JanusConfig) -> dict[str, Any]:
  max_length = _json(companions, 'tokenizer_config.json').get('model_max_length')
  return {
    'add_bos_token': True,
    'add_eos_token': False,
    'bos_token': BOS,
    'clean_up_tokenization_spaces': False,
    'eos_token': EOS,
    'legacy': True,
    'model_max_length': max_length or config.language_model.max_positions,
    'pad_token': PAD,
    'padding_side': 'left',
    # JanusProcessor of transformers 4 accepts no other class; transformers 5 takes tokenizer.json as it stands.
    'tokenizer_class': 'LlamaTokenizerFast',
    # Null, not absent: the class would add its default "<unk>" to the vocabulary.
    'unk_token': None,
  }


def _huggingface_files(companions: Companions, config: JanusConfig, tokens: SpecialTokens | None) -> dict[str, bytes]:
  side = config.image_size
  image_processor = {
    **_image_settings(companions, {'size': {'height': side, 'width': side}}),
    'do_pad': True,
    'do_rescale': True,
    'do_resize': True,
    'image_processor_type': 'JanusImageProcessor',
    'processor_class': 'JanusProcessor',
    'resample': 3,  # PIL's number for bicubic.
  }
  files = {'preprocessor_config.json': _dump(image_processor)}
  if tokens is None:
    return files
  named_tokens = {'boi_token': BEGIN_OF_IMAGE, 'eoi_token': END_OF_IMAGE, 'image_token': IMAGE_PLACEHOLDER}
  return {
    **files,
    'chat_template.jinja': chat_template(template_of(companions, tokens) == 'deepseek').encode(),
    'generation_config.json': _dump(_generation_config(tokens)),
    'processor_config.json': _dump(
      {
        'num_image_tokens': config.num_image_tokens,
        'processor_class': 'JanusProcessor',
        'use_default_system_prompt': True,
      }
    ),
    'tokenizer.json': complete_tokenizer(companions['tokenizer.json']),
    'tokenizer_config.json': _dump(
      {
        **_tokenizer_settings(companions, config),
        'extra_special_tokens': named_tokens,  # How JanusProcessor finds `tokenizer.image_token` and so on.
        'processor_class': 'JanusProcessor',
      }
    ),
  }


def _generation_config(tokens: SpecialTokens) -> dict[str, Any]:
  return {
    'bos_token_id': tokens.bos,
    'eos_token_id': tokens.eos,
    'generation_kwargs': {'boi_token_id': tokens.begin_of_image},
    'guidance_scale': 5,
    'pad_token_id': tokens.pad,
    # Sampling draws from all codes, as DeepSeek's generation_inference.py does; transformers' default is the 50
    # likeliest. Greedy stays the default of `generate`, so transformers remarks at loading that top_k has no effect.
    'top_k': 0,
  }


def _deepseek_files(companions: Companions, config: JanusConfig, tokens: SpecialTokens | None) -> dict[str, bytes]:
  image_processor = {
    **_image_settings(companions, {'image_size': config.image_size}),
    'image_processor_type': 'VLMImageProcessor',
    'processor_class': 'VLChatProcessor',
  }
  files = {'preprocessor_config.json': _dump(image_processor)}
  if tokens is None:
    return files
  tokenizer_json = complete_tokenizer(companions['tokenizer.json'])
  return {
    **files,
    'processor_config.json': _dump(
      {
        'add_special_token': False,
        'ignore_id': -100,
        'image_tag': IMAGE_PLACEHOLDER,
        'mask_prompt': True,
        'num_image_tokens': config.num_image_tokens,
        'processor_class': 'VLChatProcessor',
        'sft_format': template_of(companions, tokens),
      }
    ),
    'special_tokens_map.json': _dump(
      {
        # Only those that are there: loading would add the others, with new ids.
        'additional_special_tokens': present_tokens(tokenizer_json, ADDITIONAL),
        'bos_token': BOS,
        'eos_token': EOS,
        'pad_token': PAD,
      }
    ),
    'tokenizer.json': tokenizer_json,
    'tokenizer_config.json': _dump(_tokenizer_settings(companions, config)),
  }


def _with_sizes(companions: Companions, config: JanusConfig) -> dict[str, bytes]:
  """The same files, but for sizes that are no longer the model's (its image size was changed)."""
  files = dict(companions)
  for name in ('processor_config.json', 'preprocessor_config.json'):
    values = _json(companions, name)
    resized = _resized(values, config.image_size)
    stated = values.get('num_image_tokens', _DEFAULT_IMAGE_TOKENS if name == 'processor_config.json' else None)
    if stated not in (None, config.num_image_tokens):
      resized['num_image_tokens'] = config.num_image_tokens
    if name in files and resized != values:
      files[name] = _dump(resized)
  return files


def _resized(values: Mapping[str, Any], image_size: int) -> dict[str, Any]:
  sizes = {'image_size': image_size, 'size': {'height': image_size, 'width': image_size}}
  resized = {**values, **{name: size for name, size in sizes.items() if name in values}}
  if isinstance(values.get('image_processor'), dict):
    resized['image_processor'] = _resized(values['image_processor'], image_size)
  return resized


def _dump(values: Mapping[str, Any]) -> bytes:
  return (json.dumps(values, ensure_ascii=False, indent=2, sort_keys=True) + '\n').encode()
