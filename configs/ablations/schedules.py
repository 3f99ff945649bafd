"""Janus's schedule against Janus-Pro's, at equal compute: ablation (a).

    python -m janus_jax.ablate --config=configs/ablations/schedules.py --workdir=DIR

Both in the tiny world's roles: digits for ImageNet, shapes for text-to-image data.
  janus_pro  Stage I long and on digits alone, no digits generated in Stage II, Stage III at 5:1:4
  janus      Stage I half as long and at 1:0:1, two thirds of Stage II on digits and the last third on shapes, Stage III
             short (24K of 256 for 80K of 128) and at 7:3:10 (arXiv 2410.13848, Table 1; 2501.17811, section 2.1)
Stage III generates shapes and digits 3 : 1 in both, so that digits can be scored. All of janus's stages are lengthened
by one factor until they cost as many FLOPs as janus_pro's, by formula from batches of each stage. The learning rate of
Stage II is constant in both, as in the papers, and the second part of janus's goes on with the moments of the first,
without a warm-up. Half of Stage I has half of its warm-up (300 steps of 10K, 600 of 20K).

With :0.1 after the name of the file all stages are a tenth as long, with :small or :small,0.1 the base is small.py. A
further --config.seeds=0,1,2,3,4 adds two seeds.
"""

import pathlib

from janus_jax.ablation.settings import ablation_config, times, toy_base

CONFIGS = pathlib.Path(__file__).parents[1]


def get_config(argument: str = '1'):
  base = toy_base(CONFIGS, argument)
  digits, shapes = {'digits': 1}, {'shapes': 1}
  base.stages.stage1.sources.generation = digits
  base.stages.stage2.sources.generation = shapes
  base.stages.stage2.schedule = 'constant'
  steps = {name: stage.steps for name, stage in base.stages.items()}
  first = base.stages.stage2.to_dict()
  first['sources']['generation'] = digits
  # Stage II: 180K of 270K steps. Stage III: as many examples as 24K x 256 of 80K x 128.
  second_stage = steps['stage2'] * 180 / 270
  variants = {
    'janus_pro': {},
    'janus': {
      'run': ('stage1', 'stage2_imagenet', 'stage2', 'stage3'),
      'stages.stage1.steps': times(steps['stage1'], 10 / 20),
      'stages.stage1.warmup_steps': base.stages.stage1.warmup_steps // 2,
      'stages.stage1.ratio': (1, 0, 1),
      'stages.stage2_imagenet': {**first, 'steps': times(second_stage, 2 / 3)},
      'stages.stage2.steps': times(second_stage, 1 / 3),
      'stages.stage2.warmup_steps': 0,
      'stages.stage2.carry_moments': True,
      'stages.stage3.steps': times(steps['stage3'], 24 * 256 / (80 * 128)),
      'stages.stage3.ratio': (7, 3, 10),
    },
  }
  config = ablation_config(base, variants, 'janus_pro')
  config.equal_flops.janus = ('stage1', 'stage2_imagenet', 'stage2', 'stage3')
  return config
