"""Checkpoints of processes that die while they save, or whose disk is full."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import jax.numpy as jnp
import numpy as np
import pytest
from training.test_checkpoint import State, abstract, save

from janus_jax.training.checkpoint import Checkpoints

ROOT = pathlib.Path(__file__).parents[2]

SCRIPT = """
import resource, sys
import jax, jax.numpy as jnp
from training.test_checkpoint import Checkpoints, State, save

def state(rows):
  return State(jnp.int32(0), {'a': jax.random.normal(jax.random.key(rows), (rows, 1024))}, {})

workdir = sys.argv[1]
"""


def run(code, *arguments, **options):
  environment = {**os.environ, 'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}'}
  command = [sys.executable, '-c', SCRIPT + textwrap.dedent(code), *arguments]
  return subprocess.Popen(command, env=environment, text=True, **options)


FULL_DISK = """
try:
  with Checkpoints(workdir, save_every=1, keep_last=1) as checkpoints:
    save(checkpoints, 1, state(16))
    checkpoints.wait()
    small, large = state(16), jax.block_until_ready(state(4096))
    # Like a full disk, but for this process alone: files cannot grow beyond this.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
    save(checkpoints, 2, large)
    {then}
    print('not reached')
except OSError as error:
  sys.exit(str(error))
"""


@pytest.mark.parametrize('then', ['checkpoints.wait()', 'save(checkpoints, 3, small)', 'sys.exit'])
def test_a_full_disk_is_one_line_and_leaves_the_older_checkpoints(then, tmp_path):
  process = run(FULL_DISK.format(then=then), str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  output, error = process.communicate(timeout=60)
  assert process.returncode == 1
  assert ('not reached' in output) == (then == 'sys.exit')
  assert error.splitlines() == [f"[Errno 27] File too large: '{tmp_path}/checkpoints'"]
  shapes = abstract(State(jnp.int32(0), {'a': jnp.zeros((16, 1024))}, {}))
  with Checkpoints(tmp_path, save_every=1) as checkpoints:
    assert {path.name for path in (tmp_path / 'checkpoints').iterdir()} == {'1'}
    restored = checkpoints.restore(lambda _: shapes)
    assert restored.step == 1
    assert save(checkpoints, 2, restored.state)
    checkpoints.wait()
    assert checkpoints.steps == [1, 2]


KILLED = """
import numpy as np
with Checkpoints(workdir, save_every=1, keep_last=2) as checkpoints:
  for step in range(1, 10**6):
    filled = State(jnp.int32(step), {'a': jnp.full((512, 1024), step)}, {'b': jnp.full((512, 1024), step)})
    save(checkpoints, step, filled)
    print(step, flush=True)
"""


@pytest.mark.parametrize('moment', [0.0, 0.05])
def test_kill_9_in_the_middle_of_saving_loses_at_most_the_save_under_way(moment, tmp_path):
  process = run(KILLED, str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
  for line in process.stdout:
    if int(line) >= 4:
      break
  time.sleep(moment)
  process.send_signal(signal.SIGKILL)
  rest = process.stdout.read().split()
  process.wait(timeout=60)
  last = int(rest[-1]) if rest else int(line)
  shapes = abstract(State(jnp.int32(0), {'a': jnp.zeros((512, 1024), int)}, {'b': jnp.zeros((512, 1024), int)}))
  with Checkpoints(tmp_path, save_every=1, keep_last=2) as checkpoints:
    restored = checkpoints.restore(lambda _: shapes)
    # `save` number n returns when n - 1 is on disk.
    assert last - 1 <= restored.step <= last + 1
    for leaf in (restored.state.step, restored.state.params['a'], restored.state.opt_state['b']):
      assert (np.asarray(leaf) == restored.step).all()
    assert not list((tmp_path / 'checkpoints').glob('*tmp*'))
    assert not list((tmp_path / 'checkpoints').glob('*damaged*'))
