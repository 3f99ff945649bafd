"""The directory of a refiner: diffusers reads what we write and we read what it writes; wrong ones are named."""

import dataclasses
import json
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from janus_jax.conversion.refiner_files import StoredRefiner, check_vq, read_refiner, vq_digest, write_refiner
from janus_jax.errors import InputError
from janus_jax.models.config import ComputeConfig
from janus_jax.models.refiner import Refiner, RefinerConfig, abstract_params

CONFIG = RefinerConfig(code_dim=5, block_out_channels=(8, 16, 24), layers_per_block=2, norm_num_groups=4, flow_steps=3)
SIDE = 16
WEIGHTS = 'diffusion_pytorch_model.safetensors'


def random_params(config: RefinerConfig) -> dict:
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), abstract_params(config))


@pytest.fixture(scope='module')
def stored() -> StoredRefiner:
  return StoredRefiner(dataclasses.replace(CONFIG, residual_std=0.125), random_params(CONFIG), 'd1ce')


@pytest.fixture
def directory(stored, tmp_path) -> pathlib.Path:
  write_refiner(stored, str(tmp_path))
  return tmp_path


def test_what_is_written_is_read_to_the_bit(stored, directory):
  found = read_refiner(str(directory))
  assert (found.config, found.vq) == (stored.config, 'd1ce')
  jax.tree.map(np.testing.assert_array_equal, found.params, stored.params)


def test_diffusers_computes_the_same_in_both_directions(stored, directory, tmp_path):
  torch = pytest.importorskip('torch')
  diffusers = pytest.importorskip('diffusers')
  inputs = np.random.default_rng(1).normal(size=(2, SIDE, 2 * SIDE, CONFIG.in_channels)).astype(np.float32)
  times = np.array([0.3, 0.77], np.float32)
  network = Refiner(CONFIG, ComputeConfig())

  def difference(model, params) -> float:
    with torch.no_grad():
      theirs = model(torch.tensor(inputs.transpose(0, 3, 1, 2)), torch.tensor(1000 * times)).sample.numpy()
    ours = jax.jit(network.apply)({'params': params}, inputs, times)
    return np.abs(np.asarray(ours) - theirs.transpose(0, 2, 3, 1)).max()

  model, report = diffusers.UNet2DModel.from_pretrained(directory, output_loading_info=True)
  assert not any(report.values())
  assert difference(model, stored.params) < 1e-5
  # And back: other weights, saved by diffusers, which keeps our key.
  with torch.no_grad():
    for tensor in model.parameters():
      tensor.add_(0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)))
  model.save_pretrained(tmp_path / 'theirs')
  found = read_refiner(str(tmp_path / 'theirs'))
  assert found.config == stored.config
  assert difference(model, found.params) < 1e-5


def change(directory: pathlib.Path, **fields) -> None:
  path = directory / 'config.json'
  path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'_class_name': 'AutoencoderKL'}, "_class_name is 'AutoencoderKL': expected 'UNet2DModel'"),
    ({'add_attention': True}, 'add_attention is True: expected False'),
    ({'_janus_jax': None}, '_janus_jax.code_dim is missing: expected what janus_jax.pretrain writes'),
    ({'norm_num_groups': 3}, 'block_out_channels is [8, 16, 24]: expected even multiples of norm_num_groups, which is'),
    ({'in_channels': 9}, 'in_channels is 9: expected 11'),
    ({'down_block_types': ['DownBlock2D'] * 2}, "down_block_types is ['DownBlock2D', 'DownBlock2D']: expected ["),
    ({'layers_per_block': 'two'}, "layers_per_block is 'two': expected a whole number above 0"),
  ],
)
def test_a_network_of_another_kind_is_refused(directory, fields, message):
  change(directory, **fields)
  with pytest.raises(InputError) as error:
    read_refiner(str(directory))
  assert str(error.value).startswith(f'{directory}/config.json: {message}')


def edit(directory: pathlib.Path, **tensors) -> None:
  """Replaces tensors; None removes one."""
  path = directory / WEIGHTS
  found = safetensors.numpy.load_file(path)
  found |= {name.replace('__', '.'): tensor for name, tensor in tensors.items()}
  safetensors.numpy.save_file({name: tensor for name, tensor in found.items() if tensor is not None}, path)


@pytest.mark.parametrize(
  ('tensors', 'message'),
  [
    ({'conv_in__bias': None}, "lacks tensor 'conv_in.bias'"),
    ({'conv_in__bias': np.zeros(9, np.float32)}, 'conv_in.bias is of shape [9]: expected [8]'),
    ({'extra__bias': np.zeros(9, np.float32)}, "has tensor 'extra.bias': expected none of that name"),
  ],
)
def test_weights_that_do_not_fit_are_named(directory, tensors, message):
  edit(directory, **tensors)
  with pytest.raises(InputError) as error:
    read_refiner(str(directory))
  assert str(error.value) == f'{directory}/{WEIGHTS}: {message}'


def test_missing_files_are_named(directory, tmp_path):
  with pytest.raises(InputError, match=r'nowhere: no such directory: expected a refiner'):
    read_refiner(str(tmp_path / 'nowhere'))
  (directory / WEIGHTS).unlink()
  with pytest.raises(InputError, match=f'{WEIGHTS}: no such file'):
    read_refiner(str(directory))
  (directory / 'config.json').unlink()
  with pytest.raises(InputError, match=r'config\.json: no such file'):
    read_refiner(str(directory))


def test_a_refiner_of_another_vq_is_refused(stored):
  arrays = {'vq/codebook': np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)}
  own = dataclasses.replace(stored, vq=vq_digest(arrays))
  check_vq(own, 'refiner', arrays, (8, 8))
  # The same VQ in bfloat16.
  check_vq(own, 'refiner', {name: array.astype(ml_dtypes.bfloat16) for name, array in arrays.items()}, (8, 8))
  with pytest.raises(InputError, match=r'refiner: was trained for the VQ [0-9a-f]{12}: expected [0-9a-f]{12}, the'):
    check_vq(own, 'refiner', {'vq/codebook': arrays['vq/codebook'] + 0.1}, (8, 8))
  with pytest.raises(InputError, match='refiner: code_dim is 5: expected 6, as the VQ has it'):
    check_vq(own, 'refiner', {'vq/codebook': np.zeros((4, 6))}, (8, 8))
  with pytest.raises(InputError, match='refiner: refined images of 10 pixels: expected a multiple of 4'):
    check_vq(own, 'refiner', arrays, (8, 5))
