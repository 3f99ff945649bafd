"""A checkpoint directory that compiles fast: one decoder layer, few convolutions; with transformers' weights."""

import dataclasses
import pathlib

import reference
from conversion.checkpoints import TINY, TOKENIZER
from conversion.fixtures import write_files

from janus_jax.conversion.tokenizer_files import tokenizer_files_for

CONFIG = dataclasses.replace(
  TINY,
  vq=dataclasses.replace(TINY.vq, image_size=16, channel_multipliers=(1, 1, 2)),
  language_model=dataclasses.replace(TINY.language_model, depth=1),
)


def write(directory: pathlib.Path) -> str:
  """transformers' layout in float32, weights of `reference.huggingface_model(CONFIG)`."""
  reference.huggingface_model(CONFIG).save_pretrained(directory)
  return write_files(directory, tokenizer_files_for('huggingface', {'tokenizer.json': TOKENIZER}, CONFIG))
