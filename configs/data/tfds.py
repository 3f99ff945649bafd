"""Datasets of TFDS: class names as prompts, captions as answers.

    python -m janus_jax.train --config=configs/data/tfds.py --config.init_from=PATH --workdir=DIR

Prepare each once:

    tfds.builder('imagenet2012', data_dir='data/tfds', file_format='array_record').download_and_prepare()

See what it reads first: python -m janus_jax.data_check with the same --config and --config.init_from, and --out=DIR.
"""

from janus_jax.training.defaults import default_config


def get_config():
  config = default_config()
  config.data.name = 'files'
  config.data.sources = {
    'imagenet': {
      'kind': 'generation',
      'format': 'tfds',
      'path': 'imagenet2012',  # Any builder, with its config and version if wanted.
      'directory': 'data/tfds',  # `data_dir`.
      'split': 'train',
      'prompt': 'label',  # A class label becomes its name,
      'names': 'data/imagenet_names.txt',  # or line n of this file: TFDS calls ImageNet's classes n01440764.
      'wordings': ('{}', 'a photo of a {}'),  # One is drawn.
    },
    'coco': {
      'kind': 'understanding',
      'format': 'tfds',
      'path': 'coco_captions',
      'directory': 'data/tfds',
      'answer': 'captions/text',  # A field within a field; of its list one is drawn.
    },
  }
  config.workers = 8  # About as many as there are cores for each device.
  config.run = ('finetune',)
  config.stages = {
    'finetune': {
      'steps': 1000,
      'batch_size': 8,
      'learning_rate': 4e-5,
      'schedule': 'constant',
      'warmup_steps': 0,
      'ratio': (1, 0, 3),
      'sources': {'understanding': {'coco': 1}, 'generation': {'imagenet': 1}},
      'images_per_row': 6,
      'drawings_per_row': 6,
      'trainable': ('vision_aligner', 'gen_aligner', 'gen_embed', 'gen_head', 'language_model', 'vision_encoder'),
    },
  }
  return config
