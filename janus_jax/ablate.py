"""Trains variants of a recipe with several seeds, measures them alike, and compares them in one report.

    python -m janus_jax.ablate --config=configs/ablations/stage1_length.py --workdir=DIR
        [--config.seeds=0,1,2 --config.base.FIELD=VALUE ... --report=DIR --shard=0/1 --retry_failed]

DIR gets report.html, results.csv, table.md and plots/, and holds the runs, each an ordinary training workdir. What is
finished is not done again: the same command goes on after an interruption, and with a variant or a seed more it runs
that alone. What runs have in common is trained once, also by several ablations in one DIR, each with a --report of its
own. On n machines that share DIR, machine i has --shard=i/n.
"""

import logging

from absl import flags

from janus_jax import cli
from janus_jax.ablation import settings, sweep

_CONFIG = cli.define_config('Ablation, a file of configs/ablations.')
_WORKDIR = cli.define_path('workdir', None, 'Where runs, results and the report go.', required=True)
_REPORT = cli.define_path('report', None, 'Where the report goes; default: the workdir.')
_SHARD = flags.DEFINE_string('shard', '0/1', 'i/n: which of n processes this is, counted from 0.')
_RETRY_FAILED = flags.DEFINE_bool('retry_failed', False, 'Try again what failed.')


def main() -> None:
  shard = cli.parse_shard(_SHARD.value)
  ablation = settings.read_ablation(_CONFIG.value)
  if sweep.ablate(ablation, _WORKDIR.value, shard, _RETRY_FAILED.value, _REPORT.value):
    logging.info('all runs of this call are over')


if __name__ == '__main__':
  cli.run(main)
