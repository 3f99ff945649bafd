"""How long Stage I should be: ablation (b).

    python -m janus_jax.ablate --config=configs/ablations/stage1_length.py --workdir=DIR

Stage I of 0, 1/4, 1/2, 1, 2 and 4 times the recipe's steps, with as long a part of them to warm up; Stages II and III
stay as they are, so that a longer Stage I costs more (it is a small part: the report shows how much). Janus-Pro doubled
Janus's, and its warm-up with it (300 steps of 10K, 600 of 20K).

With :0.1 after the name of the file all stages are a tenth as long, with :small or :small,0.1 the base is small.py. A
further --config.seeds=0,1,2,3,4 adds two seeds.
"""

import pathlib

from janus_jax.ablation.settings import ablation_config, times, toy_base

CONFIGS = pathlib.Path(__file__).parents[1]


def get_config(argument: str = '1'):
  base = toy_base(CONFIGS, argument)
  stage = base.stages.stage1
  factors = {'quarter': 1 / 4, 'half': 1 / 2, 'recipe': 1, 'double': 2, 'fourfold': 4}
  variants = {'none': {'run': ('stage2', 'stage3')}} | {
    name: {
      'stages.stage1.steps': times(stage.steps, factor),
      'stages.stage1.warmup_steps': int(stage.warmup_steps * factor),
    }
    for name, factor in factors.items()
  }
  return ablation_config(base, variants, 'recipe')
