"""Makes the pretrained parts that a Janus starts from, for the embedded world: tokenizer, VQ, SigLIP, decoder.

    python -m janus_jax.pretrain --config=configs/tiny.py --output=DIR

A real run takes these parts from others (`--config.init_from`, README). DIR becomes a checkpoint to start from.
"""

import logging
import os
import time

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from janus_jax import cli, embedded_parts
from janus_jax.conversion.checkpoint import Checkpoint, write_checkpoint
from janus_jax.conversion.export import published
from janus_jax.conversion.lazy import from_numpy
from janus_jax.training.state import flatten

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Recipe with a `pretraining` section.', lock_config=True)
_OUTPUT = flags.DEFINE_string('output', None, 'Checkpoint directory to write.', required=True)
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace an existing checkpoint at --output.')
flags.mark_flag_as_required('config')


def main() -> None:
  began = time.perf_counter()
  with published(_OUTPUT.value, _OVERWRITE.value, needed=0) as directory:
    data = _CONFIG.value.data.directory or os.path.join(os.path.dirname(os.path.abspath(_OUTPUT.value)), 'data')
    model, params, tokenizer = embedded_parts.pretrain(_CONFIG.value, data, directory)
    arrays = {path: from_numpy(np.asarray(leaf), path) for path, leaf in flatten(jax.device_get(params)).items()}
    checkpoint = Checkpoint(model, arrays, {'tokenizer.json': tokenizer}, {}, ())
    write_checkpoint(checkpoint, directory, 'orbax', lambda _: None)
  logging.info('wrote %s in %.0f s', _OUTPUT.value, time.perf_counter() - began)


if __name__ == '__main__':
  cli.run(main)
