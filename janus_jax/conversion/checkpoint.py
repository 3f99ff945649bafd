"""Opens a checkpoint of any layout, and writes one of any layout. Tensors stay on disk until they are read.

A directory is one of
  orbax        janus_config.json, params/ (Orbax), and the tokenizer files
  workdir      a training run's: as orbax, but the parameters are those of the newest whole one of checkpoints/, or
               with '@ema' after its path their averages (`optimizer.ema_decay`)
  huggingface  config.json with model_type "janus" (`JanusForConditionalGeneration`), safetensors
  deepseek     config.json with model_type "multi_modality" (`MultiModalityCausalLM`), .bin or safetensors
  adapter      of peft, adapter_config.json; or the workdir of a run with LoRA. Its base is opened with it: the one that
               it names, or that of BASE+ADAPTER
"""

import dataclasses
import json
import os
import sys
import typing
from collections.abc import Callable, Mapping

import numpy as np

from janus_jax.conversion import hub, peft_files
from janus_jax.conversion.adapters import Adapter, check_base, factors_of, read_base, split_base
from janus_jax.conversion.buckets import absolute, is_url, local_files, normalized
from janus_jax.conversion.config_section import read_json
from janus_jax.conversion.configs import huggingface_to_janus, janus_to_huggingface
from janus_jax.conversion.deepseek_config import deepseek_to_janus, janus_to_deepseek
from janus_jax.conversion.lazy import LazyArray, from_numpy
from janus_jax.conversion.mapping import Format
from janus_jax.conversion.orbax_files import read_orbax, write_orbax
from janus_jax.conversion.recognition import check_is_checkpoint, found_weights
from janus_jax.conversion.resample import with_grid
from janus_jax.conversion.safetensors_files import read_safetensors, read_sharded, write_safetensors
from janus_jax.conversion.special_tokens import special_token_ids
from janus_jax.conversion.tokenizer_files import read_tokenizer_files, tokenizer_files_for
from janus_jax.conversion.torch_files import read_torch
from janus_jax.conversion.translate import check_names, parameter_shapes, params_from_tensors, tensors_from_params
from janus_jax.conversion.workdir import image_sizes, is_workdir, read_newest, split_ema
from janus_jax.errors import InputError
from janus_jax.models.config import JanusConfig, config_to_dict, from_dict
from janus_jax.models.files import CONFIG_FILE, PARAMS_DIRECTORY

FORMATS: tuple[Format, ...] = typing.get_args(Format)

# Tensors that a DeepSeek checkpoint holds and no model uses; they travel in a file of their own.
UNUSED_STEM = 'deepseek_unused'
UNUSED_PREFIXES = ('vision_model.vision_tower.attn_pool.', 'gen_vision_model.quantize.codebook_used')
CODEBOOK_USED_LENGTH = 65536  # A buffer of this length whatever the codebook's size (vq_model.py).
MAX_SHARD_BYTES = 5 * 10**9


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A checkpoint as something to read from.

  Attributes:
    config: architecture.
    params: parameter path -> array.
    tokenizer_files: tokenizer, processor and generation files: name -> content.
    unused: DeepSeek's tensors without a use, by DeepSeek's names; empty where the source had none.
    sources: directories and files it reads from.
    adapter: the parts of `params` where it is an adapter; they are merged in `params`.
  """

  config: JanusConfig
  params: Mapping[str, LazyArray]
  tokenizer_files: Mapping[str, bytes]
  unused: Mapping[str, LazyArray]
  sources: tuple[str, ...]
  adapter: Adapter | None = None

  def resized(self, image_size: int = 0, generation_size: int = 0) -> 'Checkpoint':
    """Returns the model for images of other sizes to understand and to generate; 0 leaves one as it is.

    Raises:
      InputError: a size that the patch or the VQ's downsampling does not divide.
    """
    config = self.config.resized(image_size, generation_size)
    return dataclasses.replace(self, config=config, params=with_grid(self.params, config.vision_encoder.grid))


def read_tensors(directory: str) -> dict[str, LazyArray]:
  """The tensors of a PyTorch directory, whichever of the usual files they are in."""
  expected = []
  for name, reader in (('model.safetensors', read_safetensors), ('pytorch_model.bin', read_torch)):
    path, index = os.path.join(directory, name), os.path.join(directory, f'{name}.index.json')
    if os.path.exists(path):
      return reader(path)
    if os.path.exists(index):
      return read_sharded(index, reader)
    expected += [name, f'{name}.index.json']
  raise InputError(f'{directory}: no weights found: expected one of {", ".join(expected)}; {found_weights(directory)}')


def tie_head(tensors: dict[str, LazyArray], tied: bool) -> None:
  """Adds the `lm_head` that transformers leaves out of the file where the config says it is tied: the token table."""
  table = 'model.language_model.embed_tokens.weight'
  if tied and table in tensors:
    tensors.setdefault('lm_head.weight', tensors[table])


def open_checkpoint(path: str) -> Checkpoint:
  """Opens a checkpoint of any layout: a local directory, one in a bucket, or a name on the Hugging Face hub.

  Raises:
    InputError: nothing there (`hub.download`, `buckets.local_files`), not a Janus, no averages (DIR@ema), a tensor
      missing, unexpected or of a wrong shape, or an adapter without its base, or for another one.
  """
  base, path = split_base(path)
  path, averaged = split_ema(path)
  source = normalized(hub.resolved(path))
  if not is_url(source):
    check_is_checkpoint(source, source)
  if averaged and not is_workdir(source):
    raise InputError(f'{source}: no training workdir: nothing but a run with optimizer.ema_decay has averages (@ema)')
  path = local_files(source)
  check_is_checkpoint(path, source)
  if peft_files.is_peft(path):
    return _open_peft(path, source, base)
  if base is not None and not read_base(path):
    raise InputError(f'{source}: a whole model: expected an adapter after {base}+')
  if os.path.exists(os.path.join(path, CONFIG_FILE)):
    return _open_orbax(path, source, averaged, base)
  config_path = os.path.join(path, 'config.json')
  values = read_json(config_path)
  model_type = values.get('model_type')
  if model_type == 'janus':
    return _open_huggingface(path, values, config_path)
  if model_type == 'multi_modality':
    return _open_deepseek(path, values, config_path)
  is_diffusers = model_type is None and '_diffusers_version' in values
  found = 'a diffusers model' if is_diffusers else f'model_type is {model_type!r}'
  raise InputError(f'{config_path}: {found}: expected "janus" or "multi_modality"')


def _open_unused(path: str) -> dict[str, LazyArray]:
  file = os.path.join(path, f'{UNUSED_STEM}.safetensors')
  return read_safetensors(file) if os.path.exists(file) else {}


def _open_base(base: str, adapter: str) -> Checkpoint:
  try:
    return open_checkpoint(base)
  except InputError as error:
    raise InputError(f'{adapter}: its base cannot be opened: {error}; BASE+{adapter} names another PATH') from None


def _over_base(
  base: Checkpoint,
  path: str,
  directory: str,
  sources: tuple[str, ...],
  arrays: Mapping[str, LazyArray],
  sizes: tuple[int, int] = (0, 0),
) -> Checkpoint:
  """An adapter of arrays from `sources` over its base, which was opened as `path`; `directory` has its small files,
  `sizes` are those of its images where they are not the base's.
  """
  check_base(directory, parameter_shapes(base.config), base.params, path)
  base = base.resized(*sizes)
  shapes = parameter_shapes(base.config)
  factors, full = factors_of(arrays, shapes, sources[0], path)
  own = Adapter(path if hub.is_name(path) else absolute(path), base.params, factors, full)
  return dataclasses.replace(base, params=own.params, sources=(*base.sources, *sources), adapter=own)


def with_params(checkpoint: Checkpoint, params: Mapping[str, LazyArray]) -> Checkpoint:
  """The checkpoint of another step of the same run, which holds these parameters."""
  adapter = checkpoint.adapter
  if adapter is None:
    return dataclasses.replace(checkpoint, params=params)
  factors, full = factors_of(params, parameter_shapes(checkpoint.config), checkpoint.sources[-1], adapter.base)
  adapter = dataclasses.replace(adapter, factors=factors, full=full)
  return dataclasses.replace(checkpoint, params=adapter.params, adapter=adapter)


def _open_peft(path: str, source: str, base: str | None) -> Checkpoint:
  base = base or peft_files.recorded_base(path)
  opened = _open_base(base, source)
  arrays = peft_files.read_peft(path, parameter_shapes(opened.config), base)
  return _over_base(opened, base, path, (source,), arrays)


def _open_orbax(path: str, source: str, averaged: bool, base: str | None) -> Checkpoint:
  """Opens the files of `path` and the parameters under `source`, whose copy `path` may be."""
  config_path = os.path.join(path, CONFIG_FILE)
  values = read_json(config_path)
  try:
    config = from_dict(values)
  except InputError as error:
    raise InputError(f'{config_path}: {error}') from None
  sizes = 0, 0
  if is_workdir(source):
    params_path, params = read_newest(source, averaged)
    sizes = image_sizes(os.path.dirname(params_path))
  else:
    params_path = os.path.join(source, PARAMS_DIRECTORY)
    params = read_orbax(params_path)
  if recorded := read_base(path):
    base = base or recorded['base']
    return _over_base(_open_base(base, source), base, path, (source, params_path), params, sizes)
  config = config.resized(*sizes)
  check_names(parameter_shapes(config), params, params_path)
  return Checkpoint(config, params, read_tokenizer_files(path), _open_unused(path), (source, params_path))


def _open_huggingface(path: str, values: dict, config_path: str) -> Checkpoint:
  config = huggingface_to_janus(values, config_path)
  tensors = read_tensors(path)
  tie_head(tensors, values.get('tie_word_embeddings', True))
  params = params_from_tensors(parameter_shapes(config), tensors, 'huggingface', path)
  return Checkpoint(config, params, read_tokenizer_files(path), _open_unused(path), (path,))


def _open_deepseek(path: str, values: dict, config_path: str) -> Checkpoint:
  tensors = read_tensors(path)
  files = read_tokenizer_files(path)
  if 'tokenizer.json' in files:
    image_token_id = special_token_ids(files['tokenizer.json']).image_placeholder
  else:  # DeepSeek's config does not hold it, but an export of ours without a tokenizer does.
    image_token_id = int(values.get('image_token_id', JanusConfig().image_token_id))
  shapes = {name: tensor.shape for name, tensor in tensors.items()}
  config = deepseek_to_janus(values, shapes, image_token_id, config_path)
  unused = {name: tensors.pop(name) for name in list(tensors) if name.startswith(UNUSED_PREFIXES)}
  params = params_from_tensors(parameter_shapes(config), tensors, 'deepseek', path)
  return Checkpoint(config, params, files, unused, (path,))


def _valid_unused(config: JanusConfig, dtype: np.dtype) -> dict[str, LazyArray]:
  """The tensors that only a strict load by DeepSeek's class wants: a pooling head that never runs, a usage buffer."""
  D, F = config.vision_encoder.width, config.vision_encoder.mlp_dim
  shapes = {
    'latent': (1, 1, D),
    **{f'{name}.weight': (rows, D) for name, rows in (('q', D), ('kv', 2 * D), ('proj', D))},
    **{f'{name}.bias': (rows,) for name, rows in (('q', D), ('kv', 2 * D), ('proj', D))},
    'norm.weight': (D,),
    'norm.bias': (D,),
    'mlp.fc1.weight': (F, D),
    'mlp.fc1.bias': (F,),
    'mlp.fc2.weight': (D, F),
    'mlp.fc2.bias': (D,),
  }
  arrays = {UNUSED_PREFIXES[0] + name: np.zeros(shape, dtype) for name, shape in shapes.items()}
  arrays[UNUSED_PREFIXES[0] + 'norm.weight'] += 1
  arrays[UNUSED_PREFIXES[1]] = np.zeros(CODEBOOK_USED_LENGTH, np.float32)
  return {name: from_numpy(array, 'generated') for name, array in arrays.items()}


def _dtype(checkpoint: Checkpoint) -> np.dtype:
  """Dtype of the decoder, which stands for the whole in config files."""
  return checkpoint.params['language_model/final_norm/scale'].dtype


def files_to_write(checkpoint: Checkpoint, format: Format) -> dict[str, dict[str, LazyArray]]:
  """Tensor files of an export: stem ('model', 'params', ...) -> its tensors, in order."""
  if format == 'orbax':
    files = {PARAMS_DIRECTORY: dict(checkpoint.params)}
  else:
    files = {'model': tensors_from_params(checkpoint.params, format)}
  if format == 'deepseek':
    files['model'] |= checkpoint.unused or _valid_unused(checkpoint.config, _dtype(checkpoint))
  elif checkpoint.unused:
    files[UNUSED_STEM] = dict(checkpoint.unused)
  return files


def export_bytes(checkpoint: Checkpoint, format: Format) -> int:
  """Bytes of tensors that an export will hold."""
  if format in peft_files.PEFT_LAYOUTS:
    adapter = checkpoint.adapter
    return sum(array.nbytes for array in (*adapter.factors.values(), *adapter.full.values()))
  return sum(array.nbytes for tensors in files_to_write(checkpoint, format).values() for array in tensors.values())


def write_checkpoint(checkpoint: Checkpoint, directory: str, format: Format, progress: Callable[[int], None]) -> None:
  """Writes every file of an export into an existing empty directory.

  Args:
    checkpoint: what to write; see `cast_params` for another dtype.
    directory: where to; `published` makes it appear whole under its final name.
    format: layout to write; those of peft need a checkpoint that is an adapter.
    progress: called with the number of bytes written since the last call.
  """
  if format in peft_files.PEFT_LAYOUTS:
    layout = peft_files.PEFT_LAYOUTS[format]
    peft_files.write_peft(checkpoint.adapter, parameter_shapes(checkpoint.config), directory, layout, progress)
    return
  config, files, dtype = checkpoint.config, checkpoint.tokenizer_files, _dtype(checkpoint).name
  if format == 'huggingface':
    tokens = special_token_ids(files['tokenizer.json']) if 'tokenizer.json' in files else None
    described = janus_to_huggingface(config, dtype, tokens)
  elif format == 'deepseek':
    described = janus_to_deepseek(config, dtype)
  else:
    described = config_to_dict(config)
  with open(os.path.join(directory, CONFIG_FILE if format == 'orbax' else 'config.json'), 'w') as file:
    json.dump(described, file, indent=2)
  for name, content in tokenizer_files_for(format, files, config).items():
    with open(os.path.join(directory, name), 'wb') as file:
      file.write(content)
  for stem, tensors in files_to_write(checkpoint, format).items():
    if stem == PARAMS_DIRECTORY:
      write_orbax(os.path.join(directory, stem), tensors, progress)
    else:
      # The unused tensors are few and stay in the one file that they are looked for in.
      write_safetensors(directory, stem, tensors, MAX_SHARD_BYTES if stem == 'model' else sys.maxsize, progress)
