"""Examples of single records, as a small tokenizer makes them."""

import numpy as np
from conversion.fixtures import BOI, BOS, EOI, EOS, IMAGE, JANUS_TOKENS, make_tokenizer

from janus_jax.data import prompts
from janus_jax.data.examples import ExampleSpec, make_examples
from janus_jax.data.tokenizer import Tokenizer

SIZE, GENERATION_SIZE, NUM_IMAGE_TOKENS, NUM_CODES = 6, 4, 3, 5


def make_spec(directory):
  (directory / 'tokenizer.json').write_bytes(make_tokenizer((BOS, EOS, *JANUS_TOKENS)))
  return ExampleSpec(
    Tokenizer.from_directory(directory),
    prompts.TEMPLATES['deepseek'],
    NUM_IMAGE_TOKENS,
    NUM_CODES,
    SIZE,
    GENERATION_SIZE,
    max_length=2000,
    system=prompts.SYSTEM_PROMPT,
    num_code_ids=50,
  )


def image(value=0, size=SIZE):
  return np.full((size, size, 3), value, np.uint8)


def make_all(kind, record, spec, **options):
  return make_examples(kind, record, spec, np.random.default_rng(0), **{'guidance_dropout': 0.0, **options})


def make(kind, record, spec, **options):
  (example,) = make_all(kind, record, spec, **options)
  return example


def ids_of(spec, text):
  """Of a text that spells out everything but begin-of-sentence and the features of an image."""
  features = IMAGE * NUM_IMAGE_TOKENS
  return spec.tokenizer.encode(text.replace(IMAGE, f'{BOI}{features}{EOI}'))
