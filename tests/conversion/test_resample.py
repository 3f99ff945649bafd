"""Positions resampled to another image size, against transformers' own interpolation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('transformers')

import reference  # noqa: E402
from conversion.checkpoints import TINY, huggingface_directory  # noqa: E402

import janus_jax  # noqa: E402
from janus_jax.errors import InputError  # noqa: E402
from janus_jax.models.config import ComputeConfig  # noqa: E402
from janus_jax.models.siglip import Siglip, resample_positions  # noqa: E402


@pytest.mark.parametrize('size', [16, 40, 64, 24])
def test_tower_on_another_image_size_is_transformers(tmp_path, size):
  """`interpolate_pos_encoding=True` of the reference, larger and smaller than the size of the checkpoint (32)."""
  tower = reference.huggingface_model(TINY).model.vision_model
  pixels = np.random.default_rng(0).normal(size=(1, size, size, 3)).astype(np.float32)
  with torch.no_grad():
    expected = tower(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), interpolate_pos_encoding=True)
  params = dict(reference.our_params(TINY)['vision_encoder'])
  config = dataclasses.replace(TINY.vision_encoder, image_size=size)
  params['pos_embed'] = resample_positions(np.asarray(params['pos_embed']), config.grid)
  ours = jax.jit(Siglip(config, ComputeConfig()).apply)({'params': params}, pixels)
  assert reference.difference(ours, expected.last_hidden_state) < 1e-5


def test_load_at_another_size(tmp_path):
  directory = huggingface_directory(tmp_path / 'source')
  janus = janus_jax.load(directory, image_size=64)
  config, params = janus.config, janus.params
  assert config.vision_encoder.image_size == config.vq.image_size == 64
  table = params['vision_encoder']['pos_embed']
  assert table.shape == (64, TINY.vision_encoder.width)
  same = janus_jax.load(directory).params
  np.testing.assert_allclose(table, resample_positions(np.asarray(same['vision_encoder']['pos_embed']), 8), atol=1e-6)
  jax.tree.map(np.testing.assert_array_equal, params['language_model'], same['language_model'])
  with pytest.raises(InputError, match='image_size is 36: expected a multiple of 8'):
    janus_jax.load(directory, image_size=36)


def test_bfloat16_tables_are_resampled_in_float32():
  table = np.random.default_rng(0).normal(size=(16, 8)).astype(jnp.bfloat16)
  result = resample_positions(table, 6)
  assert result.dtype == jnp.bfloat16
  exact = resample_positions(table.astype(np.float32), 6)
  np.testing.assert_array_equal(result, exact.astype(jnp.bfloat16))
