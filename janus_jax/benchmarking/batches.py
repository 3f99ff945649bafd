"""Packed batches without data or tokenizer: what a step costs does not depend on what is written in them.

A row holds questions about one image and drawings in turn, as many as the stage has room for and as fit; every other
row begins with a drawing. Text fills the rest. A question has 16 tokens before its image, 16 after it, and an answer of
16; a prompt has 16.
"""

import numpy as np

from janus_jax.data.examples import (
  IMAGE,
  TEXT,
  TEXT_LOSS,
  UNDERSTANDING_LOSS,
  Example,
  drawing,
  no_images,
  predicting,
)
from janus_jax.data.packing import BatchShape, make_batch
from janus_jax.models.config import JanusConfig

WORDS = 16
# What is left of a row and shorter than this makes the last example's text longer instead.
SHORTEST_TEXT = 64


def synthetic_batch(
  model: JanusConfig, shape: BatchShape, ratio: tuple[int, int, int], holds_codes: bool, seed: int
) -> dict[str, np.ndarray]:
  """A batch as `data.packing.make_batch` gives it; each row is full.

  Args:
    model: architecture.
    shape: of the batch.
    ratio: of the stage; only kinds with a share are there, and text to fill up.
    holds_codes: whether drawings are codes, not pixels.
    seed: of tokens and pixels.
  """
  rng = np.random.default_rng(seed)
  examples, rows = [], []
  for row in range(shape.rows):
    for kind, words in _sizes(model, shape, ratio, drawing_first=row % 2 == 1):
      examples.append(_EXAMPLES[kind](model, words, holds_codes, rng))
      rows.append(row)
  return make_batch(
    examples,
    rows,
    shape,
    num_codes=model.vq.num_tokens,
    image_size=model.image_size,
    generation_size=None if holds_codes else model.vq.image_size,
  )


def _sizes(
  model: JanusConfig, shape: BatchShape, ratio: tuple[int, int, int], drawing_first: bool
) -> list[tuple[str, int]]:
  """The examples of a row: kind, and tokens of text in it."""
  question = model.num_image_tokens + 3 * WORDS, 3 * WORDS
  drawn = model.vq.num_tokens - 1 + WORDS, WORDS
  room = {'question': shape.images if ratio[0] else 0, 'drawing': shape.drawings if ratio[2] else 0}
  found: list[tuple[str, int]] = []
  left = shape.length
  kinds = [('question', question), ('drawing', drawn)]
  while any(room.values()):
    for kind, (length, words) in reversed(kinds) if drawing_first else kinds:
      if room[kind] and length <= left:
        found.append((kind, words))
        left -= length
        room[kind] -= 1
      elif room[kind]:
        room[kind] = 0
  if left >= SHORTEST_TEXT or not found:
    return [*found, ('text', left)] if left else found
  kind, words = found[-1]
  return [*found[:-1], (kind, words + left)]


def _question(model: JanusConfig, words: int, holds_codes: bool, rng: np.random.Generator) -> Example:
  P, size = model.num_image_tokens, model.image_size
  tokens = _words(model, words + P, rng)
  kinds = np.full(words + P, TEXT, np.uint8)
  kinds[WORDS : WORDS + P] = IMAGE
  tokens[kinds == IMAGE] = model.image_token_id
  answered = np.arange(words + P) >= P + 2 * WORDS - 1  # The position before each word of the answer.
  answered[-1] = False
  pixels = rng.integers(0, 256, (1, size, size, 3), np.uint8)
  return predicting(tokens, kinds, answered, UNDERSTANDING_LOSS, pixels, no_images(model.vq.image_size))


def _text(model: JanusConfig, words: int, holds_codes: bool, rng: np.random.Generator) -> Example:
  said = np.arange(words) < words - 1
  neither = no_images(model.image_size), no_images(model.vq.image_size)
  return predicting(_words(model, words, rng), np.full(words, TEXT, np.uint8), said, TEXT_LOSS, *neither)


def _drawing(model: JanusConfig, words: int, holds_codes: bool, rng: np.random.Generator) -> Example:
  P, size = model.vq.num_tokens, model.vq.image_size
  codes = rng.integers(0, model.vq.codebook_size, P).astype(np.int32) if holds_codes else np.arange(P, dtype=np.int32)
  drawn = no_images(size) if holds_codes else rng.integers(0, 256, (1, size, size, 3), np.uint8)
  return drawing(_words(model, words, rng), codes, no_images(model.image_size), drawn)


_EXAMPLES = {'question': _question, 'text': _text, 'drawing': _drawing}


def _words(model: JanusConfig, count: int, rng: np.random.Generator) -> np.ndarray:
  """Any tokens but the placeholder of images."""
  tokens = rng.integers(0, model.language_model.vocab_size - 1, count).astype(np.int32)
  return tokens + (tokens >= model.image_token_id)
