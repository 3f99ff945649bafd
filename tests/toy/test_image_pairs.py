"""Images of the toy world at two sizes."""

import numpy as np
import pytest

pytest.importorskip('sklearn')

from janus_jax.toy import scenes
from janus_jax.toy.dataset import ENDLESS
from janus_jax.toy.image_pairs import DIGIT_ONE_IN, PairedImages
from janus_jax.toy.shapes import World, render_scene

WORLD = World(num_train=0, num_test=20, num_held_out=20)


@pytest.mark.parametrize('split', ['train', 'test'])
def test_both_sizes_show_the_same(split):
  images = PairedImages(WORLD, 2, split)
  for index in range(2 * DIGIT_ONE_IN):
    pair = images[index]
    assert (pair['small'].shape, pair['large'].shape) == ((24, 24, 3), (48, 48, 3))
    # Each pixel is nearly the mean of four. Two scenes differ by 5 levels on average, or more.
    mean = pair['large'].reshape(24, 2, 24, 2, 3).mean((1, 3))
    assert np.abs(mean - pair['small']).mean() < 2


def test_scenes_are_those_of_their_split():
  assert len(PairedImages(WORLD, 2, 'train')) == ENDLESS
  images = PairedImages(WORLD, 3, 'test', 7)
  assert len(images) == 7
  scene = scenes.scene_at(WORLD, 'test', 5)
  np.testing.assert_array_equal(images[5]['small'], render_scene(WORLD, [scene])[0])
  scene = scenes.scene_at(WORLD, scenes.DRAWN, 5)
  np.testing.assert_array_equal(PairedImages(WORLD, 2, 'train')[5]['small'], render_scene(WORLD, [scene])[0])
