import numpy as np
import pytest

pytest.importorskip('sklearn')

from janus_jax.data.tokenizer import Tokenizer
from janus_jax.toy import dataset, parts, shapes, tokenizer_training
from janus_jax.toy.digits import load_digits
from janus_jax.toy.scenes import render_crowds
from janus_jax.toy.shapes import Object, Scene, World


def test_the_understanding_encoder_is_shown_dense_captions_and_near_misses_only(tmp_path):
  path = str(tmp_path / 'tokenizer.json')
  world = World()
  tokenizer_training.train_tokenizer(tokenizer_training.toy_texts(world, 50), path, 384)
  scenes = [Scene((Object('square', 'red', size, x, 2),)) for size, x in (('small', 2), ('large', 3), ('small', 4))]
  elements = [{'scene': shapes.encode(scene)} for scene in scenes] + [{'label': 7}]
  captions, (true, wrong) = parts._captions(world, elements, Tokenizer(path))
  said = np.array([Tokenizer(path).decode(row[row >= 0]).strip() for row in captions])
  assert said[true].tolist() == ['a small red square', 'a large red square', 'a small red square', 'the digit seven']
  assert wrong.shape == (4, parts.NEAR_MISSES)
  for element, found in zip(elements, said[wrong].tolist()):
    assert set(found) <= set(dataset.near_misses(world, element))
  assert len(set(said)) == len(said)
  assert set(said) == {*said[true], *said[wrong].ravel()}


def some_scenes(count: int) -> dict:
  scenes = [Scene((Object('square', 'red', 'small', 2 + i % 3, 2),)) for i in range(count)]
  return {'shapes': [{'scene': shapes.encode(scene)} for scene in scenes]}


def test_the_tokenizer_is_shown_crowds_scenes_and_digits():
  world, elements = World(), some_scenes(8)
  found = parts._tokenizer_images(world, elements, (24,), 4, np.random.default_rng(0))
  rng = np.random.default_rng(0)
  crowds = render_crowds(world, 8, rng)
  digits = load_digits(24, 'train')[0]
  shown = shapes.render_encoded(world, np.stack([element['scene'] for element in elements['shapes'][:4]]))
  np.testing.assert_array_equal(found, [*crowds, *shown, *digits[rng.integers(len(digits), size=4)]])


def test_canvases_of_several_sizes_have_cells_as_images_have_them():
  found = parts._tokenizer_images(World(), some_scenes(240), (24, 32, 48), 4, np.random.default_rng(0))
  assert found.shape == (3 * 40, 48, 48, 3)
  # Images whose cells are all of one value of their own.
  images = np.arange(8 * 64, dtype=np.uint16).reshape(8, 8, 8).repeat(4, 1).repeat(4, 2)[..., None].repeat(3, -1)
  canvases = parts._canvases(images, 2, 48, 4, np.random.default_rng(0))
  assert canvases.shape == (2, 48, 48, 3)
  cells = canvases.reshape(2, 12, 4, 12, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2 * 144, -1)
  assert (cells == cells[:, :1]).all()
  assert len(set(cells[:, 0])) == 2 * 144  # None is shown twice.
  shown = [set(canvas) for canvas in (cells[:, 0] // 64).reshape(2, -1)]
  assert max(map(max, shown)) - min(map(min, shown)) > 4
  assert all(max(canvas) - min(canvas) > 3 for canvas in shown)  # Images from all over, not those that lie together.
