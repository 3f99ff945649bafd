"""A refiner of the toy world's generated images: 24 pixels become 48. Minutes on a CPU.

    python -m janus_jax.pretrain --config=configs/refiner.py:CHECKPOINT --output=DIR
    python -m janus_jax.generate --checkpoint=CHECKPOINT --refiner=DIR --prompt="a red circle" --out=IMAGES

CHECKPOINT is a training workdir of configs/tiny.py, or what `pretrain` makes for it: its VQ is all that matters. Any
other recipe takes a `refining` section likewise: its generation sources are then read at twice the size.
"""

import pathlib

from janus_jax.runs.config import set_refining
from janus_jax.runs.recipes import read_recipe

TINY = str(pathlib.Path(__file__).parent / 'tiny.py')


def get_config(checkpoint=''):
  config = read_recipe(TINY)
  config.init_from = checkpoint
  del config.pretraining
  set_refining(
    config,
    steps=1500,
    batch_size=8,
    learning_rate=2e-3,
    warmup_steps=50,
    ema_decay=0.995,
    block_out_channels=(16, 32, 64),
    flow_steps=4,
  )
  return config
