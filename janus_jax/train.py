"""Trains a Janus through its stages.

    python -m janus_jax.train --config=configs/tiny.py --workdir=DIR [--config.stages.stage2.steps=300 ...]

The same command again goes on where the newest checkpoint in DIR left off. The step is in training/step.py.
"""

from absl import flags
from ml_collections import config_flags

from janus_jax import cli, training_run

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Recipe, a file of configs/.', lock_config=True)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where checkpoints, metrics and samples go.', required=True)
_FORCE = flags.DEFINE_bool('force', False, 'Go on in a workdir that was made with another config.')
flags.mark_flag_as_required('config')


def main() -> None:
  training_run.train(_CONFIG.value, _WORKDIR.value, force=_FORCE.value)


if __name__ == '__main__':
  cli.run(main)
