"""One owner for what two processes must not write at once: a workdir, a shard, parts that several runs share.

On disks the owner holds a lock of the system on a file, which ends with its process however that ends (kill -9, power
loss). Buckets have no locks: there the owner renews a lease, and one that is not renewed any more is taken over.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import fsspec

from janus_jax.errors import InputError, one_line

LOCK_FILE, LEASE_FILE = '.owner', '.lease'
# Seconds between signs of life of an owner in a bucket, and without one after which it is taken for dead.
RENEW_EVERY, DEAD_AFTER = 15.0, 90.0
# What a file system without locks answers (Lustre without `-o flock`, mounted buckets).
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class InUseError(InputError):
  """Another process owns it."""


@contextlib.contextmanager
def owned(directory: str) -> Iterator[None]:
  """Makes this process the owner of a directory for the block; it leaves nothing behind in one that was not there.

  Args:
    directory: local, made if missing; or a URL that fsspec knows.

  Raises:
    InUseError: another process owns it; says which.
    InputError: a bucket cannot be reached.
    OSError: nothing can be written there.
  """
  if '://' in directory:
    with _lease(directory):
      yield
    return
  made = _make_directories(directory)
  try:
    with contextlib.ExitStack() as stack:
      try:
        stack.enter_context(locked(os.path.join(directory, LOCK_FILE), directory))
      except OSError as error:
        if error.errno not in NO_LOCKS:
          raise
        stack.enter_context(_lease(f'file://{os.path.abspath(directory)}'))
      yield
  finally:
    with contextlib.suppress(OSError):  # Not empty: it has become a workdir.
      for path in made:
        os.rmdir(path)


@contextlib.contextmanager
def locked(path: str, name: str, wait: bool = False) -> Iterator[None]:
  """Holds the system's lock on a file for the block; the file is gone afterwards.

  Args:
    path: of the file, made if missing, in an existing directory.
    name: what is owned, for messages.
    wait: until the present owner is done.

  Raises:
    InUseError: another process has it and `wait` is False.
    OSError: the file cannot be written, or its file system has no locks.
  """
  file = _lock(path, name, wait)
  try:
    os.truncate(file, 0)
    os.pwrite(file, json.dumps(_this_process()).encode(), 0)
    yield
  finally:
    with contextlib.suppress(OSError):
      os.unlink(path)  # While it is locked: whoever opened it before finds out (`_lock`).
    os.close(file)


def _lock(path: str, name: str, wait: bool) -> int:
  while True:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        if not wait:
          raise InUseError(_in_use(name, os.pread(file, 10_000, 0))) from None
        logging.info('%s: waiting for another process', name)
        fcntl.flock(file, fcntl.LOCK_EX)
      with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.stat(path), os.fstat(file)):
          return file
    except BaseException as error:
      if isinstance(error, OSError):  # No locks here.
        os.unlink(path)
      os.close(file)
      raise
    os.close(file)  # The owner before removed it meanwhile: a lock on it keeps nobody out.


@contextlib.contextmanager
def _lease(directory: str) -> Iterator[None]:
  """The same without locks: a file that says who owns the directory, written anew every RENEW_EVERY seconds.

  Its content is compared with itself over time, not with a clock: hosts' clocks differ.
  """
  lease = _Lease(directory)
  lease.take()
  ended = threading.Event()
  thread = threading.Thread(target=lease.keep, args=(ended,), name='owner of a workdir', daemon=True)
  thread.start()
  try:
    yield
  finally:
    ended.set()
    thread.join()
    lease.release()


class _Lease:
  def __init__(self, directory: str):
    self._name = directory.removeprefix('file://')
    self._url, self._me, self._beat = f'{directory.rstrip("/")}/{LEASE_FILE}', uuid.uuid4().hex, 0
    self._owner = _this_process()

  def take(self) -> None:
    """Raises InUseError as soon as the owner there gives a sign of life; waits for one for DEAD_AFTER seconds."""
    found = self._read()
    if found is not None and not _is_gone(found):
      logging.info(
        '%s: waits %.0f s for a sign of life of its owner (%s)', self._name, DEAD_AFTER, _described(found) or 'unknown'
      )
      end = time.monotonic() + DEAD_AFTER
      while (seen := self._read()) == found and time.monotonic() < end:
        time.sleep(min(RENEW_EVERY / 3, DEAD_AFTER / 3))
      if seen is not None and seen != found:
        raise InUseError(_in_use(self._name, seen))
      found = seen
    if found is not None:
      logging.warning('%s: taken over: its owner (%s) gave no sign of life', self._name, _described(found))
    self._write('overwrite' if found is not None else 'create')
    if not self._is_mine():  # Of two that write at once the last one has it.
      raise InUseError(_in_use(self._name, self._read() or b''))

  def keep(self, ended: threading.Event) -> None:
    """Renews until `ended`; ends the process where another one has taken over."""
    while not ended.wait(RENEW_EVERY):
      try:
        if not self._is_mine():
          line = f'{self._name}: another process took it over ({_described(self._read() or b"")}), so this one ends'
          os.write(2, f'error: {line}\n'.encode())
          os._exit(1)
        self._write('overwrite')
      except Exception as error:  # Of any driver: whoever takes over meanwhile is noticed when it answers again.
        logging.warning('%s: %s; it is tried again', self._name, one_line(error)[:300])

  def release(self) -> None:
    with contextlib.suppress(Exception):  # It runs out by itself.
      if self._is_mine():
        system, path = fsspec.url_to_fs(self._url)
        system.rm_file(path)

  def _is_mine(self) -> bool:
    return _parsed(self._read() or b'').get('id') == self._me

  def _read(self) -> bytes | None:
    system, path = fsspec.url_to_fs(self._url)
    try:
      return system.cat_file(path)
    except FileNotFoundError:
      return None

  def _write(self, mode: str) -> None:
    self._beat += 1
    content = json.dumps({**self._owner, 'id': self._me, 'beat': self._beat}).encode()
    system, path = fsspec.url_to_fs(self._url)
    with contextlib.suppress(FileExistsError):  # Then it is another's.
      system.pipe_file(path, content, mode=mode)


def _this_process() -> dict[str, Any]:
  since = datetime.datetime.now().astimezone().isoformat(' ', 'seconds')
  return {'pid': os.getpid(), 'host': socket.gethostname(), 'since': since, 'place': _place()}


def _place() -> str:
  """What process ids are counted in: this start of this machine's system, and the container. '' where none tells."""
  try:
    with open('/proc/sys/kernel/random/boot_id') as file:
      return f'{file.read().strip()} {os.readlink("/proc/self/ns/pid")}'
  except OSError:
    return ''


def _is_gone(content: bytes) -> bool:
  """Whether an owner is known to have ended: a process of this very system, of an id that no process has."""
  values = _parsed(content)
  if not values.get('place') or values['place'] != _place():
    return False
  try:
    os.kill(values['pid'], 0)
  except ProcessLookupError:
    return True
  except OSError:
    return False
  return False


def _parsed(content: bytes) -> dict[str, Any]:
  try:
    values = json.loads(content)
  except ValueError:  # On its way.
    return {}
  return values if isinstance(values, dict) else {}


def _described(content: bytes) -> str:
  values = _parsed(content)
  return f'pid {values.get("pid")} on host {values.get("host")} since {values.get("since")}' if values else ''


def _in_use(name: str, content: bytes) -> str:
  return f'{name}: in use by {_described(content) or "another process"}: expected a free workdir'


def _make_directories(directory: str) -> list[str]:
  """Makes it and its parents; returns what was made, the innermost first."""
  missing, path = [], os.path.abspath(directory)
  while not os.path.lexists(path):
    missing.append(path)
    path = os.path.dirname(path)
  os.makedirs(directory, exist_ok=True)
  return missing
