"""A judge of generated digits that has nothing to do with Janus: a support vector machine fitted on the training scans,
and a rule, from the same scans, of what is no digit at all.
"""

import dataclasses

import numpy as np

from janus_jax.toy import digits
from janus_jax.toy.shape_judge import MAX_GROUND_ERROR
from janus_jax.toy.shapes import GROUND

# Read where there is no digit.
NONE = -1
# An image is a digit if it is as near to some training scan as this fraction of the scans are to another one: at
# 24 pixels within 33 grey levels (root mean square). Test scans: at most 32, reconstructed by the toy tokenizer 30; 79
# of 80 generated digits 28, a broken one 37. Blank, noise, shapes, two digits: 50 or more; half erased 32 to 65.
NEAR_SCANS = 0.995
# Least strength of the ink, as a multiple of the nearest scan's. Test scans, also reconstructed, and generated digits:
# 0.78 or more. At half the contrast, where a quarter is near enough: 0.68 or less.
MIN_INK = 0.7


@dataclasses.dataclass(frozen=True, eq=False)
class DigitJudge:
  """Tells digits apart, and from what is none. `fit` makes one.

  Attributes:
    classifier: sklearn.svm.SVC on ink.
    scans: float32[n, size * size], ink of the training scans.
    max_distance: largest from the nearest scan, root mean square in grey levels of 0..255.
  """

  classifier: object
  scans: np.ndarray
  max_distance: float

  @classmethod
  def fit(cls, size: int) -> 'DigitJudge':
    """Fits on the training split at `size` pixels, in about a second.

    Raises:
      InputError: scikit-learn is not installed.
    """
    images, labels = digits.load_digits(size, 'train')
    scans = _ink(images)
    apart = _squared_distances(scans, scans)
    np.fill_diagonal(apart, np.inf)
    limit = np.quantile(np.sqrt(apart.min(1) / scans.shape[1]), NEAR_SCANS)
    classifier = digits.import_sklearn('svm').SVC(C=10.0)
    return cls(classifier.fit(scans / 255, labels), scans, float(limit))

  def predict(self, images: np.ndarray) -> np.ndarray:
    """uint8[n, size, size, 3] to int64[n] digits, NONE where an image shows none."""
    ink = _ink(images)
    apart = _squared_distances(ink, self.scans)
    nearest = self.scans[apart.argmin(1)]
    # Scans have no colour, so what an image has of it adds to its distance in all channels.
    distance = np.sqrt(apart.min(1) / ink.shape[1] + images.var(-1, dtype=np.float32).mean((1, 2)))
    strength = (ink * nearest).sum(1) / (nearest**2).sum(1)
    is_digit = (distance <= self.max_distance) & (strength >= MIN_INK) & (_margin_error(images) <= MAX_GROUND_ERROR)
    return np.where(is_digit, self.classifier.predict(ink / 255), NONE)


def _ink(images: np.ndarray) -> np.ndarray:
  """float32[n, size * size]: by how many grey levels each pixel is darker than the ground."""
  return GROUND - images.mean(-1, dtype=np.float32).reshape(len(images), -1)


def _squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
  """float32[n, d] and float32[m, d] to float32[n, m]."""
  squares = (first**2).sum(1)[:, None] + (second**2).sum(1) - 2 * first @ second.T
  return squares.clip(0)


def _margin_error(images: np.ndarray) -> np.ndarray:
  """float32[n], root mean square over the margin, which is bare ground in every scan."""
  size = images.shape[1]
  margin = round(size * digits.MARGIN)
  bare = np.ones((size, size), bool)
  bare[margin : size - margin, margin : size - margin] = False
  return np.sqrt(((images[:, bare].astype(np.float32) - GROUND) ** 2).mean((1, 2)))
