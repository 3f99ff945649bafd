"""The ratio of Stage III, understanding : text : generation: ablation (d).

    python -m janus_jax.ablate --config=configs/ablations/stage3_ratio.py --workdir=DIR

5:1:4 (Janus-Pro) against 7:3:10 (Janus), equal parts, and two that lean further to one side. Stages I and II are
trained once per seed.

With :0.1 after the name of the file all stages are a tenth as long, with :small or :small,0.1 the base is small.py. A
further --config.seeds=0,1,2,3,4 adds two seeds.
"""

import pathlib

from janus_jax.ablation.settings import ablation_config, toy_base

CONFIGS = pathlib.Path(__file__).parents[1]

RATIOS = ((5, 1, 4), (7, 3, 10), (1, 1, 1), (8, 1, 1), (1, 1, 8))


def get_config(argument: str = '1'):
  variants = {'-'.join(map(str, ratio)): {'stages.stage3.ratio': ratio} for ratio in RATIOS}
  return ablation_config(toy_base(CONFIGS, argument), variants, '5-1-4')
