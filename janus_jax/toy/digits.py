"""scikit-learn's handwritten digits: 1797 real scans of 8 x 8 pixels that come with the package."""

import importlib

import numpy as np
from PIL import Image

from janus_jax.errors import InputError
from janus_jax.toy.captions import NUMBERS
from janus_jax.toy.shapes import GROUND

# Scans in the training split; the other 360 are never trained on.
NUM_TRAIN = 1437
INK = 30
# Fraction of the image that is left free at each side: half a cell of 6.
MARGIN = 1 / 12
# Splits the scans. Not a setting: a judge and a world that disagree on it would leak.
PERMUTATION_SEED = 0
SPLITS = ('train', 'test')


def import_sklearn(module: str):
  """A module of scikit-learn.

  Raises:
    InputError: scikit-learn is not installed.
  """
  try:
    return importlib.import_module(f'sklearn.{module}')
  except ImportError:
    raise InputError('the toy digits need scikit-learn: expected after `pip install scikit-learn`') from None


def load_digits(size: int, split: str) -> tuple[np.ndarray, np.ndarray]:
  """The digits of a split ('train': 1437 scans, 'test': 360), dark on the ground of the shapes.

  Returns:
    uint8[n, size, size, 3], int64[n] labels 0..9.

  Raises:
    InputError: scikit-learn is not installed.
  """
  scans = import_sklearn('datasets').load_digits()
  order = np.random.default_rng(PERMUTATION_SEED).permutation(len(scans.target))
  chosen = order[:NUM_TRAIN] if split == 'train' else order[NUM_TRAIN:]
  return render_scans(scans.images[chosen], size), scans.target[chosen]


def render_scans(scans: np.ndarray, size: int) -> np.ndarray:
  """Scans float[n, 8, 8] of ink from 0 to 16 as images uint8[n, size, size, 3]."""
  margin = round(size * MARGIN)
  inner = size - 2 * margin
  ink = np.zeros((len(scans), size, size), np.float32)
  for target, scan in zip(ink, scans, strict=True):
    image = Image.fromarray((scan / 16).astype(np.float32)).resize((inner, inner), Image.Resampling.BICUBIC)
    target[margin : margin + inner, margin : margin + inner] = image
  pixels = np.rint(GROUND + (INK - GROUND) * ink.clip(0, 1)).astype(np.uint8)
  return np.repeat(pixels[..., None], 3, axis=-1)


def near_misses(digit: int) -> list[str]:
  """Phrases of the other digits."""
  return [phrase(other) for other in range(10) if other != digit]


def phrase(digit: int) -> str:
  """The digit's name in prompts: 'the digit seven'."""
  return f'the digit {NUMBERS[digit]}'
