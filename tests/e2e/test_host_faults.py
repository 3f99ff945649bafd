"""Faults in one process of a run, or in all of them: they end together and say why, or go on as one would alone."""

import pathlib
import resource

import numpy as np
import pytest

pytest.importorskip('sklearn')

from e2e.forks import Process
from e2e.host_runs import launch, said, wait, wait_for_step, write_recipe

from janus_jax.training.metrics import read_metrics

# Less than the arrays of a checkpoint that a process writes, more than its logs and metrics.
ALMOST_NOTHING = 60_000
STEPS, SAVE_EVERY = 12, 2
FLAGS = (
  "--config.run=('stage1',)",
  f'--config.stages.stage1.steps={STEPS}',
  '--config.stages.stage1.batch_size=4',
  '--config.held_out_batches=0',
  f'--config.save_every={SAVE_EVERY}',
  f'--config.keep_last={STEPS}',
)
# A word in few of the batches, and where it is.
POISON, POISONED_STEPS = ' digit', [2, 7, 8, 9, 11, 12]


@pytest.fixture(scope='module')
def start(tmp_path_factory) -> pathlib.Path:
  return write_recipe(tmp_path_factory.mktemp('start'), POISON)


@pytest.fixture(scope='module')
def alone(start, tmp_path_factory) -> pathlib.Path:
  workdir = tmp_path_factory.mktemp('runs') / 'alone'
  wait(workdir, launch(start, workdir, 1, *FLAGS, '--config.save_every=1000'))
  return workdir


def saved(workdir: pathlib.Path) -> set[int]:
  """Steps of the whole checkpoints."""
  return {int(path.name) for path in (workdir / 'checkpoints').iterdir() if path.name.isdecimal()}


def test_batches_without_a_finite_loss_are_skipped_and_counted(alone):
  lines = read_metrics(alone / 'metrics.jsonl')
  assert [line['step'] for line in lines if line['loss'] is None] == POISONED_STEPS
  assert [line['step'] for line in lines if line['update_norm'] == 0] == POISONED_STEPS
  assert [line['skipped'] for line in lines] == [0, 1, 1, 1, 1, 1, 2, 3, 4, 4, 5, 6]
  assert [line['skipped_in_a_row'] for line in lines] == [0, 1, 0, 0, 0, 0, 1, 2, 3, 0, 1, 2]
  for line in lines:
    assert (line['param_norm'] == lines[line['step'] - 2]['param_norm']) == (line['step'] in POISONED_STEPS)


def fill_disk(workdir: pathlib.Path, processes: list[Process], index: int) -> None:
  """From now on this process cannot make files grow. All are to end, and one of them for another's reason."""
  resource.prlimit(processes[index].pid, resource.RLIMIT_FSIZE, (ALMOST_NOTHING, ALMOST_NOTHING))
  wait(workdir, processes, 1)
  reasons = ['another process of the run could not write its part of a checkpoint'] * 2
  reasons[index] = f"[Errno 27] File too large: '{workdir}/checkpoints'"
  for i, reason in enumerate(reasons):
    log = said(workdir, 2, i)
    assert log.splitlines()[-1] == f'error: process {i} of 2: {reason}', log
    assert log.count('File too large') == (i == index)
    assert 'Traceback' not in log


def test_two_processes_end_when_the_disk_of_either_is_full_and_go_on_afterwards(start, alone, tmp_path):
  """The batches without a finite loss are among theirs too: both skip the same ones."""
  workdir, last = tmp_path / 'run', 0
  for index in (1, 0):
    processes = launch(start, workdir, 2, *FLAGS)
    wait_for_step(workdir, processes, last + SAVE_EVERY)
    fill_disk(workdir, processes, index)
    last = max(saved(workdir))
    assert saved(workdir) == set(range(SAVE_EVERY, last + 1, SAVE_EVERY))
    assert last < STEPS
  wait(workdir, launch(start, workdir, 2, *FLAGS))
  assert f'resuming after step {last}' in said(workdir, 2, 0)
  found, expected = (read_metrics(directory / 'metrics.jsonl') for directory in (workdir, alone))
  for name in ('step', 'skipped', 'skipped_in_a_row', *(name for name in expected[0] if name.startswith('examples/'))):
    assert [line[name] for line in found] == [line[name] for line in expected], name
  for name in ('loss', 'grad_norm', 'param_norm'):
    values = [np.array([line[name] for line in lines], float) for lines in (found, expected)]
    np.testing.assert_allclose(*values, rtol=2e-4, err_msg=name)


def test_too_many_in_a_row_end_all_of_them_with_the_reason(start, tmp_path):
  """The second run begins among them: after the second of three."""
  workdir, third = tmp_path / 'run', POISONED_STEPS[3]
  for count in (2, 1):
    wait(workdir, launch(start, workdir, count, *FLAGS, '--config.max_consecutive_skips=3'), 1)
    assert read_metrics(workdir / 'metrics.jsonl')[-1]['step'] == third
    assert saved(workdir) == set(range(SAVE_EVERY, third, SAVE_EVERY))
    for index in range(count):
      log = said(workdir, count, index)
      who = f'process {index} of 2: ' if count == 2 else ''
      reason = '3 updates in a row had a loss or gradient that is not finite: expected fewer than 3; try a lower'
      assert log.splitlines()[-1].startswith(f'error: {who}{reason}'), log
      assert 'Traceback' not in log
