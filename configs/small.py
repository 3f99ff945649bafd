"""A small Janus on a richer toy world, all three stages.

    bash launch/quickstart.sh --recipe=small

runs it with its scores and a page: in hours on 2 CPU cores, with --gpu in minutes on a GPU. Six shapes, eight colours
and three sizes on 56 x 56 pixels, and no scene twice: few scenes are learned by heart, and what is asked of two objects
stays unlearned (janus_jax/toy/README.md). What is not set here is as in tiny.py.
"""

import pathlib

from janus_jax.errors import InputError
from janus_jax.runs.config import set_stages
from janus_jax.runs.recipes import read_recipe

TINY = str(pathlib.Path(__file__).parent / 'tiny.py')
# Steps and highest learning rate of each stage. Stage II begins with images of single objects, as Janus's with those of
# ImageNet: the tie from words to codes forms sooner where little else varies.
STAGES = {'stage1': (300, 2e-3), 'stage2_objects': (2500, 1e-3), 'stage2': (14000, 1e-3), 'stage3': (14000, 6e-4)}
# Rows of a batch. A GPU's step is bound by the number of its kernels, a CPU's by their work.
ROWS = {'cpu': 4, 'gpu': 16}


def get_config(device='cpu'):
  if device not in ROWS:
    raise InputError(f'device is {device!r}: expected one of {", ".join(ROWS)}')
  config = read_recipe(TINY)
  config.sequence_length = config.loss_chunk = 160  # Two images to generate and a sentence, or one with six questions.
  config.compute.unroll = 6
  config.data.precompute_codes = False
  config.data.num_train = 0  # A new scene for every record.
  config.data.toy_grid = 7
  config.data.toy_shapes, config.data.toy_colours, config.data.toy_sizes = 6, 8, 3
  config.data.toy_combinations = 12
  config.data.toy_mixture = (0.2, 0.25, 0.55)
  config.data.toy_questions = 6  # An image is 49 tokens, a question 12.
  # What emerges when: in the metrics and on the page.
  config.evaluation.toy = 24
  config.evaluation.every = 4000
  stages = {name: config.stages[name.partition('_')[0]].to_dict() for name in STAGES}
  for name, (steps, learning_rate) in STAGES.items():
    stages[name] |= {'steps': steps, 'learning_rate': learning_rate}
  set_stages(config, stages)
  for name, stage in config.stages.items():
    shown = 'objects' if name == 'stage2_objects' else 'shapes'
    stage.warmup_steps, stage.batch_size, stage.expected_tokens = 100, ROWS[device], (120, 12, 66)
    stage.sources.understanding = {shown: 4, 'digits': 1}
    stage.sources.generation = {shown: 9, 'digits': 1}
  config.stages.stage2_objects.ratio = (1, 1, 8)
  config.pretraining.model = 'small'
  config.pretraining.vq.steps = 4000
  config.pretraining.vision.update({'steps': 5000, 'learning_rate': 1e-3})
  config.pretraining.contrast.near_misses = 2
  config.pretraining.decoder.update({'steps': 300, 'learning_rate': 2e-3})
  if device == 'gpu':
    config.workers = -1  # One process renders 46,000 tokens of scenes a second.
    config.save_every = 5000
    config.pretraining.vision.batch_size = 64
  return config
