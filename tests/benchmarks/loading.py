"""Images per second from JPEG files to packed batches, against torch's DataLoader with transformers' Janus processor.

    python tests/benchmarks/loading.py

Both read the same files with the same number of worker processes. Ours decodes, resizes to 384 pixels, tokenises a
question and its answer and packs rows of 4,096 tokens; theirs decodes, resizes, normalises and stacks pixels, and does
no text at all.
"""

import argparse
import json
import os
import pathlib
import statistics
import tempfile
import time

import numpy as np
import torch
import transformers
from PIL import Image
from sklearn.datasets import load_sample_images
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from janus_jax.data.examples import ExampleSpec
from janus_jax.data.mixture import make_mixture
from janus_jax.data.packing import BatchShape
from janus_jax.data.pipeline import StreamOptions, batches
from janus_jax.data.prompts import TEMPLATES
from janus_jax.data.resizing import fast
from janus_jax.data.sources.build import ImageSizes, open_sources, read_specs
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.toy import tokenizer_training
from janus_jax.toy.shapes import World

SIZE, TOKENS = 384, 576
SHAPE = BatchShape(8, 4096, 48, 0)


def write_photographs(directory: pathlib.Path, number: int) -> list[str]:
  """JPEG files of 640 x 427 pixels or a little less, cut from two photographs, all different."""
  photos, paths = load_sample_images().images, []
  for i in range(number):
    path = directory / f'{i:05}.jpg'
    Image.fromarray(photos[i % 2][i % 37 :, i % 41 :]).save(path, quality=90)
    paths.append(str(path))
  return paths


def ours(directory: pathlib.Path, paths: list[str], workers: int):
  """An endless iterator over packed batches."""
  tokenizer_path = directory / 'tokenizer.json'
  tokenizer_training.train_tokenizer(tokenizer_training.toy_texts(World(), 50), tokenizer_path, 384)
  lines = [json.dumps({'image': path, 'caption': 'A photograph.'}) for path in paths]
  (directory / 'captions.jsonl').write_text('\n'.join(lines))
  entry = {
    'kind': 'understanding',
    'format': 'json_lines',
    'path': str(directory / 'captions.jsonl'),
    'answer': 'caption',
  }
  sources = open_sources(read_specs({'photos': entry}), ImageSizes(SIZE, SIZE, fast), 0, str(directory))['train']
  spec = ExampleSpec(
    Tokenizer(str(tokenizer_path)), TEMPLATES['deepseek'], TOKENS, TOKENS, SIZE, SIZE, 4096
  )  # fmt: skip
  mixture = make_mixture((1, 0, 0), {'understanding': {'photos': 1}})
  return batches(sources, mixture, spec, SHAPE, StreamOptions(0, workers=workers, prefetch=2))


class Photographs(torch.utils.data.Dataset):
  """What a user of transformers writes."""

  def __init__(self, paths: list[str], processor: JanusImageProcessorPil):
    self.paths, self.processor = paths, processor

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, index: int) -> torch.Tensor:
    image = Image.open(self.paths[index]).convert('RGB')
    return self.processor(image, return_tensors='pt')['pixel_values'][0]


def rate(iterator, count_images, seconds: float) -> float:
  """Images per second after one warm-up batch."""
  next(iterator)
  start, images = time.perf_counter(), 0
  while time.perf_counter() - start < seconds:
    images += count_images(next(iterator))
  return images / (time.perf_counter() - start)


def theirs(paths: list[str], workers: int):
  """An endless iterator over batches of pixels."""
  dataset = Photographs(paths, JanusImageProcessorPil())
  while True:
    yield from torch.utils.data.DataLoader(dataset, batch_size=48, num_workers=workers, shuffle=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--images', type=int, default=2000)
  parser.add_argument('--workers', type=int, default=os.cpu_count())
  parser.add_argument('--seconds', type=float, default=20)
  parser.add_argument('--repeats', type=int, default=3)
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as name:
    directory = pathlib.Path(name)
    paths = write_photographs(directory, arguments.images)
    found: dict[str, list[float]] = {'janus_jax': [], 'transformers': []}
    for _ in range(arguments.repeats):
      stream = ours(directory, paths, arguments.workers)
      # Slots of images that no example fills are not counted.
      found['janus_jax'].append(
        rate(stream, lambda batch: int(np.any(batch['pixels'], (2, 3, 4)).sum()), arguments.seconds)
      )
      stream.close()
      found['transformers'].append(rate(theirs(paths, arguments.workers), len, arguments.seconds))
  rates = {side: round(statistics.median(values), 1) for side, values in found.items()}
  ratio = round(rates['janus_jax'] / rates['transformers'], 2)
  print(json.dumps({'figure': 'images_per_second', 'workers': arguments.workers, **rates, 'ratio': ratio}))


if __name__ == '__main__':
  transformers.logging.set_verbosity_error()
  main()
