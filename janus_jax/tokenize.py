"""Encodes a dataset's images with a frozen VQ, once, so that training reads codes in place of pixels.

    python -m janus_jax.tokenize --input=DATASET --checkpoint=PATH --output=DIR
                                 [--records_per_shard=8192 --shard=0/1 --batch_size=16 --max_bad_fraction=0.01]
                                 [--aspects]

DATASET is a folder of images with captions beside them (`cat.jpg`, `cat.txt`), or RECIPE.py:SOURCE, the generation
source of that name in a recipe's `data.sources`, or RECIPE.py:ARGUMENT:SOURCE of a recipe that takes an argument
(`configs/janus_pro_1b.py:ROOT:SOURCE`). DIR gets ArrayRecord shards and a manifest.json
that says which VQ made them. Called again after an interruption it resumes. On n hosts that share DIR,
host i runs it with --shard=i/n. With --aspects images are not cut to squares, and a source of the codes names the
field of their grids: 'grid': 'grid'.
"""

import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from janus_jax import cli
from janus_jax.data.resizing import RESIZES
from janus_jax.data.skipping import SkipLimit
from janus_jax.data.sources.build import FILE_NAMES, SourceSpec, items, read_specs
from janus_jax.data.sources.files import find_files
from janus_jax.data.sources.folder import ImageFolder
from janus_jax.data.sources.identity import files_digest, folder_digest
from janus_jax.data.sources.records import ToEncode
from janus_jax.errors import InputError
from janus_jax.runs import tokenizing
from janus_jax.runs.recipes import read_recipe
from janus_jax.runs.value_checks import Integer, Number

_INPUT = cli.define_path(
  'input', None, 'Folder of images with .txt captions, or RECIPE.py[:ARGUMENT]:SOURCE.', required=True
)
_CHECKPOINT = cli.define_checkpoint()
_OUTPUT = cli.define_path('output', None, 'Directory for the shards.', required=True)
_NAME = flags.DEFINE_string('name', 'codes', 'What the files of shards begin with.')
_RECORDS_PER_SHARD = cli.define_number(
  'records_per_shard', 8192, 'Records of the dataset that a shard stands for.', Integer(1)
)
_SHARD = flags.DEFINE_string('shard', '0/1', 'i/n: which of n hosts this is, counted from 0.')
_BATCH_SIZE = cli.define_number('batch_size', 16, 'Images at a time on each device.', Integer(1))
_IMAGE_SIZE = cli.define_number(
  'image_size',
  None,
  "Pixels along a side of the encoded square (generation_size of a stage); default: the VQ's.",
  Integer(1),
)
_ASPECTS = flags.DEFINE_bool('aspects', False, 'Keep the aspect of images, as nearly as a grid of no more codes can.')
_RESIZE = flags.DEFINE_enum('resize', 'fast', sorted(RESIZES), 'As config.data.resize of the training.')
_MAX_BAD_FRACTION = cli.define_number(
  'max_bad_fraction', SkipLimit.fraction, 'A larger fraction of bad records stops the run.', Number(0, 1)
)


def find_source(text: str) -> SourceSpec | None:
  """The source that --input names; None where it is a folder.

  Args:
    text: a folder, RECIPE.py:SOURCE, or RECIPE.py:ARGUMENT:SOURCE, where the argument of the recipe may have colons.

  Raises:
    InputError: no such recipe or source, or one that is not of images to generate.
  """
  recipe, separator, rest = text.partition('.py:')
  if text.endswith('.py'):
    recipe, separator = text.removesuffix('.py'), '.py:'
  if not separator or os.path.isdir(text):
    return None
  argument, colon, name = rest.rpartition(':')
  found = _image_sources(f'{recipe}.py{colon}{argument}')
  if name not in found:
    if rest and not colon:  # Perhaps it is the argument.
      with contextlib.suppress(InputError):
        found = _image_sources(f'{recipe}.py:{rest}') or found
    known = f'expected one of {sorted(found)}' if found else 'the recipe has none'
    form = ' (--input=RECIPE.py:SOURCE, or RECIPE.py:ARGUMENT:SOURCE for a recipe that takes an argument)'
    raise InputError(f'{text}: no generation source of images {name!r}: {known}{form}')
  return found[name]


def _image_sources(recipe: str) -> dict[str, SourceSpec]:
  config = read_recipe(recipe)
  if config.get('data') is None or config.data.get('sources') is None:
    raise InputError(f'{recipe}: no data.sources: expected the recipe of a training run')
  specs = read_specs(config.data.sources)
  return {name: spec for name, spec in specs.items() if spec.kind == 'generation' and not spec.fields.codes}


def open_input(text: str, index_directory: str) -> Sequence[Mapping[str, Any]]:
  """The records that --input names, as `tokenizing.tokenize` takes them.

  Args:
    text: see `find_source`.
    index_directory: where indices are kept.

  Raises:
    InputError: see `find_source`; no such folder, or files that cannot be read.
  """
  spec = find_source(text)
  if spec is None:
    return ImageFolder(text, index_directory)
  return ToEncode(items(spec, index_directory), spec.fields)


def input_digest(text: str) -> str:
  """A digest of the files that --input names; of a TFDS builder of its name and split alone.

  Raises:
    InputError: see `open_input`.
  """
  spec = find_source(text)
  if spec is None or spec.format == 'folder':
    return folder_digest(text if spec is None else spec.path[0])
  if spec.format == 'tfds':
    return f'{spec.path[0]} {spec.split}'
  return files_digest([*find_files(spec.path, FILE_NAMES[spec.format]), *filter(None, [spec.fields.names])])


def main() -> None:
  settings = tokenizing.TokenizeSettings(
    name=_NAME.value,
    records_per_shard=_RECORDS_PER_SHARD.value,
    shard=cli.parse_shard(_SHARD.value),
    batch_size=_BATCH_SIZE.value,
    max_bad_fraction=_MAX_BAD_FRACTION.value,
    resize=_RESIZE.value,
    image_size=_IMAGE_SIZE.value,
    aspects=_ASPECTS.value,
    files=input_digest(_INPUT.value),
  )
  records = open_input(_INPUT.value, os.path.join(_OUTPUT.value, 'index'))
  manifest = tokenizing.tokenize(records, _CHECKPOINT.value, _OUTPUT.value, settings)
  count = manifest.settings.num_shards
  logging.info('%s: %d of %d shards are finished', manifest.path, len(manifest.shards), count)


if __name__ == '__main__':
  cli.run(main)
