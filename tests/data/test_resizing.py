"""The fast resize against Pillow's, which is the reference."""

import importlib.util

import numpy as np
import pytest
from data.photographs import cuts
from PIL import Image

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
def test_any_size_and_part_of_noise():
  """Against Pillow's filter along rows, then along columns: which comes first is Pillow's to choose in one call."""
  rng = np.random.default_rng(1)
  for trial in range(60):
    height, width, new_height, new_width = map(int, rng.integers(1, 150, 4))
    image = noise(height, width, trial)
    left, top = int(rng.integers(width)), int(rng.integers(height))
    box = (left, top, int(rng.integers(left + 1, width + 1)), int(rng.integers(top + 1, height + 1)))
    for part in (None, box):
      left, top, right, bottom = part or (0, 0, width, height)
      narrow = Image.fromarray(resizing.pillow(image, (new_width, height), (left, 0, right, height)))
      expected = resizing.pillow(narrow, (new_width, new_height), (0, top, new_width, bottom))
      # Few values on few pixels: one of them is a large share.
      assert_nearly_equal(resizing.fast(image, (new_width, new_height), part), expected, 0.02 + 2 / expected.size)


@needs_fast
def test_the_size_that_it_has_changes_nothing():
  image = noise(30, 40)
  np.testing.assert_array_equal(resizing.fast(image, image.size), np.asarray(image))


@needs_fast
def test_both_encoders_pixels_can_be_made_with_it():
  photo = noise(427, 640)
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
