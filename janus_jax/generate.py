"""Draws pictures for prompts.

    python -m janus_jax.generate --checkpoint=PATH --prompt="..." [--prompts_file=F] --out=DIR
                                 [--num_images=4 --cfg_weight=5 --temperature=1 --top_k=0 --seed=0 --json]
                                 [--weights=int8 --cache_dtype=int8]

One PNG per picture, `00002-01.png` being the second picture of the third prompt, and a contact sheet. Text chunks hold
how each was made; a run that was interrupted goes on where it stood when called again. A checkpoint is known by its
path: give another --out if what is stored there has changed.
"""

import functools
import json
import logging
import os
from collections.abc import Callable

import tqdm
from absl import flags

from janus_jax import cli
from janus_jax.conversion.buckets import normalized
from janus_jax.conversion.checkpoint import open_checkpoint
from janus_jax.conversion.export import DTYPES
from janus_jax.inference import generation, image_files
from janus_jax.inference.cache import CACHE_DTYPES
from janus_jax.inference.decoder import WEIGHTS
from janus_jax.inference.requests import ImageSettings, check_tokenizer, decoder_for
from janus_jax.runs import loading, workdirs
from janus_jax.runs.value_checks import SEED, Integer, Number
from janus_jax.sharding.mesh import parse_mesh

_CHECKPOINT = cli.define_path('checkpoint', None, 'Checkpoint directory of any layout.', required=True)
_PROMPT = flags.DEFINE_multi_string('prompt', [], 'What to draw; may be given several times.')
_PROMPTS_FILE = cli.define_path(
  'prompts_file', None, 'One prompt a line; .jsonl: {"prompt": ...} a line; .json: a list.'
)
_OUT = cli.define_path('out', None, 'Directory for the pictures.', required=True)
_NUM_IMAGES = cli.define_number('num_images', 4, 'Pictures per prompt.', Integer(1))
_CFG_WEIGHT = cli.define_number(
  'cfg_weight',
  None,
  'Weight of classifier-free guidance; 1: none, 0: no prompt. Default: as a workdir says, else 5.',
  Number(),
)
_TEMPERATURE = cli.define_number(
  'temperature', None, 'Divides the logits; 0 takes the most likely code. Default: as a workdir says, else 1.', Number()
)
_TOP_K = cli.define_number(
  'top_k', None, 'Only the k most likely codes; 0: all. Default: as a workdir says, else 0.', Integer()
)
_SEED = cli.define_number(
  'seed', 0, '(seed, prompt, picture) always gives the same picture; in bfloat16 at the same --batch_size.', SEED
)
_DTYPE = flags.DEFINE_enum('dtype', 'bfloat16', list(DTYPES), 'What to compute in.')
_WEIGHTS = flags.DEFINE_enum(
  'weights', 'full', list(WEIGHTS), 'What kernels are stored in; int8 takes less memory and time, and costs accuracy.'
)
_CACHE_DTYPE = flags.DEFINE_enum('cache_dtype', None, list(CACHE_DTYPES), 'Of keys and values; default: --dtype.')
_BATCH_SIZE = cli.define_number('batch_size', None, 'Pictures at a time; default: what fits the device.', Integer(1))
_MESH = flags.DEFINE_string('mesh', None, 'Spread the parameters over devices, e.g. tensor=2,fsdp=-1.')
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace pictures in --out that were made with other settings.')
_JSON = flags.DEFINE_bool('json', False, 'Print one JSON object per picture on stdout.')


def _prompts() -> list[str]:
  if bool(_PROMPT.value) == bool(_PROMPTS_FILE.value):
    raise flags.Error('expected either --prompt or --prompts_file')
  return _PROMPT.value or image_files.read_prompts(_PROMPTS_FILE.value)


@functools.cache  # A workdir may lie in a bucket, and every picture asks.
def _sampling() -> dict[str, float | int]:
  given = {'cfg_weight': _CFG_WEIGHT.value, 'temperature': _TEMPERATURE.value, 'top_k': _TOP_K.value}
  stated = workdirs.read_sampling(_CHECKPOINT.value)
  return stated | {name: value for name, value in given.items() if value is not None}


def _settings(prompts: list[str], prompt: int, image: int) -> dict[str, str]:
  """Everything a picture depends on, as text chunks."""
  return {
    'prompt': prompts[prompt].strip(),
    'prompt_index': str(prompt),
    'image_index': str(image),
    'seed': str(_SEED.value),
    **{name: str(value) for name, value in _sampling().items()},
    'dtype': _DTYPE.value,
    'weights': _WEIGHTS.value,
    'cache_dtype': _CACHE_DTYPE.value or _DTYPE.value,
    'checkpoint': normalized(_CHECKPOINT.value),
  }


def _path(prompt: int, image: int) -> str:
  return os.path.join(_OUT.value, f'{prompt:05}-{image:02}.png')


def _reporter(prompts: list[str]) -> Callable[[int, int, list[int]], None]:
  """What prints one JSON object for a picture, where --json asks for it."""

  def report(prompt: int, image: int, codes: list[int]) -> None:
    if _JSON.value:
      values = {'prompt': prompts[prompt], 'index': image, 'seed': _SEED.value, 'codes': codes}
      print(json.dumps({**values, 'path': _path(prompt, image)}), flush=True)

  return report


def main() -> None:
  prompts = _prompts()
  # Opening is quick; the weights are read once prompts and directory are known to be good.
  config = open_checkpoint(_CHECKPOINT.value).config
  tokenizer, template = loading.load_tokenizer(_CHECKPOINT.value)
  check_tokenizer(config, tokenizer)
  rows = generation.prompt_rows(config, prompts, tokenizer, template)
  settings = ImageSettings(
    seed=_SEED.value,
    batch_size=_BATCH_SIZE.value,
    weights=_WEIGHTS.value,
    cache_dtype=_CACHE_DTYPE.value,
    num_images=_NUM_IMAGES.value,
    **_sampling(),
  )
  mesh = parse_mesh(_MESH.value)
  image_files.prepare_directory(_OUT.value)
  report = _reporter(prompts)
  pairs = [(prompt, image) for prompt in range(len(prompts)) for image in range(_NUM_IMAGES.value)]
  finished = {
    pair: image_files.finished_codes(_path(*pair), _settings(prompts, *pair), _OVERWRITE.value) for pair in pairs
  }
  wanted = [pair for pair in pairs if finished[pair] is None]
  for pair in pairs:
    if finished[pair] is not None:
      report(*pair, finished[pair])
  if wanted:
    janus = loading.load(_CHECKPOINT.value, _DTYPE.value, mesh)
    decoder = decoder_for(janus, settings.weights, settings.cache_dtype)
    images = generation.stream_images(decoder, rows, wanted, tokenizer.special.pad, settings)
    with tqdm.tqdm(total=len(wanted), desc='generating', unit='image', dynamic_ncols=True) as bar:
      for image in images:
        pair, codes = (image.prompt_index, image.image_index), image.codes.tolist()
        image_files.save_picture(_path(*pair), image.pixels, codes, _settings(prompts, *pair))
        report(*pair, codes)
        bar.update()
  image_files.write_sheet(_OUT.value, [_path(*pair) for pair in pairs], _NUM_IMAGES.value)
  logging.info('%s: %d images generated, %d already there', _OUT.value, len(wanted), len(pairs) - len(wanted))


if __name__ == '__main__':
  cli.run(main)
