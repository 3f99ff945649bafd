"""What makes a toy model tell two objects apart: captions that are nearly true, scenes that never repeat.

    python -m janus_jax.ablate --config=configs/ablations/world.py --workdir=DIR

Near misses (`pretraining.contrast.near_misses`) are seen by the understanding encoder alone, before the stages. Each
variant changes one thing of the recipe, whose figures are those of `whole`:
  no_near_misses   captions of other images are all that the encoder has to tell apart
  few_scenes       8,000 training scenes in place of a new one for every record (small.py)
  endless          a new scene for every record in place of 8,000, whose codes are then made in the step (tiny.py)

With :0.1 after the name of the file all stages are a tenth as long, with :small or :small,0.1 the base is small.py. A
further --config.seeds=0,1,2,3,4 adds two seeds.
"""

import pathlib

from janus_jax.ablation.settings import ablation_config, toy_base

CONFIGS = pathlib.Path(__file__).parents[1]


def get_config(argument: str = '1'):
  base = toy_base(CONFIGS, argument)
  scenes = {
    'few_scenes': {'data.num_train': 8000},
    'endless': {'data.num_train': 0, 'data.precompute_codes': False},
  }
  name = 'endless' if base.data.num_train else 'few_scenes'
  variants = {
    'whole': {},
    'no_near_misses': {'pretraining.contrast.near_misses': 0},
    name: scenes[name],
  }
  return ablation_config(base, variants, 'whole')
