"""Own pictures and own questions, mixed with some of the old so that nothing is forgotten: LoRA on one card.

    python -m janus_jax.train --config=configs/finetune/mixed.py:FOLDER --workdir=DIR

FOLDER/new and FOLDER/old each have pictures/ (as in pictures.py) and questions.jsonl (as in questions.py, with paths
from there on). Half of what is trained on is old: whatever the model is to be as good at as before. A few hundred
pictures and questions do, from public sets or made by the model itself. After a colon the card, as in pictures.py.
"""

import os

from janus_jax.runs.finetuning import lora_config


def get_config(argument: str = 'data'):
  folder, _, card = argument.partition(':')
  sources = {}
  for age in ('new', 'old'):
    own = os.path.join(folder, age)
    sources[f'{age}_pictures'] = {
      'kind': 'generation',
      'format': 'folder',
      'path': os.path.join(own, 'pictures'),
      'held_out': 8,
    }
    sources[f'{age}_questions'] = {
      'kind': 'understanding',
      'format': 'json_lines',
      'path': os.path.join(own, 'questions.jsonl'),
      'image_folder': own,
      'conversations': 'conversations',
      'long': 'cut',
      'held_out': 8,
    }
  return lora_config(sources, (1, 0, 1), card or '1b_16gb')
