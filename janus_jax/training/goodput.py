"""The wall time of a run by cause, and a watchdog for steps that do not end."""

import collections
import contextlib
import datetime
import logging
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax

# Causes of time that is not training. The rest is: goodput is its fraction.
CAUSES = ('starting', 'compiling', 'waiting for data', 'sampling', 'observing', 'saving')


class Goodput:
  """Sums of the seconds that a process spends on each cause, from its start of training on."""

  def __init__(self, clock: Callable[[], float] = time.perf_counter):
    self._clock, self._began = clock, clock()
    self._seconds: collections.Counter[str] = collections.Counter()

  @contextlib.contextmanager
  def on(self, cause: str, what: str = '', say: Callable[[str], None] = logging.info) -> Iterator[None]:
    """Counts the block as time spent on one of CAUSES; says `what` is done before it, and after it how long it took."""
    began = self._clock()
    if what:
      say(f'{what} ...')
    try:
      yield
    finally:
      took = self._clock() - began
      self._seconds[cause] += took
    if what and took >= 1:
      say(f'{what}: {took:.0f} s')

  def line(self) -> dict[str, float]:
    """Metrics: 'goodput', the fraction of all time that was training, and that of each cause that had some."""
    total = max(self._clock() - self._began, 1e-9)
    fractions = {f'time/{cause}': self._seconds[cause] / total for cause in CAUSES if self._seconds[cause]}
    return {'goodput': 1 - sum(fractions.values())} | fractions


class Watchdog:
  """Reports a step that takes far longer than steps do, with the stacks of all threads. A context manager.

  Nothing is ended: what hangs may be a device, a file system or another process, and people want to look at it.
  """

  def __init__(self, factor: float, least: float, stacks: str, clock: Callable[[], float] = time.monotonic):
    """
    Args:
      factor: times the mean of the steps so far after which a step is reported; 0 never does.
      least: least seconds of a step that is reported.
      stacks: path of the file that the stacks are appended to.
      clock: gives seconds that only grow.
    """
    self._factor, self._least, self._stacks, self._clock = factor, least, stacks, clock
    self._lock, self._ended = threading.Lock(), threading.Event()
    self._results: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    self._threads = [threading.Thread(target=run, daemon=True) for run in (self._watch, self._wait)]
    self._rests = 0
    self.rest()

  def __enter__(self) -> 'Watchdog':
    if self._factor:
      for thread in self._threads:
        thread.start()
    return self

  def __exit__(self, *_: Any) -> None:
    self._ended.set()
    self._results.put((0, None))
    if self._factor:
      self._threads[1].join(1)  # It would outlast a step that hangs.

  def rest(self) -> None:
    """Watches nothing until the next step has ended, as before a compilation."""
    with self._lock:
      self._rests += 1
      self._steps, self._mean, self._last, self._reported = 0, 0.0, None, False

  def step_dispatched(self, result: jax.Array) -> None:
    """Takes the result of a step that has been given to the devices, where it ends some time later."""
    if self._factor:
      self._results.put((self._rests, result))

  def step_ended(self) -> None:
    """Times the step; the next one begins."""
    with self._lock:
      now = self._clock()
      if self._last is not None:
        self._steps += 1
        self._mean += (now - self._last - self._mean) / self._steps
      self._last, self._reported = now, False

  def overdue(self) -> str | None:
    """A message about the step under way, once; None if there is nothing to say."""
    with self._lock:
      if self._reported or not self._steps:
        return None
      limit, took = max(self._factor * self._mean, self._least), self._clock() - self._last
      if took < limit:
        return None
      self._reported = True
      return f'a step has been under way for {took:.0f} s: {self._steps} steps before it took {self._mean:.2f} s each'

  def _wait(self) -> None:
    """Times steps where their results are, not where they are dispatched: the loop is ahead of the devices."""
    while not self._ended.is_set():
      rests, result = self._results.get()
      with contextlib.suppress(Exception):  # The loop meets it too.
        jax.block_until_ready(result)
      if rests == self._rests:
        self.step_ended()

  def _watch(self) -> None:
    while not self._ended.wait(1):
      if message := self.overdue():
        now = datetime.datetime.now().isoformat(' ', 'seconds')
        try:
          with open(self._stacks, 'a', encoding='utf-8') as file:
            file.write(f'{now}: {message}\n{_stacks()}\n')
          logging.warning('%s; what each thread is doing is in %s', message, self._stacks)
        except OSError as error:
          logging.warning('%s; what each thread is doing cannot be written: %s', message, error)


def _stacks() -> str:
  """Stacks of all threads, the main one first: faulthandler leaves the oldest out where there are more than 100."""
  frames, main = sys._current_frames(), threading.main_thread()
  threads = sorted(threading.enumerate(), key=lambda thread: (thread is not main, thread.name))
  found = [(thread.name, frames[thread.ident]) for thread in threads if thread.ident in frames]
  return '\n'.join(f'{name}:\n{"".join(traceback.format_stack(frame))}' for name, frame in found)
