"""Codes computed before a run: those that the step would compute, kept where a resumed run finds them."""

import jax
import numpy as np
import pytest

from janus_jax.models.config import ComputeConfig, VQConfig
from janus_jax.models.janus import normalize_pixels
from janus_jax.models.vq import VQ
from janus_jax.runs import image_codes

CONFIG = VQConfig(8, codebook_size=16, z_channels=32, base_channels=32, channel_multipliers=(1, 1), num_res_blocks=1)


@pytest.fixture(scope='module')
def params() -> dict:
  return VQ(CONFIG, ComputeConfig()).init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))['params']


def random_images(count: int) -> list[np.ndarray]:
  return list(np.random.default_rng(0).integers(256, size=(count, 8, 8, 3), dtype=np.uint8))


def test_codes_are_those_of_the_tokenizer_whatever_the_batch(params, tmp_path):
  images = random_images(image_codes.BATCH + 3)  # The last batch is filled up.
  codes = image_codes.stored_codes(str(tmp_path), 'some', lambda: images, image_codes.image_encoder(CONFIG, params))
  normal = [normalize_pixels(jax.numpy.asarray(image[None])) for image in images[-5:]]
  one_by_one = [VQ(CONFIG, ComputeConfig()).apply({'params': params}, image, method='encode')[0] for image in normal]
  assert codes.shape == (len(images), 16)
  np.testing.assert_array_equal(codes[-5:], one_by_one)
  assert len(np.unique(codes)) > 4


def test_a_file_that_is_there_is_used(params, tmp_path):
  images = random_images(3)
  codes = image_codes.stored_codes(str(tmp_path), 'some', lambda: images, image_codes.image_encoder(CONFIG, params))

  def fail(*_):
    raise AssertionError('encoded again')

  np.testing.assert_array_equal(image_codes.stored_codes(str(tmp_path), 'some', fail, fail), codes)
  with pytest.raises(AssertionError, match='encoded again'):
    image_codes.stored_codes(str(tmp_path), 'other', lambda: images, fail)
  # A computation that failed leaves nothing to be taken for codes.
  assert [path.name for path in (tmp_path / image_codes.DIRECTORY).iterdir()] == ['some.npy']
