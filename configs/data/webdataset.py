"""WebDataset and img2dataset tars of images with captions, to generate.

    python -m janus_jax.train --config=configs/data/webdataset.py --config.init_from=PATH --workdir=DIR

See what it reads first: python -m janus_jax.data_check with the same --config and --config.init_from, and --out=DIR.
"""

from janus_jax.runs.finetuning import finetune_config


def get_config():
  sources = {
    'laion': {
      'kind': 'generation',
      'format': 'tars',  # Uncompressed. Each is indexed once; indices lie in WORKDIR/data/index.
      'path': 'data/laion/*.tar',
      # The ending of the members that are captions; 'json/caption' is a field within those that are JSON. Images may
      # have any of the usual endings, or what 'image' says: 'jpg;png'.
      'prompt': 'txt',
      'first_sentence': 0.0,  # Fraction of captions cut after their first sentence: 0.25 in Janus's Stage II.
      'template': 'chat',  # As `generate` asks. 'raw' leaves out the roles, as pretraining does.
    },
  }
  return finetune_config(sources, ratio=(0, 0, 1))
