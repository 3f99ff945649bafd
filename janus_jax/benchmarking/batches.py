"""Packed batches without data or tokenizer: what a step costs does not depend on what is written in them.

Examples come in the order of the stage's mixture and have the lengths that it expects. A question has 16 tokens before
its image, and 16 after it at least, and an answer of 16.
"""

import itertools

import numpy as np

from janus_jax.data.examples import (
  IMAGE,
  TASKS,
  TEXT,
  TEXT_LOSS,
  UNDERSTANDING_LOSS,
  Example,
  drawing,
  no_images,
  predicting,
)
from janus_jax.data.mixture import interleave
from janus_jax.data.packing import BatchShape, Size, fill_batch, make_batch
from janus_jax.models.config import JanusConfig
from janus_jax.training.stages import Stage

WORDS = 16
_LEAST = {'understanding': 3 * WORDS, 'text': 2, 'generation': WORDS}  # Tokens of text in an example.


def synthetic_batch(
  model: JanusConfig, stage: Stage, shape: BatchShape, streams: int, holds_codes: bool, seed: int
) -> dict[str, np.ndarray]:
  """A batch as training has it, the streams one after another. What is left of a row lengthens its last example.

  Args:
    model: architecture.
    stage: its ratio, and the lengths that it expects.
    shape: of the part of a batch that one stream makes.
    streams: of the batch.
    holds_codes: whether images to generate are codes, not pixels.
    seed: of tokens and pixels.
  """
  rng = np.random.default_rng(seed)
  kinds, sizes = itertools.cycle(interleave(dict(zip(TASKS, stage.ratio)))), _sizes(model, stage, shape, holds_codes)
  waiting: list[str] = []
  parts = []
  for _ in range(streams):
    taken, rows = fill_batch(waiting, lambda: next(kinds), sizes.get, shape)
    examples = []
    for index, (kind, row) in enumerate(zip(taken, rows)):
      words = sizes[kind][0] - _image_positions(model)[kind]
      if index + 1 == len(rows) or rows[index + 1] != row:
        words += shape.length - sum(sizes[other][0] for other, its_row in zip(taken, rows) if its_row == row)
      examples.append(_EXAMPLES[kind](model, words, holds_codes, rng))
    parts.append(
      make_batch(
        examples,
        rows,
        shape,
        num_codes=model.vq.num_tokens,
        image_size=model.image_size,
        generation_size=None if holds_codes else model.vq.image_size,
      )
    )
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _image_positions(model: JanusConfig) -> dict[str, int]:
  return {'understanding': model.num_image_tokens, 'text': 0, 'generation': model.vq.num_tokens - 1}


def _sizes(model: JanusConfig, stage: Stage, shape: BatchShape, holds_codes: bool) -> dict[str, Size]:
  """Sizes of an example of each kind: as many tokens as expected, but no more than a row has."""
  images = {'understanding': (1, 0), 'text': (0, 0), 'generation': (0, int(not holds_codes))}
  positions = _image_positions(model)
  found = {}
  for kind, expected in zip(TASKS, stage.expected_tokens):
    tokens = max(min(round(expected), shape.length), positions[kind] + _LEAST[kind])
    found[kind] = (tokens, *images[kind])
  return found


def _question(model: JanusConfig, words: int, holds_codes: bool, rng: np.random.Generator) -> Example:
  P, size = model.num_image_tokens, model.image_size
  tokens = _words(model, words + P, rng)
  token_types = np.full(words + P, TEXT, np.uint8)
  token_types[WORDS : WORDS + P] = IMAGE
  tokens[token_types == IMAGE] = model.image_token_id
  answered = np.arange(words + P) >= P + 2 * WORDS - 1  # The position before each word of the answer.
  answered[-1] = False
  pixels = rng.integers(0, 256, (1, size, size, 3), np.uint8)
  return predicting(tokens, token_types, answered, UNDERSTANDING_LOSS, pixels, no_images(model.vq.image_size))


def _text(model: JanusConfig, words: int, holds_codes: bool, rng: np.random.Generator) -> Example:
  said = np.arange(words) < words - 1
  neither = no_images(model.image_size), no_images(model.vq.image_size)
  return predicting(_words(model, words, rng), np.full(words, TEXT, np.uint8), said, TEXT_LOSS, *neither)


def _drawing(model: JanusConfig, words: int, holds_codes: bool, rng: np.random.Generator) -> Example:
  P, size = model.vq.num_tokens, model.vq.image_size
  codes = rng.integers(0, model.vq.codebook_size, P).astype(np.int32) if holds_codes else np.arange(P, dtype=np.int32)
  drawn = no_images(size) if holds_codes else rng.integers(0, 256, (1, size, size, 3), np.uint8)
  return drawing(_words(model, words, rng), codes, no_images(model.image_size), drawn)


_EXAMPLES = {'understanding': _question, 'text': _text, 'generation': _drawing}


def _words(model: JanusConfig, count: int, rng: np.random.Generator) -> np.ndarray:
  """Any tokens but the placeholder of images."""
  tokens = rng.integers(0, model.language_model.vocab_size - 1, count).astype(np.int32)
  return tokens + (tokens >= model.image_token_id)
