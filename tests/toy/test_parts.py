import numpy as np
import pytest

pytest.importorskip('sklearn')

from janus_jax.data.tokenizer import Tokenizer
from janus_jax.toy import parts, shapes, tokenizer_training
from janus_jax.toy.shapes import Object, Scene, World


def test_the_understanding_encoder_is_shown_dense_captions_only(tmp_path):
  path = str(tmp_path / 'tokenizer.json')
  tokenizer_training.train_tokenizer(tokenizer_training.toy_texts(World(), 50), path, 384)
  scenes = [Scene((Object('circle', 'red', size, x, 2),)) for size, x in (('small', 2), ('large', 3), ('small', 4))]
  elements = [{'scene': shapes.encode(scene)} for scene in scenes] + [{'label': 7}]
  captions, true_of = parts._captions(elements, Tokenizer(path))
  said = [Tokenizer(path).decode(row[row >= 0]).strip() for row in captions]
  np.testing.assert_array_equal(true_of.sum(1), 1)
  assert [said[i] for i in true_of.argmax(1)] == [
    'a small red circle',
    'a large red circle',
    'a small red circle',
    'the digit seven',
  ]
  assert len(said) == 3
