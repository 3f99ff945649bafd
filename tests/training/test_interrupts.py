"""Signals that ask a run to save and stop."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from janus_jax.training import interrupts
from janus_jax.training.interrupts import StopRequest


@pytest.fixture
def quits(monkeypatch) -> threading.Event:
  """Set where the process would end."""
  ended = threading.Event()
  monkeypatch.setattr(interrupts, '_quit', ended.set)
  return ended


def wait_until(condition) -> None:
  end = time.monotonic() + 30
  while not condition() and time.monotonic() < end:
    time.sleep(0.01)
  assert condition()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_the_first_asks_to_save_and_ctrl_c_after_it_quits(number, quits, capfd):
  stop, before = StopRequest(), signal.getsignal(number)
  with stop.listening():
    stop.step_done()
    signal.raise_signal(number)
    assert stop.asked
    wait_until(lambda: stop._said)
    assert not quits.is_set()
    signal.raise_signal(signal.SIGINT)
    assert quits.wait(30)
  assert capfd.readouterr().err.split('\n') == ['', f'{number.name}: saving; Ctrl-C again quits at once', '']
  assert signal.getsignal(number) == before


def test_before_a_step_is_done_ctrl_c_is_what_it_always_is(quits):
  stop = StopRequest()
  with pytest.raises(KeyboardInterrupt), stop.listening():
    signal.raise_signal(signal.SIGINT)
  assert not stop.asked
  assert not quits.is_set()


def test_a_signal_that_is_ignored_stays_so(quits):
  """As under nohup."""
  stop, before = StopRequest(), signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with stop.listening():
      stop.step_done()
      signal.raise_signal(signal.SIGHUP)
      assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    assert not stop.asked
  finally:
    signal.signal(signal.SIGHUP, before)


COMPILE = """
import hashlib
from janus_jax.training.interrupts import StopRequest
with StopRequest().listening():
  print('compiling', flush=True)
  hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)
"""


def test_ctrl_c_ends_what_is_busy_outside_of_python():
  root, pipes = pathlib.Path(__file__).parents[2], {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
  environment = os.environ | {'JAX_PLATFORMS': 'cpu'}
  process = subprocess.Popen([sys.executable, '-c', COMPILE], cwd=root, env=environment, **pipes)
  assert process.stdout.readline() == 'compiling\n'
  time.sleep(1)  # Between the line and what it announces.
  process.send_signal(signal.SIGINT)
  assert process.communicate(timeout=60)[1] == '\ninterrupted\n'
  assert process.returncode == 130
