"""Adapters in the files of peft 0.21 (`PeftModel.save_pretrained`), for transformers' and for DeepSeek's class.

`adapter_model.safetensors` has `base_model.model.MODULE.lora_A.weight` [r, D] and `lora_B.weight` [F, r] for each
linear map of torch's model, and tensors of `modules_to_save` by their own names. peft ignores tensors that it does not
know with a warning alone, so that a wrong name means the base model.
"""

import collections
import json
import math
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from janus_jax.conversion.adapters import Adapter, Arrays, fingerprint, one_cause, write_base
from janus_jax.conversion.config_section import ConfigSection, read_json
from janus_jax.conversion.lazy import LazyArray, from_numpy, index_tuple
from janus_jax.conversion.mapping import Layout, Piece, torch_names
from janus_jax.conversion.safetensors_files import read_safetensors, write_safetensors
from janus_jax.conversion.torch_files import read_torch
from janus_jax.conversion.translate import params_from_tensors, tensors_from_params
from janus_jax.errors import InputError
from janus_jax.models import lora
from janus_jax.models.lora import FACTORS, SCALE

# Formats of adapters, and whose class each is for.
PEFT_LAYOUTS: dict[str, Layout] = {'peft': 'huggingface', 'peft_deepseek': 'deepseek'}
PEFT_CONFIG, PEFT_STEM = 'adapter_config.json', 'adapter_model'
_PREFIX = 'base_model.model.'
# Layouts, and what stands before the names where peft wrapped the whole model, or a part of it by itself.
_WRAPPED: tuple[tuple[Layout, str], ...] = (
  ('huggingface', ''),
  ('deepseek', ''),
  ('huggingface', 'model.'),
  ('huggingface', 'model.language_model.'),
  ('deepseek', 'language_model.'),
)
# Fields of adapter_config.json that would change what is computed, and the one value that is understood.
_FIXED = {'peft_type': 'LORA', 'fan_in_fan_out': False, 'use_dora': False, 'bias': 'none', 'lora_bias': False}


def is_peft(directory: str) -> bool:
  """Says whether a directory holds an adapter of peft, and no whole model."""
  found = os.listdir(directory) if os.path.isdir(directory) else []
  whole = any(file.startswith(('model', 'pytorch_model')) for file in found)
  return not whole and any(file.startswith((PEFT_CONFIG, f'{PEFT_STEM}.')) for file in found)


def recorded_base(directory: str) -> str:
  """The base that a directory of peft names. Raises InputError if it names none."""
  path = os.path.join(directory, PEFT_CONFIG)
  base = read_json(path).get('base_model_name_or_path')
  if not base or not isinstance(base, str):
    raise InputError(f'{path}: names no base (base_model_name_or_path): expected BASE+{directory}, with its PATH')
  return base


def read_peft(directory: str, shapes: lora.Shapes, base: str) -> Arrays:
  """Opens an adapter of peft, of transformers' or DeepSeek's class.

  Args:
    directory: local.
    shapes: path -> shape of each parameter of the base.
    base: path of the base, for messages.

  Returns:
    Path -> array of factors and of parameters in full.

  Raises:
    InputError: another method than LoRA, or tensors that do not fit the base.
  """
  config_path = os.path.join(directory, PEFT_CONFIG)
  config = read_json(config_path)
  section = ConfigSection(config, config_path)
  section.allow(_FIXED)
  path = os.path.join(directory, f'{PEFT_STEM}.safetensors')
  is_safe = os.path.exists(path)
  if not is_safe:
    path = os.path.join(directory, f'{PEFT_STEM}.bin')
  if not os.path.exists(path):
    raise InputError(f'{directory}: no weights found: expected {PEFT_STEM}.safetensors or {PEFT_STEM}.bin')
  tensors = {_plain(name): tensor for name, tensor in (read_safetensors if is_safe else read_torch)(path).items()}
  layout, prefix = _layout_of(tensors, shapes, path)
  tensors = {prefix + name: tensor for name, tensor in tensors.items()}
  scale_of = _scales(section)
  arrays, used = {}, set()
  for module in lora.linear_maps(shapes):
    kernel = shapes[f'{module}/kernel']
    pieces = torch_names({f'{module}/kernel': kernel}, layout)
    names = [name.removesuffix('.weight') for name in pieces]
    wanted = {name: [f'{name}.lora_{part}.weight' for part in 'AB'] for name in names}
    found = [name for name, pair in wanted.items() if all(part in tensors for part in pair)]
    if not found:
      continue
    if any(piece.third is not None for parts in pieces.values() for piece in parts):
      raise InputError(
        f"{path}: {found[0]} adapts q, k and v as one: expected transformers' layout, where they are three"
      )
    used |= {part for name in found for part in wanted[name]}
    pairs = [[tensors[part] for part in wanted[name]] if name in found else None for name in names]
    scales = [
      scale_of(name.removeprefix(prefix), pair[0].shape[0]) if pair else 0.0 for name, pair in zip(names, pairs)
    ]
    arrays |= _stacked(module, kernel, pairs, scales, path, base)
  rest = {name: tensor for name, tensor in tensors.items() if name not in used}
  saved = {path: shapes[path] for path in shapes if torch_names({path: shapes[path]}, layout).keys() & rest.keys()}
  try:
    arrays |= params_from_tensors(saved, rest, layout, path)
  except InputError as error:
    raise InputError(f'{one_cause(error)}: expected an adapter of {base}') from None
  return arrays


def _plain(name: str) -> str:
  """The name of a tensor without what peft puts around it."""
  # `base_layer` is a head that is stored whole beside its factors.
  return re.sub(r'\.modules_to_save(\.default)?|(?<=\.lora_[AB])\.default|\.base_layer', '', name.removeprefix(_PREFIX))


def _layout_of(tensors: Arrays, shapes: lora.Shapes, path: str) -> tuple[Layout, str]:
  """The layout whose names an adapter has, and what is missing before them. InputError: names of no layout."""
  modules = {re.sub(r'\.(lora_[AB]\.)?(weight|bias)$', '', name) for name in tensors}
  for layout, prefix in _WRAPPED:
    known = {re.sub(r'\.(weight|bias)$', '', name) for name in torch_names(shapes, layout)}
    if modules and all(prefix + module in known for module in modules):
      return layout, prefix
  known = {re.sub(r'\.\d+\.', '.N.', name) for name in torch_names(shapes, 'huggingface')}
  example = next((name for name in sorted(tensors) if re.sub(r'\.\d+\.', '.N.', name) not in known), 'none')
  raise InputError(
    f'{path}: names of no Janus, or of a deeper one ({len(tensors)} tensors, such as {example}): expected an adapter '
    f'of its linear maps, such as {_PREFIX}model.language_model.layers.0.self_attn.q_proj.lora_A.weight'
  )


def _scales(section: ConfigSection) -> Callable[[str, int], float]:
  """(module, its rank) -> the factor that peft multiplies B A with."""
  alpha, patterns = section.number('lora_alpha', 8.0), section.section('alpha_pattern').values
  root = bool(section.values.get('use_rslora'))

  def scale_of(module: str, rank: int) -> float:
    own = next((value for key, value in patterns.items() if re.match(rf'(.*\.)?({key})$', module)), alpha)
    return own / (math.sqrt(rank) if root else rank)

  return scale_of


def _stacked(
  module: str, kernel: tuple[int, ...], pairs: list[Any], scales: list[float], source: str, base: str
) -> dict[str, LazyArray]:
  """Factors of a module in all its layers; those of layers without any are 0, and smaller ranks are filled up so."""
  layers, features, inputs = lora.matrix_shape(module, kernel)
  rank = max(pair[0].shape[0] for pair in pairs if pair)
  shapes = lora.factor_shapes(module, kernel, rank)
  a, b, scale = (np.zeros(shape, np.float32) for shape in shapes.values())
  for layer, (pair, factor) in enumerate(zip(pairs, scales)):
    if pair is None:
      continue
    at, r = (layer,) if layers else (), pair[0].shape[0]
    if pair[0].shape != (r, inputs) or pair[1].shape != (features, r):
      found = ' and '.join(str(list(part.shape)) for part in pair)
      raise InputError(
        f'{source}: an adapter for another base: {pair[0].origin.rpartition(": ")[2]} and B are {found}: expected '
        f'[r, {inputs}] and [{features}, r], as {base} has them'
      )
    a[(*at, slice(r))], b[(*at, slice(None), slice(r))] = (np.asarray(part[...], np.float32) for part in pair)
    scale[at] = factor
  return {path: from_numpy(value, f'{source}: {path}') for path, value in zip(shapes, (a, b, scale))}


def write_peft(
  adapter: Adapter, shapes: lora.Shapes, directory: str, layout: Layout, progress: Callable[[int], None]
) -> None:
  """Writes adapter_config.json and adapter_model.safetensors, for transformers' or DeepSeek's class.

  Raises:
    InputError: what the layout cannot express: factors of DeepSeek's q, k and v in one.
  """
  tensors, ranks, alphas = {}, {}, {}
  for path in adapter.factors:
    module, _, name = path.rpartition('/')
    if name != FACTORS[0]:
      continue
    parts = [adapter.factors[f'{module}/{name}'] for name in (*FACTORS, SCALE)]
    names = torch_names({f'{module}/kernel': shapes[f'{module}/kernel']}, layout)
    for tensor, (piece, *others) in names.items():
      if others or piece.third is not None:
        raise InputError(
          f"{module} has factors, and DeepSeek's layout has q, k and v in one: expected --format=peft, or --merge"
        )
      torch_module = tensor.removesuffix('.weight')
      for letter, part in zip('AB', parts):
        tensors[f'{_PREFIX}{torch_module}.lora_{letter}.weight'] = _layer(part, piece)
      rank = parts[0].shape[-2]
      ranks[torch_module] = rank
      alphas[torch_module] = float(np.asarray(_layer(parts[2], piece)[...], np.float64)) * rank
  saved = tensors_from_params(adapter.full, layout)
  tensors |= {_PREFIX + name: tensor for name, tensor in saved.items()}
  rank, alpha = (collections.Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
  config = {
    'peft_type': 'LORA',
    'task_type': None,
    'base_model_name_or_path': adapter.base,
    'r': rank,
    'lora_alpha': alpha,
    'rank_pattern': {re.escape(name): value for name, value in ranks.items() if value != rank},
    'alpha_pattern': {re.escape(name): value for name, value in alphas.items() if value != alpha},
    'target_modules': _pattern(list(ranks)),
    'modules_to_save': sorted({name.rpartition('.')[0] for name in saved}) or None,
    'lora_dropout': 0.0,
    'fan_in_fan_out': False,
    'bias': 'none',
    'inference_mode': True,
  }
  with open(os.path.join(directory, PEFT_CONFIG), 'w', encoding='utf-8') as file:
    json.dump(config, file, indent=2)
  write_base(directory, adapter.base, fingerprint(shapes, adapter.base_params))
  write_safetensors(directory, PEFT_STEM, tensors, sys.maxsize, progress)


def _layer(part: LazyArray, piece: Piece) -> LazyArray:
  if piece.layer is None:
    return part
  return LazyArray(part.shape[1:], part.dtype, lambda index: part[(piece.layer, *index_tuple(index))], part.origin)


def _pattern(modules: list[str]) -> str:
  """A regular expression that matches these modules of torch's model and no others, their layers' numbers apart."""
  tails = collections.defaultdict(list)
  for module in modules:
    tails[re.sub(r'\\\.\d+\\\.', r'\\.\\d+\\.', re.escape(module))].append(module)
  heads = collections.defaultdict(list)
  for form in tails:
    head, _, last = form.rpartition(r'\.')
    heads[head].append(last)
  forms = [f'{head}\\.({"|".join(sorted(lasts))})' for head, lasts in sorted(heads.items())]
  return f'({"|".join(forms)})' if len(forms) > 1 else forms[0]
