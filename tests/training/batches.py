"""A model that compiles fast, and small batches of every kind of example for it, with the records they are made of."""

import dataclasses
import functools

import flax.traverse_util
import jax
import numpy as np
from conversion.fixtures import BOS, EOS, JANUS_TOKENS, make_tokenizer

from janus_jax.conversion.special_tokens import special_token_ids
from janus_jax.data import examples as examples_lib
from janus_jax.data import prompts
from janus_jax.data.examples import IMAGE, Example, ExampleSpec
from janus_jax.data.packing import BatchShape, make_batch
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.models.config import PRESETS
from janus_jax.models.initialization import initial_params

TINY, TOKENIZER = PRESETS['test_tiny'], make_tokenizer((BOS, EOS, *JANUS_TOKENS))
# One layer each: no loops over layers, so that XLA's count of FLOPs is right.
CONFIG = dataclasses.replace(
  TINY,
  vision_encoder=dataclasses.replace(TINY.vision_encoder, depth=1),
  vq=dataclasses.replace(TINY.vq, image_size=16, channel_multipliers=(1, 1, 2)),
  language_model=dataclasses.replace(TINY.language_model, depth=1),
  image_token_id=special_token_ids(TOKENIZER).image_placeholder,
)
SHAPE = BatchShape(
  rows=4, length=80, images=5, generation_images=4
)  # Room for one image more than there are, of each kind.
IMAGE_SIZE, GENERATION_SIZE, NUM_CODES = CONFIG.vision_encoder.image_size, CONFIG.vq.image_size, CONFIG.vq.num_tokens


def params() -> dict:
  """numpy arrays, norms and biases included, that all matter to the loss. Own copies: a state is donated."""
  return jax.tree.map(np.array, _params())


@functools.cache
def _params() -> dict:
  rng = np.random.default_rng(0)
  flat = flax.traverse_util.flatten_dict(initial_params(CONFIG, 0), sep='/')
  for path in flat:
    if path.endswith(('scale', 'bias', 'table')):
      flat[path] = flat[path] + 0.2 * rng.normal(size=flat[path].shape).astype(np.float32)
  return flax.traverse_util.unflatten_dict(flat, sep='/')


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
  """(task, record), in an order that puts different tasks beside each other; generation has codes."""
  rng = np.random.default_rng(0)

  def image():
    return rng.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)

  def codes():
    return rng.integers(0, CONFIG.vq.codebook_size, NUM_CODES).astype(np.int32)

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


# Row 1 has two generation_images and a text.
ROWS = (0, 1, 1, 1, 2, 0, 3, 3)


def make_examples(spec: ExampleSpec, pairs: list[tuple[str, dict]]) -> list[Example]:
  made = (examples_lib.make_examples(kind, record, spec, np.random.default_rng(0), 0.0) for kind, record in pairs)
  return [example for (example,) in made]


def batch_of(
  examples: list[Example],
  rows,
  generation_size: int | None = None,
  num_rows: int = SHAPE.rows,
  streams: int = 1,
  shape: BatchShape = SHAPE,
  image_size: int = IMAGE_SIZE,
) -> dict[str, np.ndarray]:
  """The rows of each stream one after another, as the pipeline joins them."""
  shape, parts = dataclasses.replace(shape, rows=num_rows // streams), []
  for first in range(0, num_rows, shape.rows):
    own = [(example, row - first) for example, row in zip(examples, rows) if 0 <= row - first < shape.rows]
    sizes = {'num_codes': NUM_CODES, 'image_size': image_size, 'generation_size': generation_size}
    parts.append(make_batch([example for example, _ in own], [row for _, row in own], shape, **sizes))
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def images_of_rows(batch: dict[str, np.ndarray], per_image: int = CONFIG.vision_encoder.num_tokens) -> list[np.ndarray]:
  """uint8[n, size, size, 3] for each row: the understanding images that stand in it."""
  found = []
  for pixels, kinds in zip(batch['pixels'], np.split(batch['token_types'], len(batch['pixels']))):
    counts = (kinds == IMAGE).sum(1) // per_image
    found += np.split(pixels[: counts.sum()], np.cumsum(counts)[:-1])
  return found
