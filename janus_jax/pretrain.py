"""Makes the pretrained parts that a Janus starts from, for the toy world: tokenizer, VQ, SigLIP, decoder.

    python -m janus_jax.pretrain --config=configs/tiny.py --output=DIR

A real run takes these parts from others (`--config.init_from`, README). DIR becomes a checkpoint to start from.

    python -m janus_jax.pretrain --config=configs/refiner.py:CHECKPOINT --output=DIR

makes a refiner for the VQ of a checkpoint: `generate --refiner=DIR` makes images twice as large. It prints what it
measured on held-out images. Stopped, it leaves DIR.resume, with which the same command goes on.
"""

from absl import flags

from janus_jax import cli
from janus_jax.runs import refining
from janus_jax.runs.config import parse_config
from janus_jax.toy import parts

_CONFIG = cli.define_config('Recipe with a `pretraining` section, or with one called `refining`.')
_OUTPUT = cli.define_path('output', None, 'Directory to write: of the checkpoint, or of the refiner.', required=True)
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace what is at --output.')


def main() -> None:
  config = parse_config(_CONFIG.value)
  if config.refining is not None:
    print(refining.make_refiner(config, _OUTPUT.value, _OVERWRITE.value))
    return
  data = config.data
  parts.write_parts(config.pretraining, data.toy, config.seed, data.directory, _OUTPUT.value, _OVERWRITE.value)


if __name__ == '__main__':
  cli.run(main)
