"""The directory of a refiner, which `diffusers.UNet2DModel.from_pretrained` opens too.

`config.json` says what diffusers needs to build the network. Under a key that begins with an underscore, and which it
therefore passes over, stands what it has no name for: how the network is used, and the VQ that it was trained for. The
weights are in `diffusion_pytorch_model.safetensors`, named and laid out as PyTorch has them: output channels first.
"""

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import ml_dtypes
import numpy as np

from janus_jax.conversion.config_section import ConfigSection, read_json, written_section
from janus_jax.conversion.lazy import from_numpy
from janus_jax.conversion.safetensors_files import read_safetensors, write_safetensors
from janus_jax.data.sources.manifest import parameters_hash
from janus_jax.errors import InputError
from janus_jax.models.refiner import CHANNELS, NORM_EPSILON, RefinerConfig, abstract_params

CONFIG, WEIGHTS = 'config.json', 'diffusion_pytorch_model'
CLASS = 'UNet2DModel'
OWN = '_janus_jax'  # Key of config.json.
NAMES = {name: name for name in ('block_out_channels', 'layers_per_block', 'norm_num_groups')}
OWN_NAMES = {name: name for name in ('code_dim', 'scale', 'flow_steps', 'residual_std')}
# What the network is beside its sizes; an absent field counts as this.
FIXED: Mapping[str, Any] = {
  'act_fn': 'silu',
  'add_attention': False,
  'center_input_sample': False,
  'class_embed_type': None,
  'downsample_padding': 1,
  'downsample_type': 'conv',
  'dropout': 0.0,
  'flip_sin_to_cos': True,
  'freq_shift': 0,
  'mid_block_scale_factor': 1,
  'mid_block_type': 'UNetMidBlock2D',
  'norm_eps': NORM_EPSILON,
  'num_class_embeds': None,
  'out_channels': CHANNELS,
  'resnet_time_scale_shift': 'default',
  'time_embedding_dim': None,
  'time_embedding_type': 'positional',
  'upsample_type': 'conv',
}
# Modules that PyTorch keeps in lists: 'down_blocks_0/resnets_1' here, 'down_blocks.0.resnets.1' there.
_LISTED = re.compile(r'\b((?:down_block|up_block|resnet|downsampler|upsampler)s)_(\d+)\b')


@dataclasses.dataclass(frozen=True)
class StoredRefiner:
  """A refiner as it is stored.

  Attributes:
    config: sizes.
    params: float32 tree of `models.refiner.Refiner`.
    vq: `vq_digest` of the VQ whose images it refines.
  """

  config: RefinerConfig
  params: dict[str, Any]
  vq: str


def vq_digest(arrays: Mapping[str, np.ndarray]) -> str:
  """Tells a VQ from others, by its parameters {'vq/codebook': array, ...} rounded to bfloat16: a checkpoint in float32
  and its export in bfloat16 have one.
  """
  return parameters_hash({path: np.asarray(array, ml_dtypes.bfloat16) for path, array in arrays.items()})


def check_vq(refiner: StoredRefiner, directory: str, arrays: Mapping[str, np.ndarray], shape: tuple[int, int]) -> None:
  """Raises InputError where a refiner was trained for another VQ than that of `arrays` (as `vq_digest` takes them), or
  cannot take its images of `shape`, height and width in pixels.
  """
  width = arrays['vq/codebook'].shape[1]
  if refiner.config.code_dim != width:
    raise InputError(f'{directory}: code_dim is {refiner.config.code_dim}: expected {width}, as the VQ has it')
  if refiner.vq != (expected := vq_digest(arrays)):
    found = f'was trained for the VQ {refiner.vq[:12]}'
    raise InputError(f"{directory}: {found}: expected {expected[:12]}, the checkpoint's, or a refiner of that one")
  try:
    for side in shape:
      refiner.config.check_size(side)
  except InputError as error:
    raise InputError(f'{directory}: {error}') from None


def write_refiner(refiner: StoredRefiner, directory: str) -> None:
  """Writes both files into an existing directory. Raises OSError where it cannot be written."""
  config, levels = refiner.config, len(refiner.config.block_out_channels)
  fixed = {
    **FIXED,
    '_class_name': CLASS,
    'in_channels': config.in_channels,
    'down_block_types': ['DownBlock2D'] * levels,
    'up_block_types': ['UpBlock2D'] * levels,
    OWN: written_section(config, OWN_NAMES, {'vq': refiner.vq}),
  }
  with open(os.path.join(directory, CONFIG), 'w', encoding='utf-8') as file:
    file.write(json.dumps(written_section(config, NAMES, fixed), indent=2) + '\n')
  flat = flax.traverse_util.flatten_dict(refiner.params, sep='/')
  tensors = {_tensor_name(path): _to_torch(path, np.asarray(leaf, np.float32)) for path, leaf in sorted(flat.items())}
  arrays = {name: from_numpy(tensor, name) for name, tensor in tensors.items()}
  # One file, whatever its size: diffusers names shards otherwise than transformers.
  write_safetensors(directory, WEIGHTS, arrays, sum(array.nbytes for array in arrays.values()) + 1, lambda _: None)


def read_refiner(directory: str) -> StoredRefiner:
  """Reads a refiner, its weights as float32.

  Raises:
    InputError: no such directory, a file that is missing or damaged, a network of another kind, weights of other names
      or shapes than the config says.
  """
  if not os.path.isdir(directory):
    raise InputError(f'{directory}: no such directory: expected a refiner, as janus_jax.pretrain makes it')
  path = os.path.join(directory, CONFIG)
  config, vq = _read_config(ConfigSection(read_json(path), path))
  path = os.path.join(directory, f'{WEIGHTS}.safetensors')
  tensors = read_safetensors(path)
  flat = {}
  for name, leaf in flax.traverse_util.flatten_dict(abstract_params(config), sep='/').items():
    tensor, shape = tensors.pop(_tensor_name(name), None), _to_torch(name, np.broadcast_to(0, leaf.shape)).shape
    if tensor is None:
      raise InputError(f'{path}: lacks tensor {_tensor_name(name)!r}')
    if tensor.shape != shape:
      raise InputError(f'{path}: {_tensor_name(name)} is of shape {list(tensor.shape)}: expected {list(shape)}')
    flat[name] = np.ascontiguousarray(_from_torch(name, tensor[...].astype(np.float32)))
  if tensors:
    raise InputError(f'{path}: has tensor {min(tensors)!r}: expected none of that name')
  return StoredRefiner(config, flax.traverse_util.unflatten_dict(flat, sep='/'), vq)


def _read_config(section: ConfigSection) -> tuple[RefinerConfig, str]:
  """The sizes and the digest of the VQ."""
  section.require('_class_name', CLASS)
  section.allow(FIXED)
  own = section.section(OWN)
  for name in (*OWN_NAMES, 'vq'):
    if own.values.get(name) is None:
      raise own.error(name, 'what janus_jax.pretrain writes')
  if not isinstance(own.values['vq'], str):
    raise own.error('vq', 'the digest of a VQ')
  defaults = RefinerConfig(code_dim=1)
  sizes = section.fields(NAMES, defaults) | own.fields(OWN_NAMES, defaults)
  try:
    config = RefinerConfig(**sizes)
  except InputError as error:
    raise InputError(f'{section.source}: {error}') from None
  section.require('in_channels', config.in_channels)
  for name, kind in (('down_block_types', 'DownBlock2D'), ('up_block_types', 'UpBlock2D')):
    section.require(name, [kind] * len(config.block_out_channels))
  return config, own.values['vq']


def _tensor_name(path: str) -> str:
  """'down_blocks_0/resnets_0/norm1/scale' -> 'down_blocks.0.resnets.0.norm1.weight'."""
  module, _, leaf = _LISTED.sub(r'\1.\2', path).replace('/', '.').rpartition('.')
  return f'{module}.{"bias" if leaf == "bias" else "weight"}'


def _to_torch(path: str, array: np.ndarray) -> np.ndarray:
  """A kernel of a convolution [h, w, in, out] as [out, in, h, w]; all others are alike."""
  return array.transpose(3, 2, 0, 1) if _is_conv(path, array) else array


def _from_torch(path: str, array: np.ndarray) -> np.ndarray:
  return array.transpose(2, 3, 1, 0) if _is_conv(path, array) else array


def _is_conv(path: str, array: np.ndarray) -> bool:
  return path.endswith('/kernel') and array.ndim == 4
