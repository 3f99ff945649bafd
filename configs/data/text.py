"""Text to train on as it is, and conversations of which the answers are supervised.

    python -m janus_jax.train --config=configs/data/text.py --config.init_from=PATH --workdir=DIR

See what it reads first: python -m janus_jax.data_check with the same --config and --config.init_from, and --out=DIR.
"""

from janus_jax.runs.finetuning import finetune_config


def get_config():
  sources = {
    'corpus': {
      'kind': 'text',
      'format': 'text',  # Documents with blank lines between them: UTF-8, UTF-16 with its mark, or gzip of these.
      'path': 'data/corpus/*.txt',
      'long': 'split',  # Documents longer than a row become several examples. Or 'skip'.
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
      'system': '',  # Comes before each. Questions about images get Janus's own where nothing is said.
    },
  }
  return finetune_config(sources, ratio=(0, 1, 0))
