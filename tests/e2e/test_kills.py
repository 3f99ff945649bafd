"""Kills (`kill -9`) at random moments of a whole run, half of them in the middle of a save: nothing shows afterwards.

Twenty kills of a run of three stages take minutes; by default there are three, of two stages. All of them, with what
each one hit:

    JANUS_JAX_KILLS=20 python -m pytest -n0 -s tests/e2e/test_kills.py
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

pytest.importorskip('sklearn')

from conftest import FAST_COMPILE
from e2e.host_runs import PATIENCE, write_recipe
from e2e.small_run import ROOT

from janus_jax.training.metrics import read_metrics

KILLS = int(os.environ.get('JANUS_JAX_KILLS', '3'))
# Steps of a stage. Every other step saves, so that there are steps to lose.
(STAGES, STEPS), SAVE_EVERY = (3, 8) if KILLS > 3 else (2, 6), 2
RUN = tuple(f'stage{i + 1}' for i in range(STAGES))
FLAGS = [
  f'--config.run={RUN}'.replace(' ', ''),
  f'--config.save_every={SAVE_EVERY}',
  *(f'--config.stages.{stage}.steps={STEPS}' for stage in RUN),
  *(f'--config.stages.{stage}.batch_size=4' for stage in RUN),
]
# About a step's and a save's.
SECONDS = 0.2

# Runs the command again and again in processes that have everything imported: that would be most of the time.
DRIVER = """
import os, runpy, sys
import sklearn.datasets
import janus_jax.cli, janus_jax.training_run
for line in sys.stdin:
  process = os.fork()
  if not process:
    log, *sys.argv[1:] = line.split()
    for stream in (1, 2):
      os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    runpy.run_module('janus_jax.train', run_name='__main__')
  print(process, flush=True)
  sys.stdin.readline()
  print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


class Driver:
  """A process that starts the command, one at a time."""

  def __init__(self, start: pathlib.Path):
    self._command = [f'--config={start / "config.py"}', *FLAGS]
    cpu = {'XLA_FLAGS': FAST_COMPILE, 'JAX_PLATFORMS': 'cpu'}
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True, 'bufsize': 1}
    self._process = subprocess.Popen([sys.executable, '-c', DRIVER], cwd=ROOT, env=os.environ | cpu, **pipes)

  def start(self, workdir: pathlib.Path) -> int:
    """Process id; it is of nobody else before `wait` has returned."""
    print(f'{workdir}.log', *self._command, f'--workdir={workdir}', file=self._process.stdin)
    return int(self._process.stdout.readline())

  def wait(self) -> int:
    """The exit code."""
    print(file=self._process.stdin)
    return int(self._process.stdout.readline())

  def close(self) -> None:
    self._process.communicate()


@pytest.fixture(scope='module')
def driver(tmp_path_factory) -> Iterator[Driver]:
  driver = Driver(write_recipe(tmp_path_factory.mktemp('start')))
  yield driver
  driver.close()


def files(workdir: pathlib.Path, directory: str) -> list[str]:
  return os.listdir(workdir / directory) if (workdir / directory).exists() else []


def last_step(workdir: pathlib.Path) -> int:
  """Of metrics.jsonl."""
  path = workdir / 'metrics.jsonl'
  return max((line['step'] for line in read_metrics(path)), default=0) if path.exists() else 0


def whole(workdir: pathlib.Path) -> list[int]:
  """Steps of the whole checkpoints."""
  return sorted(int(name) for name in files(workdir, 'checkpoints') if name.isdecimal())


def is_saving(workdir: pathlib.Path, step: int) -> bool:
  return any(name.startswith(f'{step}.orbax-checkpoint-tmp') for name in files(workdir, 'checkpoints'))


def kill(driver: Driver, workdir: pathlib.Path, step: int, while_saving: bool, delay: float) -> tuple[int, bool]:
  """Takes the run up and kills it on the way to the checkpoint of a step, or while that is saved.

  Returns:
    the last step that it wrote of, and whether a save was under way.
  """
  lives = len(files(workdir, 'tensorboard'))
  process, end = driver.start(workdir), time.monotonic() + PATIENCE

  def is_time() -> bool:
    # A life begins its own file once all that it does not go on from has been removed.
    if len(files(workdir, 'tensorboard')) == lives:
      return False
    if while_saving:
      return is_saving(workdir, step) or step in whole(workdir)
    return last_step(workdir) >= step - 1

  while not is_time():
    assert time.monotonic() < end, pathlib.Path(f'{workdir}.log').read_text()
    time.sleep(0.002)
  time.sleep(delay)
  os.kill(process, signal.SIGKILL)
  assert driver.wait() == -signal.SIGKILL, pathlib.Path(f'{workdir}.log').read_text()
  return last_step(workdir), any('tmp' in name for name in files(workdir, 'checkpoints'))


def test_kills_leave_no_trace(driver, tmp_path):
  uninterrupted, killed = tmp_path / 'uninterrupted', tmp_path / 'killed'
  driver.start(uninterrupted)
  assert driver.wait() == 0, pathlib.Path(f'{uninterrupted}.log').read_text()

  rng, saves, hits = random.Random(0), STAGES * STEPS // SAVE_EVERY, []
  for number in range(KILLS):
    # Spread over the run, and beyond where the last life came to.
    step = max((number * saves // KILLS + 1) * SAVE_EVERY, max(whole(killed), default=0) + SAVE_EVERY)
    while_saving = number % 2 == 0
    hits.append(kill(driver, killed, step, while_saving, rng.uniform(0, SECONDS / 4 if while_saving else SECONDS)))
    print(f'kill {number + 1}: aimed at step {step}, wrote of step {hits[-1][0]}, while saving: {hits[-1][1]}')
  driver.start(killed)
  assert driver.wait() == 0, pathlib.Path(f'{killed}.log').read_text()

  assert {(step - 1) // STEPS for step, _ in hits} == set(range(STAGES))
  assert sum(while_saving for _, while_saving in hits) >= KILLS // 3
  assert numbers(killed) == numbers(uninterrupted)
  assert whole(killed) == whole(uninterrupted)
  assert len(files(killed, 'checkpoints')) == len(whole(killed))
  for step in whole(killed):
    assert_same_checkpoint(*(workdir / 'checkpoints' / str(step) for workdir in (killed, uninterrupted)))


def numbers(workdir: pathlib.Path) -> list[dict]:
  """Of metrics.jsonl what is neither a time nor derived from one; every line has to be whole."""
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  of_time = ('time', 'goodput', 'step_seconds', 'data_wait')
  is_of_time = lambda name: name.startswith(of_time) or '_per_second' in name  # noqa: E731
  return [{name: value for name, value in line.items() if not is_of_time(name)} for line in lines]


def assert_same_checkpoint(found: pathlib.Path, expected: pathlib.Path) -> None:
  for name in ('params', 'train'):
    its, others = (ocp.load_checkpointables(directory, {name: None})[name] for directory in (found, expected))
    jax.tree.map(np.testing.assert_array_equal, its, others)
    assert jax.tree.leaves(its)
  for name in ('data/process_0-of-1.json', '_CHECKPOINT_METADATA'):
    its, others = (json.loads((directory / name).read_text()) for directory in (found, expected))
    assert its.get('custom_metadata', its) == others.get('custom_metadata', others)
