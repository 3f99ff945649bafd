"""Datasets of TFDS: class names as prompts, captions as answers.

    python -m janus_jax.train --config=configs/data/tfds.py --config.init_from=PATH --workdir=DIR

Prepare each once:

    tfds.builder('imagenet2012', data_dir='data/tfds', file_format='array_record').download_and_prepare()

See what it reads first: python -m janus_jax.data_check with the same --config and --config.init_from, and --out=DIR.
"""

from janus_jax.runs.finetuning import finetune_config


def get_config():
  sources = {
    'imagenet': {
      'kind': 'generation',
      'format': 'tfds',
      'path': 'imagenet2012',  # Any builder, with its config and version if wanted.
      'directory': 'data/tfds',  # `data_dir`.
      'split': 'train',
      'prompt': 'label',  # A class label becomes its name,
      'names': 'data/imagenet_names.txt',  # or line n of this file: TFDS calls ImageNet's classes n01440764.
      'prompt_templates': ('{}', 'a photo of a {}'),  # One is sampled.
    },
    'coco': {
      'kind': 'understanding',
      'format': 'tfds',
      'path': 'coco_captions',
      'directory': 'data/tfds',
      'answer': 'captions/text',  # A field within a field; of its list one is sampled.
    },
  }
  return finetune_config(sources, ratio=(1, 0, 3))
