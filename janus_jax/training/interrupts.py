"""Signals that ask a run to save and stop: SIGTERM, Ctrl-C (SIGINT), a terminal that goes away (SIGHUP)."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax

INTERRUPTED = 130  # Exit code: 128 + SIGINT, as shells have it.
# Seconds after which Ctrl-C ends a process whose main thread is busy in C++, where Python hears of no signal.
PATIENCE = 2.0


class StopRequest:
  """Request to save and stop; `asked` is True once any of the signals has come.

  Before a step is done there is nothing to save, and Ctrl-C ends the run. So does a second one, at any time.
  """

  def __init__(self):
    self.asked = False
    self._step_done, self._said, self._unwinding = False, False, threading.Event()

  def step_done(self) -> None:
    """Notes that there is something to save from now on."""
    self._step_done = True

  @contextlib.contextmanager
  def listening(self) -> Iterator['StopRequest']:
    """Listens within the block, which runs in the main thread. Signals that are ignored (nohup) stay so."""
    caught = [signal.SIGINT, signal.SIGHUP]
    if jax.process_count() == 1:  # Else jax has a handler of its own by now, which tells the other processes.
      caught.append(signal.SIGTERM)
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    old = {
      number: signal.signal(number, self._heard) for number in caught if signal.getsignal(number) != signal.SIG_IGN
    }
    # Handlers in Python wait for the main thread, which may be compiling or waiting for a device; this does not.
    old_pipe = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=self._listen, args=(reading,), name='signals', daemon=True)
    thread.start()
    try:
      yield self
    finally:
      signal.set_wakeup_fd(old_pipe)
      for number, handler in old.items():
        signal.signal(number, handler)
      writing.close()
      thread.join()
      reading.close()

  def _heard(self, number: int, _: Any) -> None:
    if number == signal.SIGINT and not self._step_done:
      self._unwinding.set()
      raise KeyboardInterrupt
    self.asked = True

  def _listen(self, reading: socket.socket) -> None:
    while content := reading.recv(1):
      number = content[0]
      if number == signal.SIGINT and self._step_done and self._said:
        _quit()
      elif number == signal.SIGINT and not self._step_done:
        if not self._unwinding.wait(PATIENCE):
          _quit()
      elif number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        self._ask(signal.Signals(number))

  def _ask(self, number: signal.Signals) -> None:
    self.asked = True
    if jax.process_count() > 1:
      os.kill(os.getpid(), signal.SIGTERM)  # What jax tells the other processes of.
    if not self._said:
      _say(f'{number.name}: saving; Ctrl-C again quits at once')
    self._said = True


def _say(line: str) -> None:
  """Prints to stderr; where the terminal is gone, nobody writes to it any more."""
  try:
    os.write(sys.__stderr__.fileno(), f'\n{line}\n'.encode())
  except OSError:
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (sys.__stdout__, sys.__stderr__):
      os.dup2(nowhere, stream.fileno())


def _quit() -> None:
  _say('interrupted')
  os._exit(INTERRUPTED)
