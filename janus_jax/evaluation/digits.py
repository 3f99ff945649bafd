"""A judge of drawn digits that has nothing to do with Janus: a support vector machine fitted on the training scans."""

import dataclasses

import numpy as np

from janus_jax.data.worlds import digits


@dataclasses.dataclass(frozen=True)
class DigitJudge:
  """Tells digits apart. `fit` makes one."""

  classifier: object  # sklearn.svm.SVC

  @classmethod
  def fit(cls, size: int) -> 'DigitJudge':
    """Fits on the training split at `size` pixels, in about a second.

    Raises:
      InputError: scikit-learn is not installed.
    """
    images, labels = digits.load(size, 'train')
    classifier = digits.import_sklearn('svm').SVC(C=10.0)
    return cls(classifier.fit(_features(images), labels))

  def predict(self, images: np.ndarray) -> np.ndarray:
    """uint8[n, size, size, 3] to int64[n] digits."""
    return self.classifier.predict(_features(images))


def _features(images: np.ndarray) -> np.ndarray:
  """Grey levels float32[n, size * size] in [0, 1]."""
  return images.mean(-1, dtype=np.float32).reshape(len(images), -1) / 255
