"""Images that grow against images of full size from the start, at equal compute.

    python -m janus_jax.ablate --config=configs/ablations/sizes.py --workdir=DIR

The tiny world, its scenes larger but otherwise the same, at 24, 32 and 48 pixels: 36, 64 and 144 codes, 9, 16 and 36
patches. Both variants end at 48 pixels, where both are scored, and start from the same parts: a VQ that knows all three
sizes, an understanding encoder of 24 pixels.
  curriculum    Stage I and II at 24 pixels, a quarter as long as that at 32, Stage III at 48
  from_scratch  all stages at 48 pixels, each longer by one factor, so that both cost the same FLOPs
Rows are packed to one length, so that both make about as many updates, and the curriculum sees more images.

With :0.1 after the name of the file all stages are a tenth as long. A further --config.seeds=0,1,2,3,4 adds two seeds.
"""

import pathlib

from janus_jax.ablation.settings import ablation_config, times, toy_base
from janus_jax.errors import InputError

CONFIGS = pathlib.Path(__file__).parents[1]
SIZES = (24, 32, 48)
TOKENS = {24: (48, 8, 48), 32: (55, 8, 76), 48: (75, 8, 156)}  # Of an example of each task.


def get_config(argument: str = '1'):
  if argument.startswith('small'):
    raise InputError(f'scale is {argument!r}: expected a positive number, as tiny.py alone has parts of three sizes')
  base = toy_base(CONFIGS, argument)
  base.data.toy_grid = 6
  base.sequence_length = base.loss_chunk = 176  # An image of 48 pixels and its prompt.
  base.pretraining.model, base.pretraining.vq_sizes = 'toy_sizes', SIZES
  base.pretraining.vq.steps = 2400
  middle = base.stages.stage2.to_dict()
  # Half the rate, as the larger sizes of the 7B's recipe have lower ones.
  middle |= {'steps': times(middle['steps'], 1 / 4), 'learning_rate': middle['learning_rate'] / 2}

  def sized(size: int) -> dict:
    return {'image_size': size, 'generation_size': size, 'expected_tokens': TOKENS[size]}

  def fields(name: str, size: int) -> dict:
    return {f'stages.{name}.{field}': value for field, value in sized(size).items()}

  variants = {
    'curriculum': {
      'run': ('stage1', 'stage2', 'stage2_32', 'stage3'),
      'stages.stage2_32': {**middle, **sized(32)},
      **fields('stage3', 48),
    },
    'from_scratch': {**fields('stage1', 48), **fields('stage2', 48), **fields('stage3', 48)},
  }
  config = ablation_config(base, variants, 'curriculum')
  config.equal_flops.from_scratch = ('stage1', 'stage2', 'stage3')
  return config
