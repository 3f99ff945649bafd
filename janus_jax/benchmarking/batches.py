"""Packed batches without data or tokenizer: the cost of a step does not depend on their content.

Examples come in the order of the stage's mixture and have the lengths that it expects. A question has 16 tokens before
its image, at least 16 after it, and an answer of 16.
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
  generation_example,
  no_images,
  predicting,
)
from janus_jax.data.mixture import interleave
from janus_jax.data.packing import BatchShape, Size, fill_batch, make_batch
from janus_jax.models.config import JanusConfig
from janus_jax.training.samples import Sample, SampledAnswer, SampledImage, sample_batch
from janus_jax.training.stages import Stage

WORDS = 16
_LEAST = {'understanding': 3 * WORDS, 'text': 2, 'generation': WORDS}  # Least tokens of text in an example.


def synthetic_batch(
  model: JanusConfig, stage: Stage, shape: BatchShape, streams: int, holds_codes: bool, seed: int
) -> dict[str, np.ndarray]:
  """A batch as training has it, the streams one after another. The rest of a row lengthens its last example.

  `shape` is that of one stream's part; with `holds_codes` images to generate are codes, not pixels.
  """
  rng = np.random.default_rng(seed)
  tasks, sizes = itertools.cycle(interleave(dict(zip(TASKS, stage.ratio)))), _sizes(model, stage, shape, holds_codes)
  image_sizes = {'image_size': model.image_size, 'generation_size': None if holds_codes else model.vq.image_size}
  waiting: list[str] = []
  parts = []
  for _ in range(streams):
    taken, rows = fill_batch(waiting, lambda: next(tasks), sizes.get, shape)
    examples = []
    for index, (task, row) in enumerate(zip(taken, rows)):
      words = sizes[task][0] - _image_positions(model)[task]
      if index + 1 == len(rows) or rows[index + 1] != row:
        words += shape.length - sum(sizes[other][0] for other, its_row in zip(taken, rows) if its_row == row)
      examples.append(_EXAMPLES[task](model, words, holds_codes, rng))
    parts.append(make_batch(examples, rows, shape, num_codes=model.vq.num_tokens, **image_sizes))
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def synthetic_samples(
  model: JanusConfig, stage: Stage, shape: BatchShape, streams: int, seed: int
) -> dict[str, np.ndarray]:
  """Samples of an update as a stage with another objective than 'sft' has them (`training.samples.sample_batch`), of
  the shape `training.run_config.expected_samples` and with advantages at random.
  """
  rng, preference = np.random.default_rng(seed), stage.preference
  count = shape.rows // (2 if preference.has_unconditional else 1)
  samples: list[Sample] = []
  for _ in range(count):
    if preference.samples == 'answers':
      question = _question(model, shape.length - model.num_image_tokens, True, rng)
      ids, answer = np.split(question.tokens, [np.argmax(question.weights) + 1])
      samples.append(SampledAnswer({}, ids, answer, '', question.pixels, model.image_token_id))
    else:
      codes = rng.integers(0, model.vq.codebook_size, model.vq.num_tokens).astype(np.int32)
      samples.append(SampledImage({}, _words(model, shape.length - model.vq.num_tokens + 1, rng), codes, None))
  advantages = rng.normal(size=count).astype(np.float32)
  pad, images = 0 if preference.has_unconditional else None, shape.images // shape.rows
  return sample_batch(samples, advantages, shape.length, pad=pad, streams=streams, images=images)


def _image_positions(model: JanusConfig) -> dict[str, int]:
  return {'understanding': model.num_image_tokens, 'text': 0, 'generation': model.vq.num_tokens - 1}


def _sizes(model: JanusConfig, stage: Stage, shape: BatchShape, holds_codes: bool) -> dict[str, Size]:
  """Sizes of each task's examples: as many tokens as expected, but no more than a row has."""
  images = {'understanding': (1, 0), 'text': (0, 0), 'generation': (0, int(not holds_codes))}
  positions = _image_positions(model)
  found = {}
  for task, expected in zip(TASKS, stage.expected_tokens):
    tokens = max(min(round(expected), shape.length), positions[task] + _LEAST[task])
    found[task] = (tokens, *images[task])
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
  predicted = np.arange(words) < words - 1
  neither = no_images(model.image_size), no_images(model.vq.image_size)
  return predicting(_words(model, words, rng), np.full(words, TEXT, np.uint8), predicted, TEXT_LOSS, *neither)


def _generation(model: JanusConfig, words: int, holds_codes: bool, rng: np.random.Generator) -> Example:
  P, size = model.vq.num_tokens, model.vq.image_size
  codes = rng.integers(0, model.vq.codebook_size, P).astype(np.int32) if holds_codes else np.arange(P, dtype=np.int32)
  pixels = no_images(size) if holds_codes else rng.integers(0, 256, (1, size, size, 3), np.uint8)
  return generation_example(_words(model, words, rng), codes, no_images(model.image_size), pixels)


_EXAMPLES = {'understanding': _question, 'text': _text, 'generation': _generation}


def _words(model: JanusConfig, count: int, rng: np.random.Generator) -> np.ndarray:
  """Any tokens but the placeholder of images."""
  tokens = rng.integers(0, model.language_model.vocab_size - 1, count).astype(np.int32)
  return tokens + (tokens >= model.image_token_id)
