"""Real photographs (the two that scikit-learn brings), cut up and written in the formats that people's data has."""

import io

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

SIDE = 48


def cuts(number: int) -> list[Image.Image]:
  """`number` different pieces, 48 x 48 pixels."""
  photos, rng = load_sample_images().images, np.random.default_rng(0)
  found = []
  for i in range(number):
    photo = photos[i % len(photos)]
    top, left = rng.integers(photo.shape[0] - SIDE), rng.integers(photo.shape[1] - SIDE)
    found.append(Image.fromarray(photo[top : top + SIDE, left : left + SIDE]))
  return found


def encoded(image: Image.Image, number: int) -> tuple[str, bytes]:
  """Extension and file content; the format goes round with `number`: JPEG, PNG, WebP, grey, CMYK, rotated by EXIF."""
  exif = Image.Exif()
  exif[0x0112] = 6
  kind, extension, image, options = [
    ('JPEG', 'jpg', image, {'quality': 95}),
    ('PNG', 'png', image, {}),
    ('WEBP', 'webp', image, {'quality': 95}),
    ('JPEG', 'jpg', image.convert('L'), {}),
    ('JPEG', 'jpg', image.convert('CMYK'), {}),
    ('JPEG', 'jpg', image.transpose(Image.Transpose.ROTATE_90), {'exif': exif, 'quality': 95}),
  ][number % 6]
  file = io.BytesIO()
  image.save(file, kind, **options)
  return extension, file.getvalue()
