"""Faults of the storage under checkpoints, a disk or a bucket, as Orbax and TensorStore raise and log them.

Each becomes an OSError or a DamagedError. In a run of several processes all hear of a fault of one at the same point
(`OrbaxLog.call`). Orbax tells the caller only after it has met the other processes, which wait for what could not be
written: nobody would move for 20 minutes. And a process that ended alone would take the others down without a reason.
"""

import concurrent.futures
import contextlib
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator

import jax
import numpy as np

from janus_jax.errors import InputError
from janus_jax.training import hosts

# Packages that define the exceptions of a bucket's drivers.
DRIVERS = ('aiohttp', 'gcsfs', 'google', 'requests')
POLL_SECONDS = 0.1
# TensorStore's words for data that it could not reach or was not let at; the data may be whole.
UNREACHABLE = re.compile('PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED')


class DamagedError(Exception):
  """A checkpoint that is not whole."""


@contextlib.contextmanager
def as_os_errors(directory: str, in_bucket: bool) -> Iterator[None]:
  """Turns every form of a fault of the storage into an OSError that names the directory."""
  try:
    yield
  except Exception as error:
    if (number := _errno(error)) is not None:
      raise OSError(number, os.strerror(number), directory) from error
    if in_bucket and (isinstance(error, OSError | ValueError) or _is_from_driver(error)):
      raise OSError(f'{directory}: {fault_line(error)}') from error
    raise


@contextlib.contextmanager
def as_damage(directory: str, in_bucket: bool) -> Iterator[None]:
  """Turns what reading a damaged file can raise into `DamagedError`; not InputError, nor a device without memory.

  A bucket that cannot be reached may hold whole data: that becomes an OSError.
  """
  try:
    yield
  except InputError:
    raise
  except Exception as error:
    missing = isinstance(error, FileNotFoundError)
    unreachable = isinstance(error, OSError) or _is_from_driver(error) or UNREACHABLE.search(str(error))
    if in_bucket and unreachable and not missing:
      raise OSError(f'{directory}: {fault_line(error)}') from error
    if isinstance(error, OSError | ValueError | KeyError | TypeError | AttributeError | IndexError):
      raise DamagedError(fault_line(error)) from error
    raise


def fault_line(error: Exception) -> str:
  text = ' '.join(str(error).split(' [tensorstore_spec')[0].split())
  return f'{type(error).__name__}: {text[:300]}'


def _is_from_driver(error: Exception) -> bool:
  return type(error).__module__.split('.')[0] in DRIVERS


def _errno(error: Exception) -> int | None:
  """The system's error number; TensorStore reports it as text in a ValueError."""
  if isinstance(error, OSError):
    return error.errno
  code = re.search(r"os_error_code='(\d+)'", str(error)) if isinstance(error, ValueError) else None
  return int(code[1]) if code else None


class OrbaxLog(logging.Filter):
  """Filter of Orbax's log: hears of faults of its threads, which log them first thing, and drops what is raised anyway.

  Dropped are tracebacks, and within `silence` everything.

  Attributes:
    first: the first fault of the save under way; another process's too, once it has been heard of.
  """

  first: BaseException | None = None
  _silent = False

  def filter(self, record: logging.LogRecord) -> bool:
    if f'{os.sep}orbax{os.sep}' not in record.pathname:
      return True
    if record.exc_info and threading.current_thread() is not threading.main_thread():
      self.first = self.first or record.exc_info[1]
    return not (record.exc_info or self._silent)

  @contextlib.contextmanager
  def silence(self) -> Iterator[None]:
    self._silent = True
    try:
      yield
    finally:
      self._silent = False

  @property
  def block(self) -> bool:
    """True where Orbax would wait for the other processes of the run now, and they for this one."""
    return self.first is not None and jax.process_count() > 1

  def call(self, wait: Callable[[], None], agree: bool = True) -> None:
    """Calls Orbax to wait for the save under way, but not beyond its first fault in any process, which is raised.

    Every process of a run makes the same calls. Without `agree` the others may be doing something else, and their
    faults are not heard of.
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
