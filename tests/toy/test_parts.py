import numpy as np
import pytest

pytest.importorskip('sklearn')

from janus_jax.data.tokenizer import Tokenizer
from janus_jax.toy import dataset, parts, shapes, tokenizer_training
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
