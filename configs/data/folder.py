"""A folder of images with captions beside them, to generate: cat.jpg and cat.txt.

    python -m janus_jax.train --config=configs/data/folder.py --config.init_from=PATH --workdir=DIR

See what it reads first: python -m janus_jax.data_check with the same --config and --config.init_from, and --out=DIR.
"""

from janus_jax.runs.finetuning import finetune_config


def get_config():
  sources = {
    'pictures': {
      'kind': 'generation',
      'format': 'folder',
      'path': 'data/pictures',
      'held_out': 20,
    },
  }
  return finetune_config(sources, ratio=(0, 0, 1))
