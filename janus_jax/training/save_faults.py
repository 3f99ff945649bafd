"""Faults of a save under way, in a run of several processes: each sees its own at once.

Orbax tells the caller of one only after it has met the other processes, who in turn wait for what could not be written:
nobody would move for 20 minutes.
"""

import concurrent.futures
import logging
import os
import threading
from collections.abc import Callable

import jax

POLL_SECONDS = 0.1


class SaveFaults(logging.Filter):
  """What threads of Orbax have failed with. They log it first thing; a filter of their logger hears of it."""

  def __init__(self):
    super().__init__()
    self.first: BaseException | None = None

  def filter(self, record: logging.LogRecord) -> bool:
    is_caller = threading.current_thread() is threading.main_thread()
    if record.exc_info and not is_caller and f'{os.sep}orbax{os.sep}' in record.pathname:
      self.first = self.first or record.exc_info[1]
    return True

  def forget(self) -> None:
    """A new save begins."""
    self.first = None

  @property
  def block(self) -> bool:
    """Whether Orbax would wait for the other processes of the run now, and they for this one."""
    return self.first is not None and jax.process_count() > 1

  def check(self) -> None:
    """Raises the first fault of the save under way, if Orbax would not tell of it."""
    if self.block:
      raise self.first

  def call(self, wait: Callable[[], None]) -> None:
    """Calls something that waits for the save under way, but not beyond its first fault. Raises as it does."""
    if jax.process_count() == 1:
      wait()
      return
    waiting = concurrent.futures.Future()

    def run() -> None:
      try:
        waiting.set_result(wait())
      except Exception as error:
        waiting.set_exception(error)

    threading.Thread(target=run, name='waiting for a save', daemon=True).start()
    while not waiting.done():
      self.check()
      concurrent.futures.wait([waiting], timeout=POLL_SECONDS)
    waiting.result()
