"""Who owns a workdir, on disks and in buckets; for a bucket stands fsspec's memory."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import fsspec
import pytest

from janus_jax.training import ownership
from janus_jax.training.ownership import InUseError, locked, owned

OWN = """
import sys
from janus_jax.training.ownership import owned
with owned(sys.argv[1]):
  print('owned', flush=True)
  sys.stdin.read()
"""


def owner(directory) -> subprocess.Popen:
  """Another process that owns it until it is killed or its input ends."""
  pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
  root = pathlib.Path(__file__).parents[2]
  process = subprocess.Popen([sys.executable, '-c', OWN, str(directory)], cwd=root, **pipes)
  assert process.stdout.readline() == 'owned\n'
  return process


def test_a_second_process_is_refused_until_the_first_is_gone_however_it_ends(tmp_path):
  workdir = tmp_path / 'new' / 'run'
  first = owner(workdir)
  try:
    with pytest.raises(InUseError) as refused, owned(str(workdir)):
      pass
    assert str(refused.value).startswith(f'{workdir}: in use by pid {first.pid} on host ')
    assert str(refused.value).endswith(': expected a free workdir')
    os.kill(first.pid, signal.SIGSTOP)  # It gives no sign of life and owns it all the same.
    with pytest.raises(InUseError), owned(str(workdir)):
      pass
  finally:
    first.kill()
    first.wait()
  with owned(str(workdir)):
    assert json.loads((workdir / ownership.LOCK_FILE).read_text())['pid'] == os.getpid()


def test_nothing_is_left_of_an_owner_that_wrote_nothing(tmp_path):
  with owned(str(tmp_path / 'new' / 'run')):
    pass
  assert not (tmp_path / 'new').exists()
  with owned(str(tmp_path / 'run')):
    (tmp_path / 'run' / 'file').touch()
  assert os.listdir(tmp_path / 'run') == ['file']


def test_those_who_wait_own_it_one_at_a_time(tmp_path):
  inside, most = [], []

  def work() -> None:
    for _ in range(20):
      with locked(str(tmp_path / 'lock'), 'parts', wait=True):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.001)
        inside.pop()

  threads = [threading.Thread(target=work) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(most) == 80
  assert set(most) == {1}
  assert not os.listdir(tmp_path)


@pytest.fixture
def quick(monkeypatch):
  monkeypatch.setattr(ownership, 'RENEW_EVERY', 0.05)
  monkeypatch.setattr(ownership, 'DEAD_AFTER', 1.0)
  system = fsspec.filesystem('memory')
  system.store.clear()
  return system


URL = 'memory://bucket/run'


def test_a_lease_that_is_renewed_keeps_others_out_and_is_gone_afterwards(quick):
  with owned(URL):
    began = time.monotonic()
    with pytest.raises(InUseError, match=rf'^{URL}: in use by pid {os.getpid()} on host'), owned(URL):
      pass
    assert time.monotonic() < began + 60
  assert not quick.store


def test_a_lease_that_nobody_renews_is_taken_over(quick, caplog):
  left = {'pid': 7, 'host': 'gone', 'since': 'yesterday', 'id': 'x', 'beat': 3}
  quick.pipe(f'{URL}/{ownership.LEASE_FILE}', json.dumps(left).encode())
  with owned(URL):
    assert json.loads(quick.cat(f'{URL}/{ownership.LEASE_FILE}'))['pid'] == os.getpid()
  assert f'{URL}: taken over: its owner (pid 7 on host gone since yesterday) gave no sign of life' in caplog.messages


def test_a_process_of_this_machine_that_has_ended_is_not_waited_for(quick, monkeypatch, caplog):
  monkeypatch.setattr(ownership, 'DEAD_AFTER', 3600)
  ended = subprocess.Popen([sys.executable, '-c', ''])
  ended.wait()
  left = {**ownership._this_process(), 'pid': ended.pid, 'id': 'x', 'beat': 3}
  quick.pipe(f'{URL}/{ownership.LEASE_FILE}', json.dumps(left).encode())
  with owned(URL):
    pass
  assert len(caplog.messages) == 1


def test_an_owner_that_was_taken_over_ends(quick, monkeypatch):
  ended = threading.Event()
  monkeypatch.setattr(ownership.os, '_exit', lambda code: ended.set())
  with owned(URL):
    quick.pipe(f'{URL}/{ownership.LEASE_FILE}', json.dumps({'id': 'other', 'pid': 8}).encode())
    assert ended.wait(30)


def test_a_file_system_without_locks_has_leases(quick, monkeypatch, tmp_path):
  def refuse(*_):
    raise OSError(ownership.NO_LOCKS[0], 'No locks available')

  monkeypatch.setattr(ownership.fcntl, 'flock', refuse)
  with owned(str(tmp_path / 'run')), pytest.raises(InUseError), owned(str(tmp_path / 'run')):
    pass
  assert not (tmp_path / 'run').exists()
