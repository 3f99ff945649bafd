"""Encodes a dataset's images with a frozen VQ, once, so that training reads codes in place of pixels.

    python -m janus_jax.tokenize --input=FOLDER --checkpoint=PATH --output=DIR
                                 [--records_per_shard=8192 --shard=0/1 --batch_size=16 --max_bad_share=0.01]

FOLDER holds images with captions beside them (`cat.jpg`, `cat.txt`). DIR gets ArrayRecord shards and a manifest.json
that says which VQ made them. Called again after an interruption it goes on where it stood. On n hosts that share DIR,
host i runs it with --shard=i/n.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from janus_jax import cli, tokenizing
from janus_jax.data.sources.folder import ImageFolder

_INPUT = flags.DEFINE_string('input', None, 'Folder of images with .txt captions beside them.', required=True)
_CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'Checkpoint directory of any layout.', required=True)
_OUTPUT = flags.DEFINE_string('output', None, 'Directory for the shards.', required=True)
_NAME = flags.DEFINE_string('name', 'codes', 'What the files of shards begin with.')
_RECORDS_PER_SHARD = flags.DEFINE_integer('records_per_shard', 8192, 'Records of the dataset that a shard stands for.')
_SHARD = flags.DEFINE_string('shard', '0/1', 'i/n: which of n hosts this is, counted from 0.')
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 16, 'Images at a time on each device.')
_MAX_BAD_SHARE = flags.DEFINE_float('max_bad_share', 0.01, 'A larger share of bad records stops the run.')


def open_input(text: str) -> Sequence[Mapping[str, Any]]:
  """The records that --input names, as `tokenizing.tokenize` takes them."""
  return ImageFolder(text)


def main() -> None:
  manifest = tokenizing.tokenize(
    open_input(_INPUT.value),
    _CHECKPOINT.value,
    _OUTPUT.value,
    name=_NAME.value,
    records_per_shard=_RECORDS_PER_SHARD.value,
    shard=tokenizing.parse_shard(_SHARD.value),
    batch_size=_BATCH_SIZE.value,
    max_bad_share=_MAX_BAD_SHARE.value,
  )
  count = manifest.settings.num_shards
  logging.info('%s: %d of %d shards are finished', manifest.path, len(manifest.shards), count)


if __name__ == '__main__':
  cli.run(main)
