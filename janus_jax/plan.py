"""Says before it is paid for whether a run fits on a topology, and how fast it can be there. Needs no accelerator.

    python -m janus_jax.plan --config=configs/janus_pro_7b.py --topology=v5e-16 [--stage=NAME --hints=false --json]

Topologies: v5e-N, v6e-N (chips), v5p-N, tpu7x-N (cores, two per chip), 2xv5e-256 for two slices, cpu-N. For GPUs,
h100-N, h200-N, b200-N, gb200-N, a100-N, l40s-N and rtx4090-N, memory and time are estimated by formula. TPUs need the
compiler in `pip install 'janus_jax[tpu]'`; a real model takes it minutes per stage. It is the one a TPU runs:
LIBTPU_INIT_ARGS counts, as do JAX_COMPILATION_CACHE_DIR and JAX_OPTIMIZATION_LEVEL (O1 takes a third of the time, and
finds memory up to a tenth smaller).
"""

from absl import flags
from ml_collections import config_flags

from janus_jax import cli
from janus_jax.planning.report import plan_and_print
from janus_jax.planning.topologies import parse_topology, prepare_process
from janus_jax.runs.config import parse_config

_CONFIG = cli.define_config()
_TOPOLOGY = flags.DEFINE_string('topology', None, 'Devices to plan for, such as v5e-16.', required=True)
_STAGE = flags.DEFINE_string('stage', None, 'Stage of the config; default: all that it runs.')
_HINTS = flags.DEFINE_bool('hints', True, 'Look for settings with which a stage fits that does not.')
_JSON = flags.DEFINE_bool('json', False, 'Print one JSON object per stage on stdout, and everything else on stderr.')


def main() -> None:
  topology = parse_topology(_TOPOLOGY.value)
  prepare_process(topology)
  recipe = config_flags.get_config_filename(flags.FLAGS['config'])
  plan_and_print(parse_config(_CONFIG.value), recipe, topology, _STAGE.value, _HINTS.value, _JSON.value)


if __name__ == '__main__':
  cli.run(main)
