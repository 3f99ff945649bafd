"""Reads a sample of every source of a config: what is there, how long it is, what training would skip.

    python -m janus_jax.data_check --config=configs/data/llava.py --config.init_from=PATH --out=DIR [--records=200]

Writes a contact sheet of examples as training sees them, and prints what each stage's packed batches would hold.
"""

from absl import flags

from janus_jax import cli
from janus_jax.runs import data_checking
from janus_jax.runs.config import parse_config
from janus_jax.runs.value_checks import Integer

_CONFIG = cli.define_config()
_OUT = cli.define_path('out', None, 'Where the contact sheet goes.', required=True)
_RECORDS = cli.define_number('records', 200, 'How many records of each source are read.', Integer(1))
_JSON = flags.DEFINE_bool('json', False, 'Print one JSON object per source and stage on stdout.')


def main() -> None:
  found = data_checking.check(parse_config(_CONFIG.value), _OUT.value, _RECORDS.value)
  print(found.json_lines() if _JSON.value else found.table())


if __name__ == '__main__':
  cli.run(main)
