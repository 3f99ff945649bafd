"""Runs of several processes, through the real command: they do what one does, and survive the loss of one."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip('sklearn')

from conftest import FAST_COMPILE
from e2e.small_run import ROOT, STEPS, leaves, losses, write_start

import janus_jax

STREAMS = 4
PATIENCE = 240  # Seconds, for a machine that does much else.


@pytest.fixture(scope='module')
def start(tmp_path_factory) -> pathlib.Path:
  """A directory with a config, and the weights and the place of the data that it names."""
  directory = tmp_path_factory.mktemp('start')
  (directory / 'weights').mkdir()
  write_start(directory / 'weights')
  (directory / 'config.py').write_text(f"""
import sys
sys.path.insert(0, {str(ROOT / 'tests')!r})
from e2e.small_run import recipe

def get_config():
  config = recipe({str(directory / 'weights')!r}, {str(directory / 'data')!r})
  config.mesh.data, config.mesh.fsdp = 1, -1
  config.streams = {STREAMS}
  return config
""")
  return directory


def launch(start: pathlib.Path, workdir: pathlib.Path, count: int, *flags: str) -> list[subprocess.Popen]:
  """As many processes of one run, each with one device."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  processes = []
  for index in range(count):
    command = [sys.executable, '-m', 'janus_jax.train', f'--config={start / "config.py"}', f'--workdir={workdir}']
    if count > 1:
      command += ['--distributed=flags', f'--coordinator_address=127.0.0.1:{port}']
      command += [f'--num_processes={count}', f'--process_id={index}', '--dead_after=30']
    cache = {'JAX_COMPILATION_CACHE_DIR': str(start / 'cache'), 'XLA_FLAGS': FAST_COMPILE, 'JAX_PLATFORMS': 'cpu'}
    log = open(f'{workdir}.{count}.{index}.log', 'w')  # noqa: SIM115
    processes.append(
      subprocess.Popen([*command, *flags], cwd=ROOT, env=os.environ | cache, stdout=log, stderr=subprocess.STDOUT)
    )
  return processes


def said(workdir: pathlib.Path, count: int, index: int) -> str:
  return pathlib.Path(f'{workdir}.{count}.{index}.log').read_text()


def wait(workdir: pathlib.Path, processes: list[subprocess.Popen], code: int = 0) -> None:
  for index, process in enumerate(processes):
    assert process.wait(PATIENCE) == code, said(workdir, len(processes), index)


def wait_for_step(workdir: pathlib.Path, processes: list[subprocess.Popen], step: int) -> None:
  end = time.monotonic() + PATIENCE
  while not (workdir / 'checkpoints' / str(step)).exists():
    assert time.monotonic() < end
    assert all(process.poll() is None for process in processes), said(workdir, len(processes), 0)
    time.sleep(0.05)


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
  wait(workdir, launch(start, workdir, 1))
  return workdir


def assert_same_run(workdir: pathlib.Path, alone: pathlib.Path) -> None:
  """The same data to the record, the same numbers but for the order in which devices add up."""
  found, expected = losses(workdir), losses(alone)
  assert [line[:2] for line in found] == [line[:2] for line in expected]
  np.testing.assert_allclose([line[2:] for line in found], [line[2:] for line in expected], rtol=2e-4)
  for its, others in zip(counted(workdir), counted(alone), strict=True):
    assert its == pytest.approx(others, abs=2e-6)
  found, expected = (leaves(janus_jax.load(str(directory))[1]) for directory in (workdir, alone))
  for path, leaf in expected.items():
    np.testing.assert_allclose(found[path], leaf, atol=2e-3, err_msg=path)


def test_two_processes_one_of_which_dies_and_four_go_on(start, alone, tmp_path):
  """The other ends with the reason, and what any number of processes makes of the checkpoint is the same run."""
  workdir = tmp_path / 'run'
  processes = launch(start, workdir, 2)
  wait_for_step(workdir, processes, STEPS + 1)
  processes[1].kill()
  assert processes[0].wait(PATIENCE) == 1
  lines = said(workdir, 2, 0).splitlines()
  assert any('error: process 0 of 2: a process of the run has died' in line for line in lines), lines[-5:]
  assert len(losses(workdir)) < 3 * STEPS
  wait(workdir, launch(start, workdir, 4))
  assert 'resuming after step' in said(workdir, 4, 0)
  assert_same_run(workdir, alone)


def test_a_sigterm_to_one_of_them_stops_all_after_the_same_step(start, alone, tmp_path):
  workdir = tmp_path / 'run'
  processes = launch(start, workdir, 2)
  wait_for_step(workdir, processes, 1)
  processes[1].send_signal(signal.SIGTERM)
  wait(workdir, processes)
  stopped = losses(workdir)[-1][0]
  assert stopped < 3 * STEPS
  assert (workdir / 'checkpoints' / str(stopped)).exists()
  wait(workdir, launch(start, workdir, 1))
  assert_same_run(workdir, alone)


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--distributed=flags'], "distributed is 'flags': expected coordinator_address too"),
    (['--process_id=1'], "distributed is 'none': expected none of coordinator_address"),
    (
      ['--distributed=flags', '--coordinator_address=127.0.0.1:1', '--num_processes=2', '--process_id=2'],
      'process_id is 2: expected 0 to 1',
    ),
    (['--config.streams=3'], 'batch_size is 8: expected a multiple of streams, which is 3'),
  ],
)
def test_bad_flags(flags, message, start, tmp_path):
  (process,) = launch(start, tmp_path / 'run', 1, *flags)
  wait(tmp_path / 'run', [process], 1)
  log = said(tmp_path / 'run', 1, 0)
  assert message in log
  assert 'Traceback' not in log
  assert not (tmp_path / 'run').exists()
