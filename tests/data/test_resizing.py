"""The fast resize against Pillow's, which is the reference."""

import importlib.util

import numpy as np
import pytest
from data.photographs import cuts
from PIL import Image
from sklearn.datasets import load_sample_images

from janus_jax.data import images, resizing
from janus_jax.errors import InputError

needs_fast = pytest.mark.skipif(importlib.util.find_spec('cykooz_resizer') is None, reason='cykooz_resizer is missing')


def noise(height, width, seed=0):
  """The hardest case: every value is far from its neighbours."""
  return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def assert_nearly_equal(found, expected, share=0.01):
  difference = np.abs(found.astype(int) - expected)
  assert found.dtype == np.uint8
  assert difference.max() <= 2
  assert (difference > 0).mean() < share


@needs_fast
@pytest.mark.parametrize('number', range(4))
def test_photographs_differ_by_a_level_in_few_places(number):
  photo = cuts(4)[number]
  for size in ((photo.width // 3, photo.height // 3), (photo.width * 2, photo.height), (photo.width, 90)):
    assert_nearly_equal(resizing.fast(photo, size), resizing.pillow(photo, size))


@needs_fast
@pytest.mark.parametrize('width', [640, 427, 300, 150], ids=lambda width: f'{width} x 427')
@pytest.mark.parametrize('make', [images.understanding_pixels, images.generation_pixels])
def test_photographs_of_any_format_differ_by_a_level_in_few_places(make, width):
  """Landscape, square, portrait, and much higher than wide."""
  for photo in load_sample_images().images:
    image = Image.fromarray(photo[:, :width])
    assert_nearly_equal(make(image, 200, resize=resizing.fast), make(image, 200), share=0.005)


@needs_fast
def test_any_size_and_part_of_noise():
  rng = np.random.default_rng(1)
  for trial in range(120):
    height, width, new_height, new_width = map(int, rng.integers(1, 150, 4))
    image = noise(height, width, trial)
    left, top = int(rng.integers(width)), int(rng.integers(height))
    box = (left, top, int(rng.integers(left + 1, width + 1)), int(rng.integers(top + 1, height + 1)))
    for part in (None, box):
      expected = resizing.pillow(image, (new_width, new_height), part)
      # Few values on few pixels: one of them is a large share.
      assert_nearly_equal(resizing.fast(image, (new_width, new_height), part), expected, 0.02 + 2 / expected.size)


def test_older_pillows_begin_with_rows():
  sizes = (60, 200), (50, 50)
  assert resizing.columns_first(*sizes, '13.0.0')
  assert not resizing.columns_first(*sizes, '12.2.0')
  assert not resizing.columns_first((60, 60), (50, 50), '13.0.0')


@needs_fast
def test_the_size_that_it_has_changes_nothing():
  image = noise(30, 40)
  np.testing.assert_array_equal(resizing.fast(image, image.size), np.asarray(image))


@needs_fast
def test_both_encoders_pixels_can_be_made_with_it():
  for photo in (noise(427, 640), noise(640, 427), noise(640, 200)):
    for make in (images.understanding_pixels, images.generation_pixels):
      fast = make(photo, 96, resize=resizing.fast)
      assert_nearly_equal(fast, make(photo, 96))
      assert not np.array_equal(fast, make(photo, 96))  # It was used.


def test_what_is_asked_for_is_there(monkeypatch):
  assert resizing.find_resize('pillow') is resizing.pillow
  with pytest.raises(InputError, match=r"data\.resize is 'quick': expected one of fast, pillow"):
    resizing.find_resize('quick')
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(InputError, match='needs cykooz_resizer'):
    resizing.find_resize('fast')
