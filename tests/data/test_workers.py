"""What becomes of processes that read when the one they read for is gone."""

import os
import pathlib
import signal
import subprocess
import sys
import time

PATIENCE = 240  # Seconds, for a machine that does much else.
READ = """
import multiprocessing, sys
from janus_jax.data.workers import Reading, Workers
workers = Workers(Reading({}, None, 0, 0.0), 2)
workers.submit(()).result()
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
sys.stdin.read()
"""


def is_alive(process: int) -> bool:
  """Not dead, nor dead and not yet buried by whoever has to."""
  stat = pathlib.Path(f'/proc/{process}/stat')
  try:
    return stat.read_text().rpartition(')')[2].split()[0] != 'Z'
  except (FileNotFoundError, ProcessLookupError):
    return False


def test_workers_of_a_process_that_is_killed_end_and_leave_nothing(tmp_path):
  environment = os.environ | {'TMPDIR': str(tmp_path)}
  pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
  reader = subprocess.Popen(
    [sys.executable, '-c', READ], env=environment, cwd=pathlib.Path(__file__).parents[2], **pipes
  )
  workers = [int(word) for word in reader.stdout.readline().split()]
  assert len(workers) == 2
  assert list(tmp_path.glob('janus_jax-*'))
  for worker in workers:  # Ctrl-C and a lost terminal are sent to all, and are the reader's to take.
    os.kill(worker, signal.SIGINT)
    os.kill(worker, signal.SIGHUP)
  time.sleep(0.5)
  assert all(map(is_alive, workers))
  reader.kill()
  reader.wait()
  end = time.monotonic() + PATIENCE
  while any(map(is_alive, workers)) or list(tmp_path.glob('janus_jax-*')):
    assert time.monotonic() < end
    time.sleep(0.05)
