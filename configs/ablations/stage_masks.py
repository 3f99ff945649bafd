"""What static and traced stage masks cost: ablation (i).

    python -m janus_jax.ablate --config=configs/ablations/stage_masks.py --workdir=DIR

Both train the same parameters. Static masks compile a step per stage, traced ones one step for all, with the gradients
and moments of everything that trains in any stage. Every run compiles anew. Nothing is scored, and a fifth of the
recipe's steps is enough to see what a step costs.

With :1 after the name of the file all stages are whole. A further --config.seeds=0,1,2,3,4 adds two seeds.
"""

import pathlib

from janus_jax.ablation.settings import ablation_config, toy_base

CONFIGS = pathlib.Path(__file__).parents[1]


def get_config(argument: str = '0.2'):
  base = toy_base(CONFIGS, argument)
  base.log_every = 10
  variants = {'static': {}, 'traced': {'stage_masks': 'traced'}}
  config = ablation_config(base, variants, 'static')
  config.fresh_compilation = True
  config.evaluation.scores = False
  config.metrics = ('cost/*', 'held_out/*')
  return config
