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

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

pytest.importorskip('sklearn')

from conftest import FAST_COMPILE
from e2e import forks
from e2e.forks import Process
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


@pytest.fixture(scope='module')
def start(tmp_path_factory) -> pathlib.Path:
  return write_recipe(tmp_path_factory.mktemp('start'))


def train(start: pathlib.Path, workdir: pathlib.Path) -> Process:
  """Starts the command, or goes on; what it says is in `workdir`.log."""
  command = [sys.executable, '-m', 'janus_jax.train', f'--config={start / "config.py"}', f'--workdir={workdir}', *FLAGS]
  cpu = {'XLA_FLAGS': FAST_COMPILE, 'JAX_PLATFORMS': 'cpu'}
  with open(f'{workdir}.log', 'a') as log:
    return forks.start(command, cwd=ROOT, env=os.environ | cpu, stdout=log, stderr=subprocess.STDOUT)


def train_to_the_end(start: pathlib.Path, workdir: pathlib.Path) -> None:
  assert train(start, workdir).wait(PATIENCE) == 0, pathlib.Path(f'{workdir}.log').read_text()


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


def kill(start: pathlib.Path, workdir: pathlib.Path, step: int, while_saving: bool, delay: float) -> tuple[int, bool]:
  """Takes the run up and kills it on the way to the checkpoint of a step, or while that is saved.

  Returns:
    the last step that it wrote of, and whether a save was under way.
  """
  lives = len(files(workdir, 'tensorboard'))
  process, end = train(start, workdir), time.monotonic() + PATIENCE

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
  process.kill()
  assert process.wait() == -signal.SIGKILL, pathlib.Path(f'{workdir}.log').read_text()
  return last_step(workdir), any('tmp' in name for name in files(workdir, 'checkpoints'))


def test_kills_leave_no_trace(start, tmp_path):
  uninterrupted, killed = tmp_path / 'uninterrupted', tmp_path / 'killed'
  train_to_the_end(start, uninterrupted)

  rng, saves, hits = random.Random(0), STAGES * STEPS // SAVE_EVERY, []
  for number in range(KILLS):
    # Spread over the run, and beyond where the last life came to.
    step = max((number * saves // KILLS + 1) * SAVE_EVERY, max(whole(killed), default=0) + SAVE_EVERY)
    while_saving = number % 2 == 0
    hits.append(kill(start, killed, step, while_saving, rng.uniform(0, SECONDS / 4 if while_saving else SECONDS)))
    print(f'kill {number + 1}: aimed at step {step}, wrote of step {hits[-1][0]}, while saving: {hits[-1][1]}')
  train_to_the_end(start, killed)

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
