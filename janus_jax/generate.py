"""Generates images for prompts.

    python -m janus_jax.generate --checkpoint=PATH --prompt="..." [--prompts_file=F] --out=DIR
                                 [--num_images=4 --cfg_weight=5 --temperature=1 --top_k=0 --seed=0 --json]
                                 [--weights=int8 --cache_dtype=int8 --window=auto --aspect=3:2 --refiner=DIR]

One PNG per image, `00002-01.png` being the second image of the third prompt, and a contact sheet. Text chunks hold how
each was made; a run that was interrupted goes on where it stood when called again. A checkpoint is known by its path:
give another --out if what is stored there has changed. --refiner makes each image larger, of the same codes.
"""

import itertools
import json
import logging
import math
import os

import tqdm
from absl import flags

from janus_jax import cli
from janus_jax.conversion.buckets import normalized
from janus_jax.conversion.checkpoint import open_checkpoint
from janus_jax.data.aspects import Grid, parse_aspect
from janus_jax.inference import generation, image_files
from janus_jax.inference.refining import refine_stream
from janus_jax.inference.requests import ImageSettings, check_tokenizer, decoder_for
from janus_jax.inference.windows import check_window
from janus_jax.models.config import JanusConfig
from janus_jax.runs import loading, workdirs
from janus_jax.runs.value_checks import Integer
from janus_jax.sharding.mesh import parse_mesh

_CHECKPOINT, _DTYPE, _MESH = cli.define_model()
_PROMPT = flags.DEFINE_multi_string('prompt', [], 'Text to generate images for; may be given several times.')
_PROMPTS_FILE = cli.define_path(
  'prompts_file', None, 'One prompt a line; .jsonl: {"prompt": ...} a line; .json: a list.'
)
_OUT = cli.define_path('out', None, 'Directory for the images.', required=True)
_SAMPLING = cli.define_settings(ImageSettings, *workdirs.SAMPLING, stored=workdirs.SAMPLING)
_SETTINGS = cli.define_settings(ImageSettings, 'num_images', 'seed', 'batch_size', 'weights', 'cache_dtype', 'window')
(_ASPECT,) = cli.define_settings(ImageSettings, 'aspect')
_SIZE = cli.define_number(
  'size',
  None,
  'Pixels along a side of a square; default: as the checkpoint was trained to generate last.',
  Integer(1),
)
_REFINER = cli.define_path(
  'refiner', None, "Directory of a refiner, which janus_jax.pretrain makes for the checkpoint's VQ: larger images."
)
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace images in --out that were made with other settings.')
_JSON = flags.DEFINE_bool('json', False, 'Print one JSON object per image on stdout.')


def _prompts() -> list[str]:
  if bool(_PROMPT.value) == bool(_PROMPTS_FILE.value):
    raise flags.Error('expected either --prompt or --prompts_file')
  return _PROMPT.value or [record['prompt'] for record in image_files.read_prompts(_PROMPTS_FILE.value)]


def _sized(config: JanusConfig) -> JanusConfig:
  """The architecture for images of --size. Warns where the checkpoint was not trained to generate those."""
  resized, sizes = (
    config.resized(generation_size=_SIZE.value or 0),
    workdirs.generation_sizes(_CHECKPOINT.value, config),
  )
  if _SIZE.value and _SIZE.value not in sizes:
    logging.warning(
      '--size=%d: the checkpoint was trained to generate images of %s pixels, and others come out garbled: '
      'config.stages.NAME.generation_size trains them',
      _SIZE.value,
      ' and '.join(map(str, sizes)),
    )
  return resized


def _grid(config: JanusConfig) -> Grid:
  """The grid of codes of images of --aspect. Warns where the checkpoint was not trained on any but squares."""
  rows, columns = grid = generation.log_grid(config, _ASPECT.value)
  if rows != columns and not workdirs.has_aspects(_CHECKPOINT.value):
    logging.warning(
      '--aspect=%s: nothing says that the checkpoint was trained on images that are not square, and if it was not they '
      'come out garbled: `tokenize --aspects` and a source with a grid train them',
      _ASPECT.value,
    )
  return grid


def main() -> None:
  parse_aspect(_ASPECT.value)
  prompts = _prompts()
  # Opening is quick; the weights are read once prompts and directory are known to be good.
  opened = open_checkpoint(_CHECKPOINT.value)
  config = _sized(opened.config)
  tokenizer, template = loading.load_tokenizer(_CHECKPOINT.value)
  check_tokenizer(config, tokenizer)
  grid = _grid(config)
  rows = generation.prompt_rows(config, prompts, tokenizer, template, _ASPECT.value)
  sampling = workdirs.read_sampling(_CHECKPOINT.value) | cli.values(*_SAMPLING)
  settings = ImageSettings(**sampling, **cli.values(*_SETTINGS, _ASPECT))
  check_window(math.prod(grid), settings.window)
  mesh = parse_mesh(_MESH.value)
  height, width = shape = tuple(side * config.vq.downsampling for side in grid)
  refiner = loading.load_refiner(_REFINER.value, opened, shape) if _REFINER.value else None
  image_files.prepare_directory(_OUT.value)
  pairs = list(itertools.product(range(len(prompts)), range(settings.num_images)))
  paths = {(prompt, image): os.path.join(_OUT.value, f'{prompt:05}-{image:02}.png') for prompt, image in pairs}
  checkpoint, size = normalized(_CHECKPOINT.value), _SIZE.value
  made_by = {'settings': settings, 'dtype': _DTYPE.value, 'checkpoint': checkpoint, 'size': size}
  more = {'grid': f'{grid[0]} x {grid[1]}'} if height != width else {}
  more |= {'refiner': os.path.abspath(_REFINER.value)} if refiner else {}
  chunks = {pair: {**image_files.image_settings(prompts[pair[0]], pair, **made_by), **more} for pair in pairs}
  finished = {pair: image_files.finished_codes(paths[pair], chunks[pair], _OVERWRITE.value) for pair in pairs}

  def report(prompt: int, image: int, codes: list[int]) -> None:
    if _JSON.value:
      values = {'prompt': prompts[prompt], 'index': image, 'seed': settings.seed, 'codes': codes}
      values |= {'grid': grid} if height != width else {}
      if refiner:
        scale = refiner.config.scale
        values['size'] = scale * width if height == width else [scale * width, scale * height]
      print(json.dumps({**values, 'path': paths[prompt, image]}), flush=True)

  for pair, codes in finished.items():
    if codes is not None:
      report(*pair, codes)
  wanted = [pair for pair, codes in finished.items() if codes is None]
  if wanted:
    janus = loading.load(checkpoint, _DTYPE.value, mesh, generation_size=size)
    decoder = decoder_for(janus, settings.weights, settings.cache_dtype)
    images = generation.stream_images(decoder, rows, wanted, tokenizer.special.pad, settings)
    if refiner:
      images = refine_stream(refiner, images, settings.seed)
    for image in tqdm.tqdm(images, 'generating', len(wanted), unit='image', dynamic_ncols=True):
      pair, codes = (image.prompt_index, image.image_index), image.codes.tolist()
      image_files.save_image(paths[pair], image.pixels, codes, chunks[pair])
      report(*pair, codes)
  image_files.write_sheet(_OUT.value, list(paths.values()), settings.num_images)
  logging.info('%s: %d images generated, %d already there', _OUT.value, len(wanted), len(pairs) - len(wanted))


if __name__ == '__main__':
  cli.run(main)
