"""Small batches of every kind of example for `small_checkpoint.CONFIG`, with the records that they were made of."""

import dataclasses

import numpy as np
from conversion.checkpoints import TOKENIZER
from small_checkpoint import CONFIG

from janus_jax.data import prompts
from janus_jax.data.examples import Example, ExampleSpec, make_example
from janus_jax.data.packing import BatchShape, make_batch
from janus_jax.data.tokenizer import Tokenizer

SHAPE = BatchShape(rows=4, length=72, images=2, drawings=2)
IMAGE_SIZE, DRAWING_SIZE, NUM_CODES = CONFIG.vision_encoder.image_size, CONFIG.vq.image_size, CONFIG.vq.num_tokens


def make_spec(directory, generation_size: int | None = None) -> ExampleSpec:
  """For records with codes, or with pixels of `generation_size`."""
  (directory / 'tokenizer.json').write_bytes(TOKENIZER)
  return ExampleSpec(
    tokenizer=Tokenizer.from_directory(directory),
    template=prompts.TEMPLATES['deepseek'],
    num_image_tokens=CONFIG.vision_encoder.num_tokens,
    num_codes=NUM_CODES,
    image_size=IMAGE_SIZE,
    generation_size=generation_size,
    max_length=SHAPE.length,
    system='',
    num_code_ids=CONFIG.vq.codebook_size,
  )


def records() -> list[tuple[str, dict]]:
  """(kind, record), in an order that puts different kinds beside each other; generation has codes."""
  rng = np.random.default_rng(0)
  image = lambda: rng.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)  # noqa: E731
  codes = lambda: rng.integers(0, CONFIG.vq.codebook_size, NUM_CODES).astype(np.int32)  # noqa: E731
  return [
    ('understanding', {'images': [image()], 'turns': ['What?', 'A red box.']}),
    ('generation', {'prompt': 'a box', 'codes': codes()}),
    ('text', {'text': 'The sun is up.'}),
    ('generation', {'prompt': 'two cats', 'codes': codes()}),
    ('understanding', {'images': [image(), image()], 'turns': ['Same?', 'No']}),
    ('text', {'text': 'Hi'}),
    ('generation', {'prompt': 'sea', 'codes': codes()}),
    ('understanding', {'images': [image()], 'turns': ['Hm?', '13']}),
  ]


ROWS = (0, 0, 1, 1, 2, 3, 3, 3)


def make_examples(spec: ExampleSpec, pairs: list[tuple[str, dict]]) -> list[Example]:
  return [make_example(kind, record, spec, np.random.default_rng(0), 0.0) for kind, record in pairs]


def batch_of(
  examples: list[Example], rows, generation_size: int | None = None, num_rows: int = SHAPE.rows
) -> dict[str, np.ndarray]:
  shape = dataclasses.replace(SHAPE, rows=num_rows)
  return make_batch(
    examples, rows, shape, num_codes=NUM_CODES, image_size=IMAGE_SIZE, generation_size=generation_size
  )
