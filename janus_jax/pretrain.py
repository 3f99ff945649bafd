"""Makes the pretrained parts that a Janus starts from, for the toy world: tokenizer, VQ, SigLIP, decoder.

    python -m janus_jax.pretrain --config=configs/tiny.py --output=DIR

A real run takes these parts from others (`--config.init_from`, README). DIR becomes a checkpoint to start from.
"""

from absl import flags

from janus_jax import cli
from janus_jax.runs.config import parse_config
from janus_jax.toy import parts

_CONFIG = cli.define_config('Recipe with a `pretraining` section.')
_OUTPUT = cli.define_path('output', None, 'Checkpoint directory to write.', required=True)
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace an existing checkpoint at --output.')


def main() -> None:
  config = parse_config(_CONFIG.value)
  data = config.data
  parts.write_parts(config.pretraining, data.toy, config.seed, data.directory, _OUTPUT.value, _OVERWRITE.value)


if __name__ == '__main__':
  cli.run(main)
