"""What training does first, and no more: `python -m tests.launch.take_flags FLAGS...`."""

import sys

from absl import flags

from janus_jax import train  # noqa: F401  (it defines them)

flags.FLAGS(sys.argv)
