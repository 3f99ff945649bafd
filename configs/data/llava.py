"""LLaVA and ShareGPT conversations about images: a JSON list, or an object a line.

    python -m janus_jax.train --config=configs/data/llava.py --config.init_from=PATH --workdir=DIR

See what it reads first: python -m janus_jax.data_check with the same --config and --config.init_from, and --out=DIR.
"""

from janus_jax.training.defaults import default_config


def get_config():
  config = default_config()
  config.data.name = 'files'
  config.data.sources = {
    'llava': {
      'kind': 'understanding',
      'format': 'json',  # Or 'json_lines'.
      'path': 'data/llava_v1_5_mix665k.json',  # One pattern or several: 'gs://bucket/*.jsonl'.
      'image_folder': 'data',  # What the paths in the file are relative to.
      'image': 'image',  # The field with the path, or with a list of paths. Items without it are plain conversations.
      'conversations': 'conversations',  # [{'from': 'human', 'value': ...}, ...], or {'role', 'content'}.
      'held_out': 500,  # The last records measure the loss and are never trained on.
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
      'ratio': (1, 0, 0),
      'sources': {'understanding': {'llava': 1}},
      'images_per_row': 6,
      'drawings_per_row': 6,
      'trainable': ('vision_aligner', 'gen_aligner', 'gen_embed', 'gen_head', 'language_model', 'vision_encoder'),
    },
  }
  return config
