"""Reads a sample of every source of a config: what is there, how long it is, what training would skip.

    python -m janus_jax.data_check --config=configs/data/llava.py --config.init_from=PATH --out=DIR [--records=200]

Writes a contact sheet of examples as training sees them, and prints what each stage's packed batches would hold.
"""

from absl import flags
from ml_collections import config_flags

from janus_jax import cli, data_checking
from janus_jax.pictures import prepare_directory

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Recipe, a file of configs/.', lock_config=True)
_OUT = flags.DEFINE_string('out', None, 'Where the contact sheet goes.', required=True)
_RECORDS = flags.DEFINE_integer('records', 200, 'How many records of each source are read.', lower_bound=1)
_JSON = flags.DEFINE_bool('json', False, 'Print one JSON object per source and stage on stdout.')
flags.mark_flag_as_required('config')


def main() -> None:
  prepare_directory(_OUT.value)
  found = data_checking.check(_CONFIG.value, _OUT.value, _RECORDS.value)
  print(found.json_lines() if _JSON.value else found.table())


if __name__ == '__main__':
  cli.run(main)
