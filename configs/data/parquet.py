"""Parquet shards as HuggingFace's datasets have them: images as bytes, captions asked for.

    python -m janus_jax.train --config=configs/data/parquet.py --config.init_from=PATH --workdir=DIR

See what it reads first: python -m janus_jax.data_check with the same --config and --config.init_from, and --out=DIR.
"""

from janus_jax.runs.finetuning import finetune_config


def get_config():
  sources = {
    'captions': {
      'kind': 'understanding',
      'format': 'parquet',  # Row groups are shuffled, and the rows in each: mix them when you write them.
      'path': 'data/captions/train-*.parquet',
      'image': 'image',  # A column of bytes, of {'bytes', 'path'}, or of paths.
      'answer': 'caption',  # A column of text, or of lists of texts, of which one is sampled.
      'questions': ('Describe the image in detail.', 'What does the image show?'),  # One is sampled.
      'held_out': 500,
    },
  }
  return finetune_config(sources, ratio=(1, 0, 0))
