"""Encodes a dataset's images with a frozen VQ, once, so that training reads codes in place of pixels.

    python -m janus_jax.tokenize --input=DATASET --checkpoint=PATH --output=DIR
                                 [--records_per_shard=8192 --shard=0/1 --batch_size=16 --max_bad_share=0.01]

DATASET is a folder of images with captions beside them (`cat.jpg`, `cat.txt`), or CONFIG.py:NAME, the generation source
of that name in a config's `data.sources`. DIR gets ArrayRecord shards and a manifest.json
that says which VQ made them. Called again after an interruption it goes on where it stood. On n hosts that share DIR,
host i runs it with --shard=i/n.
"""

import importlib.util
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from janus_jax import cli, tokenizing
from janus_jax.data.resizing import RESIZES
from janus_jax.data.sources.build import items, read_specs
from janus_jax.data.sources.folder import ImageFolder
from janus_jax.data.sources.records import ToEncode
from janus_jax.errors import InputError
from janus_jax.training.value_checks import Integer, Number

_INPUT = cli.define_path('input', None, 'Folder of images with .txt captions, or CONFIG.py:NAME.', required=True)
_CHECKPOINT = cli.define_path('checkpoint', None, 'Checkpoint directory of any layout.', required=True)
_OUTPUT = cli.define_path('output', None, 'Directory for the shards.', required=True)
_NAME = flags.DEFINE_string('name', 'codes', 'What the files of shards begin with.')
_RECORDS_PER_SHARD = cli.define_number(
  'records_per_shard', 8192, 'Records of the dataset that a shard stands for.', Integer(1)
)
_SHARD = flags.DEFINE_string('shard', '0/1', 'i/n: which of n hosts this is, counted from 0.')
_BATCH_SIZE = cli.define_number('batch_size', 16, 'Images at a time on each device.', Integer(1))
_RESIZE = flags.DEFINE_enum('resize', 'fast', sorted(RESIZES), 'As config.data.resize of the training.')
_MAX_BAD_SHARE = cli.define_number('max_bad_share', 0.01, 'A larger share of bad records stops the run.', Number(0, 1))


def open_input(text: str, index_directory: str) -> Sequence[Mapping[str, Any]]:
  """The records that --input names, as `tokenizing.tokenize` takes them.

  Args:
    text: a folder, or CONFIG.py:NAME.
    index_directory: where indices are kept.

  Raises:
    InputError: no such folder, config or source, or one that is not to be drawn.
  """
  config, separator, name = text.rpartition('.py:')
  if not separator:
    return ImageFolder(text, index_directory)
  specs = read_specs(_read_config(f'{config}.py').data.sources)
  drawn = {name: spec for name, spec in specs.items() if spec.kind == 'generation' and not spec.fields.codes}
  if name not in drawn:
    raise InputError(f'{text}: no generation source of images {name!r}: expected one of {sorted(drawn)}')
  return ToEncode(items(drawn[name], index_directory), drawn[name].fields)


def _read_config(path: str) -> ConfigDict:
  spec = importlib.util.spec_from_file_location('recipe', path)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except FileNotFoundError:
    raise InputError(f'{path}: no such file: expected a recipe') from None
  return module.get_config()


def main() -> None:
  manifest = tokenizing.tokenize(
    open_input(_INPUT.value, os.path.join(_OUTPUT.value, 'index')),
    _CHECKPOINT.value,
    _OUTPUT.value,
    name=_NAME.value,
    records_per_shard=_RECORDS_PER_SHARD.value,
    shard=cli.parse_shard(_SHARD.value),
    batch_size=_BATCH_SIZE.value,
    max_bad_share=_MAX_BAD_SHARE.value,
    resize=_RESIZE.value,
  )
  count = manifest.settings.num_shards
  logging.info('%s: %d of %d shards are finished', manifest.path, len(manifest.shards), count)


if __name__ == '__main__':
  cli.run(main)
