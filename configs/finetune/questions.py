"""Own questions about own images: LoRA on one card.

    python -m janus_jax.train --config=configs/finetune/questions.py:FOLDER --workdir=DIR

FOLDER/questions.jsonl has an object a line: {"image": "a.jpg", "conversations": [{"from": "human", "value":
"<image>\\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]}, with paths from FOLDER on. After a colon the card, as in
pictures.py.
"""

import os

from janus_jax.runs.finetuning import lora_config


def get_config(argument: str = 'data/questions'):
  folder, _, card = argument.partition(':')
  sources = {
    'questions': {
      'kind': 'understanding',
      'format': 'json_lines',
      'path': os.path.join(folder, 'questions.jsonl'),
      'image_folder': folder,
      'conversations': 'conversations',
      'long': 'cut',
      'held_out': 8,
    },
  }
  return lora_config(sources, (1, 0, 0), card or '1b_16gb')
