"""What Orbax and TensorStore raise and log where a disk or a bucket fails, in two forms: OSError and DamagedError."""

import contextlib
import logging
import os
import re
from collections.abc import Iterator

from janus_jax.errors import InputError

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
      raise OSError(f'{directory}: {one_line(error)}') from error
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
      raise OSError(f'{directory}: {one_line(error)}') from error
    if isinstance(error, OSError | ValueError | KeyError | TypeError | AttributeError | IndexError):
      raise DamagedError(one_line(error)) from error
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


def one_line(error: Exception) -> str:
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
