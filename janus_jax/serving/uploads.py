"""What visitors send: texts and images, within limits. Every refusal is an InputError, whose line the page shows."""

import dataclasses
import os

from PIL import Image

from janus_jax.data.images import decode_image
from janus_jax.errors import InputError

MEBIBYTE = 2**20


@dataclasses.dataclass(frozen=True)
class Limits:
  """Limits of what a visitor may send.

  Attributes:
    num_images: images generated at a time.
    text_length: characters of a prompt or question.
    uploads: images of a conversation.
    upload_bytes: of an image file.
    upload_pixels: of an image; one is decoded at a time, in 3 to 4 bytes a pixel.
  """

  num_images: int = 4
  text_length: int = 1000
  uploads: int = 8
  upload_bytes: int = 20 * MEBIBYTE
  upload_pixels: int = 2**26


def check_text(text: str, limits: Limits) -> None:
  """Raises InputError for a text that is too long."""
  if len(text) > limits.text_length:
    raise InputError(f'{len(text)} characters: expected at most {limits.text_length}')


def read_image(path: str, limits: Limits) -> Image.Image:
  """Reads an uploaded image as RGB (`data.images.decode_image`), known by its file name alone.

  Raises:
    InputError: too many bytes or pixels, damaged, or not an image.
  """
  name = os.path.basename(path)
  if (size := os.path.getsize(path)) > limits.upload_bytes:
    raise InputError(f'{name}: {size / MEBIBYTE:.1f} MiB: expected at most {limits.upload_bytes / MEBIBYTE:g}')
  with open(path, 'rb') as file:
    return decode_image(file, name, limits.upload_pixels)
