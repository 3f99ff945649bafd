"""Codes computed before a run: those that the step would compute, kept where a run taken up again finds them."""

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


def pictures(count: int) -> list[np.ndarray]:
  return list(np.random.default_rng(0).integers(256, size=(count, 8, 8, 3), dtype=np.uint8))


def test_codes_are_those_of_the_tokenizer_whatever_the_batch(params, tmp_path):
  images = pictures(image_codes.BATCH + 3)  # The last batch is filled up.
  codes = image_codes.stored_codes(str(tmp_path), 'some', lambda: images, image_codes.image_encoder(CONFIG, params))
  apply = lambda image: VQ(CONFIG, ComputeConfig()).apply({'params': params}, image, method='encode')  # noqa: E731
  one_by_one = [apply(normalize_pixels(image[None]))[0] for image in map(jax.numpy.asarray, images[-5:])]
  assert codes.shape == (len(images), 16)
  np.testing.assert_array_equal(codes[-5:], one_by_one)
  assert len(np.unique(codes)) > 4


def test_a_file_that_is_there_is_used(params, tmp_path):
  images = pictures(3)
  codes = image_codes.stored_codes(str(tmp_path), 'some', lambda: images, image_codes.image_encoder(CONFIG, params))

  def fail(*_):
    raise AssertionError('encoded again')

  np.testing.assert_array_equal(image_codes.stored_codes(str(tmp_path), 'some', fail, fail), codes)
  with pytest.raises(AssertionError, match='encoded again'):
    image_codes.stored_codes(str(tmp_path), 'other', lambda: images, fail)
  # A computation that failed leaves nothing to be taken for codes.
  assert [path.name for path in (tmp_path / image_codes.DIRECTORY).iterdir()] == ['some.npy']
