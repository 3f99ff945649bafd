"""LLaVA and ShareGPT conversations about images: a JSON list, or an object a line.

    python -m janus_jax.train --config=configs/data/llava.py --config.init_from=PATH --workdir=DIR

See what it reads first: python -m janus_jax.data_check with the same --config and --config.init_from, and --out=DIR.
"""

from janus_jax.runs.finetuning import finetune_config


def get_config():
  sources = {
    'llava': {
      'kind': 'understanding',
      'format': 'json',  # Or 'json_lines'.
      'path': 'data/llava_v1_5_mix665k.json',  # One pattern or several: 'gs://bucket/*.jsonl'.
      'image_folder': 'data',  # What the paths in the file are relative to.
      'image': 'image',  # The field with the path, or with a list of paths. Items without it are plain conversations.
      'conversations': 'conversations',  # [{'from': 'human', 'value': ...}, ...], or {'role', 'content'}.
      'long': 'cut',  # What becomes of conversations longer than a row: the first turns that fit stay. Or 'skip'.
      'held_out': 500,  # So many, spread over the list, measure the loss and are never trained on.
      # The list is indexed once; the index lies in WORKDIR/data/index, or in data.directory.
    },
  }
  return finetune_config(sources, ratio=(1, 0, 0))
