"""Whether Stage II should draw what has the role of ImageNet: ablation (c).

    python -m janus_jax.ablate --config=configs/ablations/imagenet_role.py --workdir=DIR

Stage II generates shapes alone (`without`: Janus-Pro), shapes and digits 3 : 1 throughout (`mixed`), or digits for two
thirds of its steps and shapes after them (`first`: Janus). Its learning rate is constant, as in both papers, and the
second part of `first` goes on with the moments of the first, without a warm-up: the variants differ in their data
alone. Stage I is the same and is trained once per seed; Stage III generates both.

With :0.1 after the name of the file all stages are a tenth as long, with :small or :small,0.1 the base is small.py. A
further --config.seeds=0,1,2,3,4 adds two seeds.
"""

import pathlib

from janus_jax.ablation.settings import ablation_config, times, toy_base

CONFIGS = pathlib.Path(__file__).parents[1]


def get_config(argument: str = '1'):
  base = toy_base(CONFIGS, argument)
  base.stages.stage2.sources.generation = {'shapes': 1}
  base.stages.stage2.schedule = 'constant'
  steps = base.stages.stage2.steps
  first = base.stages.stage2.to_dict()
  first['sources']['generation'] = {'digits': 1}
  first['steps'] = times(steps, 2 / 3)
  variants = {
    'without': {},
    'mixed': {'stages.stage2.sources.generation': {'shapes': 3, 'digits': 1}},
    'first': {
      'run': ('stage1', 'stage2_imagenet', 'stage2', 'stage3'),
      'stages.stage2_imagenet': first,
      'stages.stage2.steps': max(steps - first['steps'], 1),
      'stages.stage2.warmup_steps': 0,
      'stages.stage2.carry_moments': True,
    },
  }
  return ablation_config(base, variants, 'without')
