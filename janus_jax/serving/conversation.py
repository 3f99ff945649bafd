"""A conversation about images, turn by turn."""

import dataclasses
from collections.abc import Sequence

from PIL import Image

from janus_jax.data.images import understanding_pixels
from janus_jax.data.prompts import place_images, with_placeholders
from janus_jax.errors import InputError
from janus_jax.serving.uploads import Limits, check_text, read_image

THUMBNAIL_SIZE = 512  # Pixels, of the long side.


@dataclasses.dataclass(frozen=True)
class Conversation:
  """Questions and answers so far.

  Attributes:
    turns: question, answer, question, ...; with a placeholder for each image.
    images: squares as the encoder takes them, in the order of the placeholders. They are resized once more with every
      question, which changes nothing.
  """

  turns: tuple[str, ...] = ()
  images: tuple[Image.Image, ...] = ()

  def ask(self, text: str, images: Sequence[Image.Image]) -> 'Conversation':
    """The conversation with one more question. Raises InputError for placeholders that do not match its images."""
    (turn,) = place_images([with_placeholders(text)], len(images))
    return Conversation((*self.turns, turn), (*self.images, *images))

  def answer(self, text: str) -> 'Conversation':
    """The conversation with the answer to its last question."""
    return Conversation((*self.turns, text), self.images)


@dataclasses.dataclass(frozen=True)
class UploadedImage:
  """An uploaded image: what of it the encoder will take, and a small copy to show."""

  asked: Image.Image
  thumbnail: Image.Image


def read_uploads(paths: Sequence[str], size: int, limits: Limits, tiles: int = 1) -> list[UploadedImage]:
  """Reads images one after the other, so that a single one is decoded at a time.

  Args:
    paths: image files.
    size: side of the encoder's square in pixels.
    limits: of each image.
    tiles: of an image, at most.

  Raises:
    InputError: one cannot be used (`uploads.read_image`).
  """
  found = []
  for path in paths:
    image = read_image(path, limits)
    if tiles == 1:
      asked = Image.fromarray(understanding_pixels(image, size))
    else:  # No grid of tiles is longer.
      asked = image.copy()
      asked.thumbnail((tiles * size, tiles * size))
    image.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
    found.append(UploadedImage(asked, image))
  return found


def check_question(conversation: Conversation, text: str, num_uploads: int, limits: Limits) -> None:
  """Raises InputError for a question that is empty or too long, or with too many images."""
  check_text(text, limits)
  if not text.strip():
    raise InputError('the question is empty: expected text')
  if (total := len(conversation.images) + num_uploads) > limits.uploads:
    raise InputError(f'{total} images: expected at most {limits.uploads} in a conversation')
