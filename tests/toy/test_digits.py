import sys

import numpy as np
import pytest

from janus_jax.errors import InputError
from janus_jax.toy import digits


def _keys(images, labels):
  return sorted((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True))


def test_splits_are_all_scans_once():
  datasets = pytest.importorskip('sklearn.datasets')
  (train, train_labels), (test, test_labels) = digits.load_digits(24, 'train'), digits.load_digits(24, 'test')
  assert (len(train), len(test)) == (1437, 360)
  scans = datasets.load_digits()
  everything = digits.render_scans(scans.images, 24)
  assert _keys(np.concatenate([train, test]), [*train_labels, *test_labels]) == _keys(everything, scans.target)
  assert not {image.tobytes() for image in train} & {image.tobytes() for image in test}
  assert set(test_labels) == set(range(10))


@pytest.mark.parametrize('size', [24, 32])
def test_digits_are_dark_on_the_ground_of_the_shapes(size):
  scan = np.zeros((1, 8, 8))
  scan[0, 2:6, 3:5] = 16
  (image,) = digits.render_scans(scan, size)
  assert image.shape == (size, size, 3)
  assert image.dtype == np.uint8
  assert (image[0] == 242).all()
  assert (image[:, -1] == 242).all()
  assert abs(int(image[size // 2, size // 2, 0]) - 30) < 10


def test_phrase():
  assert digits.phrase(7) == 'the digit seven'


def test_missing_sklearn_names_the_command(monkeypatch):
  monkeypatch.setitem(sys.modules, 'sklearn', None)
  monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)
  with pytest.raises(InputError, match='pip install scikit-learn'):
    digits.load_digits(24, 'train')
