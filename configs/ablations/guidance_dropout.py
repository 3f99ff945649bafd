"""The share of prompts dropped for classifier-free guidance: ablation (h).

    python -m janus_jax.ablate --config=configs/ablations/guidance_dropout.py --workdir=DIR

0, 10 (the recipe; Janus paper, footnote 2) and 20 %. Without dropped prompts guidance has nothing to lean on, so each
share is also sampled from without guidance (`..._unguided`: weight 1), which costs no training: those runs are forked
at the end.

With :0.1 after the name of the file all stages are a tenth as long, with :small or :small,0.1 the base is small.py. A
further --config.seeds=0,1,2,3,4 adds two seeds.
"""

import pathlib

from janus_jax.ablation.settings import ablation_config, toy_base

CONFIGS = pathlib.Path(__file__).parents[1]


def get_config(argument: str = '1'):
  variants = {}
  for percent in (0, 10, 20):
    dropout = {'guidance_dropout': percent / 100}
    variants[f'dropout_{percent}'] = dropout
    variants[f'dropout_{percent}_unguided'] = {**dropout, 'sampling.cfg_weight': 1.0}
  return ablation_config(toy_base(CONFIGS, argument), variants, 'dropout_10')
