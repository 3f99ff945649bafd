"""Text to train on as it is, and conversations of which the answers are supervised.

    python -m janus_jax.train --config=configs/data/text.py --config.init_from=PATH --workdir=DIR

See what it reads first: python -m janus_jax.data_check with the same --config and --config.init_from, and --out=DIR.
"""

from janus_jax.training.defaults import default_config


def get_config():
  config = default_config()
  config.data.name = 'files'
  config.data.sources = {
    'corpus': {
      'kind': 'text',
      'format': 'text',  # Documents with blank lines between them.
      'path': 'data/corpus/*.txt',
    },
    'web': {
      'kind': 'text',
      'format': 'json_lines',
      'path': 'data/web/*.jsonl',
      'text': 'text',  # The field with the document.
    },
    'chats': {
      'kind': 'text',
      'format': 'json_lines',
      'path': 'data/chats.jsonl',
      'conversations': 'messages',  # [{'role': 'user', 'content': ...}, ...].
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
      'ratio': (0, 1, 0),
      'sources': {'text': {'corpus': 2, 'web': 2, 'chats': 1}},
      'images_per_row': 6,
      'drawings_per_row': 6,
      'trainable': ('vision_aligner', 'gen_aligner', 'gen_embed', 'gen_head', 'language_model', 'vision_encoder'),
    },
  }
  return config
