"""Refined images: independent of their batch and order, each with noise of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.inference.generation import GeneratedImage
from janus_jax.inference.refining import ImageRefiner, noise_key, refine_stream
from janus_jax.inference.sampling import row_key
from janus_jax.models.refiner import RefinerConfig, abstract_params

CONFIG = RefinerConfig(code_dim=4, block_out_channels=(8, 16), norm_num_groups=4, flow_steps=2, residual_std=0.3)


@pytest.fixture(scope='module')
def refiner() -> ImageRefiner:
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), abstract_params(CONFIG))
  return ImageRefiner(CONFIG, params, rng.normal(size=(16, 4)).astype(np.float32))


@pytest.fixture(scope='module')
def images() -> list[GeneratedImage]:
  rng = np.random.default_rng(1)
  pixels, codes = rng.integers(0, 256, (4, 8, 8, 3)).astype(np.uint8), rng.integers(0, 16, (4, 4)).astype(np.int32)
  return [GeneratedImage(i // 2, i % 2, codes[i], pixels[i]) for i in range(4)]


def test_an_image_does_not_depend_on_others(refiner, images):
  found = list(refine_stream(refiner, images, seed=3))
  again = list(refine_stream(refiner, images[:0:-1], seed=3))
  for one, other, image in zip(found[:0:-1], again, images[:0:-1]):
    np.testing.assert_array_equal(one.pixels, other.pixels)
    np.testing.assert_array_equal(one.codes, image.codes)
    assert (one.prompt_index, one.image_index) == (image.prompt_index, image.image_index)
    assert (one.pixels.shape, one.pixels.dtype) == ((16, 16, 3), np.uint8)
  assert (found[0].pixels != next(refine_stream(refiner, images[:1], seed=4)).pixels).any()


def test_a_batch_is_refined_as_its_images_are(refiner, images):
  keys = jnp.stack([noise_key(3, image.prompt_index, image.image_index) for image in images])
  together = refiner.refine(np.stack([i.pixels for i in images]), np.stack([i.codes for i in images]), keys)
  alone = np.stack([image.pixels for image in refine_stream(refiner, images, seed=3)])
  assert np.abs(together.astype(int) - alone).max() <= 1  # Rounding depends on the size of a batch.


def test_noise_is_of_each_image_and_not_that_of_its_codes():
  keys = [noise_key(0, 0, 0), noise_key(0, 0, 1), noise_key(0, 1, 0), noise_key(1, 0, 0), row_key(0, 0, 0)]
  assert len({tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in keys}) == 5
