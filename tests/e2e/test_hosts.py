"""Runs of several processes, through the real command: they do what one does, and survive the loss of one."""

import json
import os
import pathlib
import signal

import numpy as np
import pytest

pytest.importorskip('sklearn')

from e2e.host_runs import PATIENCE, launch, said, wait, wait_for_step, write_recipe
from e2e.small_run import STEPS, leaves, losses

import janus_jax
from janus_jax.training.ownership import owned

# A stage less than a run has: each process compiles each of them.
STAGES = ('stage1', 'stage3')
# Enough for a process to be stopped in the first stage, and for another to be lost in the second.
LAST_STEPS = 3 * STEPS
TOTAL = STEPS + LAST_STEPS
SAVE_EVERY = 2
FLAGS = (
  f'--config.run={STAGES}',
  f'--config.stages.stage3.steps={LAST_STEPS}',
  f'--config.save_every={SAVE_EVERY}',
  # `test_buckets` measures it in two processes. Here each would compile it.
  '--config.held_out_batches=0',
)


# The first stage learns from samples, which all processes must be given alike.
SAMPLES = """
  stage = config.stages.stage1
  stage.objective = 'grpo'
  stage.preference.update({'group': 2, 'cfg_weight': 2.0, 'log_probs': 'sampled', 'beta': 0.1, 'supervised': 0.5})
  stage.preference.rewards = {'bright': {'function': __file__.replace('config.py', 'rewards.py:bright')}}
  return config
"""


@pytest.fixture(scope='module')
def start(tmp_path_factory) -> pathlib.Path:
  directory = write_recipe(tmp_path_factory.mktemp('start'))
  (directory / 'rewards.py').write_text('def bright(records, images):\n  return [float(x.mean()) for x in images]\n')
  config = directory / 'config.py'
  config.write_text(config.read_text().replace('\n  return config\n', SAMPLES))
  return directory


def counted(workdir: pathlib.Path) -> list[dict]:
  """What each update says of the data that it saw."""
  lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return [
    {name: value for name, value in line.items() if name.startswith('examples/') or name == 'packing'}
    for line in lines
    if 'grad_norm' in line
  ]


@pytest.fixture(scope='module')
def alone(start, tmp_path_factory) -> pathlib.Path:
  workdir = tmp_path_factory.mktemp('runs') / 'alone'
  wait(workdir, launch(start, workdir, 1, *FLAGS, '--config.save_every=1000'))
  return workdir


def assert_same_run(workdir: pathlib.Path, alone: pathlib.Path) -> None:
  """The same data to the record, the same numbers but for the order in which devices add up."""
  found, expected = losses(workdir), losses(alone)
  assert [line[:2] for line in found] == [line[:2] for line in expected]
  np.testing.assert_allclose([line[2:] for line in found], [line[2:] for line in expected], rtol=2e-4)
  for its, others in zip(counted(workdir), counted(alone), strict=True):
    assert its == pytest.approx(others, abs=2e-6)
  found, expected = (leaves(janus_jax.load(str(directory)).params) for directory in (workdir, alone))
  for path, leaf in expected.items():
    np.testing.assert_allclose(found[path], leaf, atol=2e-3, err_msg=path)


def stop_by_sigterm(start: pathlib.Path, workdir: pathlib.Path) -> int:
  """Two processes, one of which gets a SIGTERM: both end well, after the same step, which is returned."""
  processes = launch(start, workdir, 2, *FLAGS)
  wait_for_step(workdir, processes, SAVE_EVERY)
  processes[1].send_signal(signal.SIGTERM)
  wait(workdir, processes)
  stopped = losses(workdir)[-1][0]
  assert stopped < TOTAL - STEPS
  assert (workdir / 'checkpoints' / str(stopped)).exists()
  return stopped


def lose_one(start: pathlib.Path, workdir: pathlib.Path, step: int) -> None:
  """Four processes, one of which dies once a step is saved: the others end with the reason."""
  processes = launch(start, workdir, 4, *FLAGS)
  wait_for_step(workdir, processes, step)
  processes[1].kill()
  assert processes[0].wait(PATIENCE) == 1
  for process in processes[2:]:
    assert process.wait(PATIENCE) != 0
  lines = said(workdir, 4, 0).splitlines()
  assert any('error: process 0 of 4: a process of the run has died' in line for line in lines), lines[-5:]
  assert any('resuming after step' in line for line in lines)
  assert len(losses(workdir)) < TOTAL


def test_a_run_of_two_processes_then_four_then_one_is_the_run_of_one(start, alone, tmp_path):
  """Whatever ended the ones before."""
  workdir = tmp_path / 'run'
  stopped = stop_by_sigterm(start, workdir)
  lose_one(start, workdir, (max(stopped, STEPS) // SAVE_EVERY + 1) * SAVE_EVERY)
  wait(workdir, launch(start, workdir, 1, *FLAGS))
  assert 'resuming after step' in said(workdir, 1, 0)
  assert_same_run(workdir, alone)


def test_processes_with_other_settings_do_not_begin(start, tmp_path):
  workdir = tmp_path / 'run'
  wait(workdir, launch(start, workdir, 2, *FLAGS, last=('--config.stages.stage1.learning_rate=0.003',)), 1)
  reason = 'process 1 has another config: stages.stage1.learning_rate is 0.003: expected 0.002 as on process 0'
  for index in range(2):
    log = said(workdir, 2, index)
    assert log.splitlines()[-1] == f'error: process {index} of 2: {reason}', log
    assert 'Traceback' not in log
  assert not workdir.exists()


def test_what_one_process_refuses_none_begins(start, tmp_path):
  """Process 0 alone looks at who owns a workdir."""
  workdir = tmp_path / 'run'
  with owned(str(workdir)):
    wait(workdir, launch(start, workdir, 2, *FLAGS), 1)
    reason = f'{workdir}: in use by pid {os.getpid()} on host'
    assert said(workdir, 2, 0).splitlines()[-1].startswith(f'error: process 0 of 2: {reason}')
    assert said(workdir, 2, 1).splitlines()[-1].startswith(f'error: process 1 of 2: process 0: {reason}')
  assert not workdir.exists()
