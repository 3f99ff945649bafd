"""How long Stage I should be: ablation (b).

    python -m janus_jax.ablate --config=configs/ablations/stage1_length.py --workdir=DIR

Stage I of 0, 1/4, 1/2, 1, 2 and 4 times the recipe's steps; Stages II and III stay as they are, so that a longer
Stage I costs more (it is a small part: the report shows how much). Janus-Pro doubled Janus's.

With :0.1 after the name of the file all stages are a tenth as long. A further --config.seeds=0,1,2,3,4 adds two seeds.
"""

import pathlib

from janus_jax.ablation.settings import ablation_config, read_recipe, scaled, times

TINY = pathlib.Path(__file__).parents[1] / 'tiny.py'


def get_config(scale: str = '1'):
  base = scaled(read_recipe(TINY), scale)
  steps = base.stages.stage1.steps
  variants = {
    'none': {'run': ('stage2', 'stage3')},
    'quarter': {'stages.stage1.steps': times(steps, 1 / 4)},
    'half': {'stages.stage1.steps': times(steps, 1 / 2)},
    'recipe': {},
    'double': {'stages.stage1.steps': 2 * steps},
    'fourfold': {'stages.stage1.steps': 4 * steps},
  }
  return ablation_config(base, variants, 'recipe')
