"""Measures how fast a config's data comes.

    python -m janus_jax.benchmark --mode=data --config=FILE --config.init_from=PATH [--stage=NAME --seconds=20
                                  --step_seconds=0 --json]

`--step_seconds` stands for the device: so long each batch is "trained on" while the next ones are made; what is left
is the time a step waits.
"""

import json
import tempfile

from absl import flags
from ml_collections import config_flags

from janus_jax import cli, data_benchmark

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Recipe, a file of configs/.', lock_config=True)
_MODE = flags.DEFINE_enum('mode', None, ['data'], 'What is measured.', required=True)
_STAGE = flags.DEFINE_string('stage', None, 'Of the config; default: its last one.')
_SECONDS = flags.DEFINE_float('seconds', 20.0, 'How long to measure.', lower_bound=0.1)
_STEP_SECONDS = flags.DEFINE_float('step_seconds', 0.0, 'What a training step takes.', lower_bound=0.0)
_JSON = flags.DEFINE_bool('json', False, 'Print one JSON object on stdout.')
flags.mark_flag_as_required('config')


def main() -> None:
  with tempfile.TemporaryDirectory() as scratch:
    found = data_benchmark.measure(_CONFIG.value, _STAGE.value, scratch, _SECONDS.value, _STEP_SECONDS.value)
  print(json.dumps(found) if _JSON.value else '\n'.join(f'{name:24} {value}' for name, value in found.items()))


if __name__ == '__main__':
  cli.run(main)
