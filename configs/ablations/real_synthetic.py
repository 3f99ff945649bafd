"""The share of synthetic data among what is drawn in Stages II and III: ablation (e).

    python -m janus_jax.ablate --config=configs/ablations/real_synthetic.py --workdir=DIR

Scanned digits are the real data of the tiny world, rendered shapes the synthetic data; Janus-Pro mixes 1 : 1. Unlike
the report's two kinds these show different things, so that a share is also how often each subject is practised: read
the scores of digits and of shapes apart. Stage I is trained once per seed.

With :0.1 after the name of the file all stages are a tenth as long, with :small or :small,0.1 the base is small.py. A
further --config.seeds=0,1,2,3,4 adds two seeds.
"""

import pathlib

from janus_jax.ablation.settings import ablation_config, toy_base

CONFIGS = pathlib.Path(__file__).parents[1]

# Per cent of synthetic data -> weights.
SHARES = {
  0: {'digits': 1},
  25: {'digits': 3, 'shapes': 1},
  50: {'digits': 1, 'shapes': 1},
  75: {'digits': 1, 'shapes': 3},
  100: {'shapes': 1},
}


def get_config(argument: str = '1'):
  base = toy_base(CONFIGS, argument)
  for name in ('stage2', 'stage3'):
    base.stages[name].sources.generation = SHARES[50]
  variants = {
    f'synthetic_{share}': {f'stages.{name}.sources.generation': weights for name in ('stage2', 'stage3')}
    for share, weights in SHARES.items()
  }
  return ablation_config(base, variants, 'synthetic_50')
