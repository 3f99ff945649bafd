"""Runs of one or several processes, each with one device, through the real command."""

import os
import pathlib
import socket
import subprocess
import sys
import time

from conftest import FAST_COMPILE
from e2e import forks
from e2e.forks import Process
from e2e.small_run import ROOT, write_start

STREAMS = 4
PATIENCE = 240  # Seconds, for a machine that does much else.


def write_recipe(directory: pathlib.Path, poison: str = '') -> pathlib.Path:
  """A directory with a config, and the weights (`small_run.write_start`) and the place of the data that it names."""
  (directory / 'weights').mkdir()
  write_start(directory / 'weights', poison)
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


def launch(
  start: pathlib.Path, workdir: pathlib.Path, count: int, *flags: str, last: tuple[str, ...] = ()
) -> list[Process]:
  """As many processes of one run, each with one device; `last` are flags of the last one alone."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  cpu = {'XLA_FLAGS': FAST_COMPILE, 'JAX_PLATFORMS': 'cpu'}
  processes = []
  for index in range(count):
    command = [sys.executable, '-m', 'janus_jax.train', f'--config={start / "config.py"}', f'--workdir={workdir}']
    if count > 1:
      command += ['--distributed=flags', f'--coordinator_address=127.0.0.1:{port}']
      command += [f'--num_processes={count}', f'--process_id={index}', '--dead_after=30']
    command += last if index == count - 1 else ()
    log = open(f'{workdir}.{count}.{index}.log', 'w')  # noqa: SIM115
    processes.append(
      forks.start([*command, *flags], cwd=ROOT, env=os.environ | cpu, stdout=log, stderr=subprocess.STDOUT)
    )
  return processes


def said(workdir: pathlib.Path, count: int, index: int) -> str:
  return pathlib.Path(f'{workdir}.{count}.{index}.log').read_text()


def wait(workdir: pathlib.Path, processes: list[Process], code: int = 0) -> None:
  for index, process in enumerate(processes):
    assert process.wait(PATIENCE) == code, said(workdir, len(processes), index)


def wait_for_step(workdir: pathlib.Path, processes: list[Process], step: int) -> None:
  end = time.monotonic() + PATIENCE
  while not (workdir / 'checkpoints' / str(step)).exists():
    assert time.monotonic() < end
    assert all(process.poll() is None for process in processes), said(workdir, len(processes), 0)
    time.sleep(0.05)
