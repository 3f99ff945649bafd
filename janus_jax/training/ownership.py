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
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import fsspec

from janus_jax.errors import InputError, one_line

LOCK_FILE, LEASE_FILE = '.owner', '.lease'
# Seconds between signs of life of an owner in a bucket, and without one after which it is taken for dead.
RENEW_EVERY, DEAD_AFTER = 15.0, 90.0
# Errors of a file system without locks (Lustre without `-o flock`, mounted buckets).
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class InUseError(InputError):
  """Another process owns it."""


@contextlib.contextmanager
def owned(directory: str) -> Iterator[None]:
  """Makes this process the owner of a directory for the block; it leaves nothing behind in one that was not there.

  The directory is local, made if missing, or a URL that fsspec knows.

  Raises:
    InUseError: another process owns it; says which.
    InputError: a bucket cannot be reached.
    OSError: nothing can be written there.
  """
  if '://' in directory:
    with _Lease(directory):
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
        stack.enter_context(_Lease(f'file://{os.path.abspath(directory)}'))
      yield
  finally:
    with contextlib.suppress(OSError):  # Not empty: it has become a workdir.
      for path in made:
        os.rmdir(path)


@contextlib.contextmanager
def locked(path: str, name: str, wait: bool = False) -> Iterator[None]:
  """Holds the system's lock on a file, made if missing, for the block; the file is gone afterwards.

  `name` is what is owned, for messages. With `wait` another owner is waited for.

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
          raise _in_use(name, _parsed(os.pread(file, 10_000, 0))) from None
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


class _Lease:
  """Ownership without locks: a file that says who owns the directory, written anew every RENEW_EVERY seconds.

  Its content is compared with itself over time, not with a clock: hosts' clocks differ. A context manager.
  """

  def __init__(self, directory: str):
    self._name, self._beat = directory.removeprefix('file://'), 0
    self._system, self._path = fsspec.url_to_fs(f'{directory.rstrip("/")}/{LEASE_FILE}')
    self._owner, self._ended = {**_this_process(), 'id': uuid.uuid4().hex}, threading.Event()
    self._thread = threading.Thread(target=self._keep, name='owner of a workdir', daemon=True)

  def __enter__(self) -> None:
    """Raises InUseError as soon as the owner there gives a sign of life; waits for one for DEAD_AFTER seconds."""
    found = self._read()
    if found is not None and not _is_gone(found):
      owner = _described(found) or 'unknown'
      logging.info('%s: waits %.0f s for a sign of life of its owner (%s)', self._name, DEAD_AFTER, owner)
      end = time.monotonic() + DEAD_AFTER
      while (seen := self._read()) == found and time.monotonic() < end:
        time.sleep(min(RENEW_EVERY / 3, DEAD_AFTER / 3))
      if seen is not None and seen != found:
        raise _in_use(self._name, seen)
      found = seen
    if found is not None:
      logging.warning('%s: taken over: its owner (%s) gave no sign of life', self._name, _described(found))
    self._write('overwrite' if found is not None else 'create')
    if not self._is_mine():  # Of two that write at once the last one has it.
      raise _in_use(self._name, self._read() or {})
    self._thread.start()

  def __exit__(self, *_: Any) -> None:
    self._ended.set()
    self._thread.join()
    with contextlib.suppress(Exception):  # It runs out by itself.
      if self._is_mine():
        self._system.rm_file(self._path)

  def _keep(self) -> None:
    """Renews until the end; ends the process where another one has taken over."""
    while not self._ended.wait(RENEW_EVERY):
      try:
        if not self._is_mine():
          other = _described(self._read() or {})
          os.write(2, f'error: {self._name}: another process took it over ({other}), so this one ends\n'.encode())
          os._exit(1)
        self._write('overwrite')
      except Exception as error:  # Of any driver: whoever takes over meanwhile is noticed when it answers again.
        logging.warning('%s: %s; it is tried again', self._name, one_line(error)[:300])

  def _is_mine(self) -> bool:
    return (self._read() or {}).get('id') == self._owner['id']

  def _read(self) -> dict[str, Any] | None:
    try:
      return _parsed(self._system.cat_file(self._path))
    except FileNotFoundError:
      return None

  def _write(self, mode: str) -> None:
    self._beat += 1
    with contextlib.suppress(FileExistsError):  # Then it is another's.
      self._system.pipe_file(self._path, json.dumps({**self._owner, 'beat': self._beat}).encode(), mode=mode)


def _this_process() -> dict[str, Any]:
  since = datetime.datetime.now().astimezone().isoformat(' ', 'seconds')
  return {'pid': os.getpid(), 'host': socket.gethostname(), 'since': since, 'place': _pid_namespace()}


def _pid_namespace() -> str:
  """This boot of this machine's system, and the container: process ids are counted in them. '' where none tells."""
  try:
    with open('/proc/sys/kernel/random/boot_id') as file:
      return f'{file.read().strip()} {os.readlink("/proc/self/ns/pid")}'
  except OSError:
    return ''


def _is_gone(owner: Mapping[str, Any]) -> bool:
  """True for an owner that is known to have ended: a process of this very system, of an id that no process has."""
  if not owner.get('place') or owner['place'] != _pid_namespace():
    return False
  try:
    os.kill(owner['pid'], 0)
  except OSError as error:
    return isinstance(error, ProcessLookupError)
  return False


def _parsed(content: bytes) -> dict[str, Any]:
  try:
    values = json.loads(content)
  except ValueError:  # Not written to its end yet.
    return {}
  return values if isinstance(values, dict) else {}


def _described(owner: Mapping[str, Any]) -> str:
  return f'pid {owner.get("pid")} on host {owner.get("host")} since {owner.get("since")}' if owner else ''


def _in_use(name: str, owner: Mapping[str, Any]) -> InUseError:
  return InUseError(f'{name}: in use by {_described(owner) or "another process"}: expected a free workdir')


def _make_directories(directory: str) -> list[pathlib.Path]:
  """Makes it and its parents; returns what was made, the innermost first."""
  path = pathlib.Path(os.path.abspath(directory))
  missing = [part for part in (path, *path.parents) if not os.path.lexists(part)]
  path.mkdir(parents=True, exist_ok=True)
  return missing
