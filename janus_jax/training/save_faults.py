"""Faults of a save under way, in a run of several processes: if one has a fault, all hear of it at the same point.

Orbax tells the caller of a fault only after it has met the other processes, who in turn wait for what could not be
written: nobody would move for 20 minutes. And a process that ended alone would take the others down without a reason.
"""

import concurrent.futures
import logging
import os
import threading
from collections.abc import Callable

import jax
import numpy as np

from janus_jax.training import hosts

POLL_SECONDS = 0.1


class SaveFaults(logging.Filter):
  """What threads of Orbax have failed with. They log it first thing; a filter of their logger hears of it.

  Attributes:
    first: of the save under way; of another process too, once it has been heard of.
  """

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

  def call(self, wait: Callable[[], None], agree: bool = True) -> None:
    """Calls something that waits for the save under way; not beyond its first fault, in whichever process.

    Args:
      wait: a call of Orbax. Every process of a run makes the same calls.
      agree: False: the others may be doing something else, their faults are not heard of.

    Raises:
      OSError: another process has a fault.
      Exception: as `wait` does, or what Orbax has failed with.
    """
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
    faults, busy = 0, 1
    while busy and not faults:
      concurrent.futures.wait([waiting], timeout=POLL_SECONDS)
      if waiting.done():
        self.first = self.first or waiting.exception()
      own = np.array([self.first is not None, not waiting.done()])
      faults, busy = hosts.summed(own) if agree else own
    if faults:
      self.first = self.first or OSError('another process of the run could not write its part of a checkpoint')
      raise self.first
