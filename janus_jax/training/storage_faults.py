"""Faults of the storage under checkpoints, of a disk or a bucket: what Orbax and TensorStore raise and log of them.

Each takes one of two forms, OSError and DamagedError. In a run of several processes all hear of a fault of one at the
same point (`SaveFaults`): Orbax tells the caller of it only after it has met the other processes, who in turn wait for
what could not be written, so that nobody would move for 20 minutes. And a process that ended alone would take the
others down without a reason.
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

# Where the exceptions of a bucket's drivers are defined.
DRIVERS = ('aiohttp', 'gcsfs', 'google', 'requests')
# How TensorStore says that it could not reach or was not let at data, of which that says nothing.
UNREACHABLE = re.compile('PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED')


class DamagedError(Exception):
  """What was read is no whole checkpoint."""


@contextlib.contextmanager
def as_os_errors(directory: str, in_bucket: bool) -> Iterator[None]:
  """Turns the forms that a fault of the storage arrives in into OSErrors that name the directory."""
  try:
    yield
  except Exception as error:
    number = _errno(error)
    if number is not None:
      raise OSError(number, os.strerror(number), directory) from error
    if in_bucket and (isinstance(error, OSError | ValueError) or _is_a_drivers(error)):
      raise OSError(f'{directory}: {fault_line(error)}') from error
    raise


@contextlib.contextmanager
def as_damage(directory: str, in_bucket: bool) -> Iterator[None]:
  """Turns what reading a damaged file can raise into `DamagedError`; not InputError, nor a device without memory.

  A bucket that cannot be reached says nothing about what is in it, and becomes an OSError.
  """
  try:
    yield
  except InputError:
    raise
  except Exception as error:
    if in_bucket and _says_unreachable(error):
      raise OSError(f'{directory}: {fault_line(error)}') from error
    if isinstance(error, OSError | ValueError | KeyError | TypeError | AttributeError | IndexError):
      raise DamagedError(fault_line(error)) from error
    raise


class RaisedAnyway(logging.Filter):
  """Drops what Orbax logs of errors that reach the caller as exceptions: tracebacks, and within `silence` all."""

  _silent = False

  def filter(self, record: logging.LogRecord) -> bool:
    return not ((record.exc_info or self._silent) and f'{os.sep}orbax{os.sep}' in record.pathname)

  @contextlib.contextmanager
  def silence(self) -> Iterator[None]:
    self._silent = True
    try:
      yield
    finally:
      self._silent = False


def fault_line(error: Exception) -> str:
  text = ' '.join(str(error).split(' [tensorstore_spec')[0].split())
  return f'{type(error).__name__}: {text[:300]}'


def _says_unreachable(error: Exception) -> bool:
  if isinstance(error, OSError):
    return not isinstance(error, FileNotFoundError)
  return _is_a_drivers(error) or bool(UNREACHABLE.search(str(error)))


def _is_a_drivers(error: Exception) -> bool:
  return type(error).__module__.split('.')[0] in DRIVERS


def _errno(error: Exception) -> int | None:
  """The system's error number; TensorStore reports it as text in a ValueError."""
  if isinstance(error, OSError):
    return error.errno
  code = re.search(r"os_error_code='(\d+)'", str(error)) if isinstance(error, ValueError) else None
  return int(code[1]) if code else None


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
