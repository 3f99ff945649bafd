"""Trains a Janus through its stages.

    python -m janus_jax.train --config=configs/tiny.py --workdir=DIR [--config.stages.stage2.steps=300 ...]

The same command again goes on where the newest checkpoint in DIR left off. The step is in training/step.py.

On several hosts every one of them runs the command, with --distributed=auto; DIR and the data are theirs in common. DIR
may be gs://BUCKET/...: see runs/workdir_mirror.py.
"""

from absl import flags

from janus_jax import cli
from janus_jax.runs import setup
from janus_jax.runs.config import parse_config
from janus_jax.runs.value_checks import Integer
from janus_jax.training import hosts

_CONFIG = cli.define_config()
_WORKDIR = cli.define_path('workdir', None, 'Where checkpoints, metrics and samples go.', required=True)
_FORCE = flags.DEFINE_bool('force', False, 'Go on in a workdir that was made with another config.')
_DISTRIBUTED = flags.DEFINE_enum(
  'distributed', 'none', hosts.MODES, 'How the processes of a run find each other: auto asks the cluster.'
)
_COORDINATOR = flags.DEFINE_string('coordinator_address', None, 'HOST:PORT of process 0, with --distributed=flags.')
_NUM_PROCESSES = cli.define_number('num_processes', None, 'Processes of the run, with --distributed=flags.', Integer(1))
_PROCESS_ID = cli.define_number('process_id', None, 'Which of them this is, with --distributed=flags.', Integer())
_WAIT = cli.define_number(
  'wait_for_processes', 600, 'Seconds that a process waits for the others to start.', Integer(1)
)
_DEAD_AFTER = cli.define_number('dead_after', 100, 'Seconds of silence after which a process is given up.', Integer(1))


def main() -> None:
  which = _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
  hosts.start(_DISTRIBUTED.value, *which, dead_after=_DEAD_AFTER.value, patience=_WAIT.value)
  with hosts.ending_alone():
    with hosts.together():
      config = parse_config(_CONFIG.value)
    setup.train(config, _WORKDIR.value, force=_FORCE.value)


if __name__ == '__main__':
  cli.run(main)
