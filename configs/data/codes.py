"""Images to generate whose codes were computed once, which saves encoding them in every epoch.

    python -m janus_jax.train --config=configs/data/codes.py --config.init_from=PATH --workdir=DIR

    python -m janus_jax.tokenize --input=configs/data/webdataset.py:laion --checkpoint=PATH --output=data/codes

With `tokenize --aspects` images are not cut to squares; the entry then says 'grid': 'grid' too.

See what it reads first: python -m janus_jax.data_check with the same --config and --config.init_from, and --out=DIR.
"""

from janus_jax.runs.finetuning import finetune_config


def get_config():
  sources = {
    'laion': {
      'kind': 'generation',
      'format': 'array_record',
      'path': 'data/codes/*.array_record',  # manifest.json beside them must name the VQ that the run starts from.
      'codes': 'codes',
      'prompt': 'prompt',
    },
  }
  return finetune_config(sources, ratio=(0, 0, 1))
