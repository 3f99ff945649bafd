"""Makes the pretrained parts that a Janus starts from, for the embedded world: tokenizer, VQ, SigLIP, decoder.

    python -m janus_jax.pretrain --config=configs/tiny.py --output=DIR

A real run takes these parts from others (`--config.init_from`, README). DIR becomes a checkpoint to start from.
"""

from absl import flags
from ml_collections import config_flags

from janus_jax import cli, embedded_parts

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Recipe with a `pretraining` section.', lock_config=True)
_OUTPUT = flags.DEFINE_string('output', None, 'Checkpoint directory to write.', required=True)
_OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace an existing checkpoint at --output.')
flags.mark_flag_as_required('config')


def main() -> None:
  embedded_parts.write(_CONFIG.value, _OUTPUT.value, _OVERWRITE.value)


if __name__ == '__main__':
  cli.run(main)
