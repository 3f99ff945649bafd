"""Own pictures with captions, to generate: LoRA on one card.

    python -m janus_jax.train --config=configs/finetune/pictures.py:FOLDER --workdir=DIR
    python -m janus_jax.train --config=configs/finetune/pictures.py:FOLDER:7b_24gb --workdir=DIR

FOLDER has cat.jpg and cat.txt, any number of folders deep. After a colon: the model and the memory of the card, one of
1b_16gb (the default), 7b_24gb, 7b_80gb (`runs/finetuning.py`). configs/README.md says what each takes.
"""

from janus_jax.runs.finetuning import lora_config


def get_config(argument: str = 'data/pictures'):
  folder, _, card = argument.partition(':')
  sources = {
    'pictures': {
      'kind': 'generation',
      'format': 'folder',
      'path': folder,
      # So many pictures measure the loss, and are never trained on.
      'held_out': 8,
    },
  }
  return lora_config(sources, (0, 0, 1), card or '1b_16gb')
