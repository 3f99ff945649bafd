"""Records to examples ahead of need, in worker processes. What is read does not depend on how many there are.

Grain's `mp_prefetch` reads as fast (two processes, 400 JPEGs of 800 x 600, three runs on a busy machine: 48, 88 and 89
records/s, here 49, 71 and 98). But its state depends on the number of processes, so that a run could not go on with
another; and it ends at the first record that cannot be read, or that a process dies of.
"""

import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker

import grain
import numpy as np

from janus_jax.data.examples import Example, ExampleSpec, make_examples
from janus_jax.data.worker_transfer import Transfer, pack, unpack
from janus_jax.errors import InputError, RecordError

# 'kind/source', position there.
Key = tuple[str, int]
# Examples that a worker reads together, each in a thread: where files are far away it waits for all of them at once,
# and they come back in one message.
TASK = 8
# Tasks in flight per worker: enough that none waits while one example takes long.
AHEAD = 2


@dataclasses.dataclass(frozen=True)
class Reading:
  """Makes examples, given a source of `views` ('kind/name': shuffled) and a position; the rest as in `batches`."""

  views: Mapping[str, grain.MapDataset]
  spec: ExampleSpec
  seed: int
  guidance_dropout: float

  def examples(self, source: str, position: int) -> list[Example]:
    """The example of the record at a position of a source, epochs counted on, or the parts of a long one.

    Raises:
      InputError: the record is bad; a RecordError that says where it comes from, if its source does.
    """
    rng = np.random.default_rng([self.seed, zlib.crc32(source.encode()), position])
    kind = source.split('/', 1)[0]
    return make_examples(kind, self.views[source][position], self.spec, rng, self.guidance_dropout)

  def try_examples(self, source: str, position: int) -> list[Example] | InputError:
    """The examples, or the error that `examples` raises."""
    try:
      return self.examples(source, position)
    except InputError as error:
      return error


class Workers:
  """Processes that read, shared by the readers of a host. They start with the first task.

  With a `count` of 0 each reader reads itself.
  """

  def __init__(self, reading: Reading, count: int):
    self.reading, self.count = reading, count
    self._pool: concurrent.futures.ProcessPoolExecutor | None = None

  def submit(self, task: Sequence[Key]) -> concurrent.futures.Future[Transfer]:
    """Starts a task, whose result holds the examples of each record, or its InputError."""
    if self._pool is None:
      self._start()
    try:
      return self._pool.submit(_read_in_worker, task)
    except BrokenProcessPool as error:
      future = concurrent.futures.Future()
      future.set_exception(error)
      return future

  def _start(self) -> None:
    # Not forked: this process has threads, of JAX and of the prefetching iterator.
    context = multiprocessing.get_context('spawn')
    self._directory = tempfile.TemporaryDirectory(prefix='janus_jax-', ignore_cleanup_errors=True)
    arguments = self.reading, self._directory.name
    self._pool = concurrent.futures.ProcessPoolExecutor(self.count, context, _start_worker, arguments)
    # As many tasks as processes: the pool starts one only where none is idle.
    with _signals_blocked():
      ready = [self._pool.submit(_read_in_worker, ()) for _ in range(self.count)]
    try:
      for task in ready:
        task.result()
    except BrokenProcessPool:  # Else every record would be taken for the reason why.
      raise RuntimeError('a process that reads records ended before it read one; see above') from None

  def end_broken(self) -> None:
    """Lets the next task start other processes, if one of these has died."""
    try:
      if self._pool is not None:
        self._pool.submit(_read_in_worker, ())
    except BrokenProcessPool:
      self.close()

  def close(self) -> None:
    """Ends the processes."""
    if self._pool is not None:
      self._pool.shutdown(wait=False, cancel_futures=True)
      self._pool = None
      self._directory.cleanup()


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
  """Keeps Ctrl-C and a lost terminal from processes started in the block: their parent saves first, then ends them."""
  resource_tracker.ensure_running()  # Else it is started in the block, and unblocks them.
  before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGHUP))
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Reader:
  """Examples by source and position, from workers that `readers` readers share.

  `request` those that will be wanted, then `get` each.
  """

  def __init__(self, workers: Workers, readers: int):
    self._workers = workers
    self._ahead = max(AHEAD * TASK * workers.count // readers, TASK) if workers.count else 0
    # What has been requested: the task that it is part of, or what that gave.
    self._tasks: dict[Key, concurrent.futures.Future[Transfer]] = {}
    self._found: dict[Key, list[Example] | InputError] = {}
    self._next_task: list[Key] = []
    # Requests in flight when a worker died. The one that it died of shows when each is read alone.
    self._suspects: set[Key] = set()

  @property
  def wants_more(self) -> bool:
    """True if there are fewer requests in flight than keep every worker busy."""
    return not self._suspects and len(self._tasks) + len(self._next_task) < self._ahead

  def request(self, source: str, position: int) -> None:
    """Starts reading an example that will be wanted, together with those requested before and after it."""
    self._next_task.append((source, position))
    if len(self._next_task) == TASK:
      self._submit_next()

  def get(self, source: str, position: int) -> list[Example]:
    """Waits for a record, requested or not. Raises as `Reading.examples`, or RecordError if a worker died of it."""
    if not self._workers.count:
      return self._workers.reading.examples(source, position)
    key = source, position
    tries = 1 if key in self._suspects else 2
    found = key in self._found or any(self._receive(key) for _ in range(tries))
    self._suspects.discard(key)
    if not found:
      raise RecordError('crash', f'record {position} of {source}: the process that read it died, twice')
    found = self._found.pop(key)
    if isinstance(found, InputError):
      raise found
    return found

  def _submit_next(self) -> None:
    task, self._next_task = self._next_task, []
    self._tasks |= dict.fromkeys(task, self._workers.submit(task))

  def _receive(self, key: Key) -> bool:
    """Waits for the task that a key is part of, made if there is none. False if a worker died meanwhile."""
    if key in self._next_task:
      self._submit_next()
    elif key not in self._tasks:
      self._tasks[key] = self._workers.submit([key])
    task = self._tasks[key]
    keys = [other for other, its_task in self._tasks.items() if its_task is task]
    try:
      self._found |= zip(keys, unpack(task.result()))
    except BrokenProcessPool:
      self._suspects |= {*self._tasks, *self._next_task}
      self._tasks.clear()
      self._next_task.clear()
      self._workers.end_broken()
      return False
    for other in keys:
      del self._tasks[other]
    return True

  def close(self) -> None:
    """Forgets all requests, and ends the workers: they are still busy with them."""
    for requested in (self._tasks, self._found, self._next_task, self._suspects):
      requested.clear()
    self._workers.close()


_reading: Reading
_directory: str
_threads: concurrent.futures.ThreadPoolExecutor


def _start_worker(reading: Reading, directory: str) -> None:
  # The only globals: a process of a pool has no other place for what it is started with.
  global _reading, _directory, _threads
  _reading, _directory, _threads = reading, directory, concurrent.futures.ThreadPoolExecutor(TASK)
  threading.Thread(target=_end_with_parent, args=(directory,), daemon=True).start()


def _end_with_parent(directory: str) -> None:
  """Ends this process when its parent has been killed: a worker of a pool would wait for tasks for good."""
  multiprocessing.parent_process().join()
  shutil.rmtree(directory, ignore_errors=True)
  os._exit(1)


def _read_in_worker(task: Sequence[Key]) -> Transfer:
  return pack(list(_threads.map(_reading.try_examples, *zip(*task))), _directory)


def reason_of(error: InputError) -> str:
  """The reason that a bad record is counted by."""
  return error.reason if isinstance(error, RecordError) else 'example'
