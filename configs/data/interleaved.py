"""Documents with images in them, as WikiHow's and Wikipedia's are: text and images in one order, all text supervised.

    python -m janus_jax.train --config=configs/data/interleaved.py --config.init_from=PATH --workdir=DIR

See what it reads first: python -m janus_jax.data_check with the same --config and --config.init_from, and --out=DIR.
"""

from janus_jax.runs.finetuning import finetune_config


def get_config():
  sources = {
    'articles': {
      'kind': 'understanding',
      'format': 'json_lines',
      'path': 'data/articles/*.jsonl',
      'image_folder': 'data/articles',
      # {"text": "Cut the paper. <image> Fold it. <image>", "images": ["1.jpg", "2.jpg"]}: one mark for each image,
      'interleaved': 'text',
      'image': 'images',
    },
    'books': {
      'kind': 'understanding',
      'format': 'json_lines',
      'path': 'data/books/*.jsonl',
      'image_folder': 'data/books',
      # or {"parts": [{"type": "text", "text": "Cut the paper."}, {"type": "image", "image": "1.jpg"}, ...]}.
      'interleaved': 'parts',
    },
  }
  return finetune_config(sources, ratio=(1, 0, 0))
