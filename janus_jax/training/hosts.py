"""Several processes of one run: how they find each other, who goes first, what they have to agree on.

With one process every function here does nothing but what its name says of one.
"""

import contextlib
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from janus_jax.errors import InputError

# 'none': a process by itself. 'auto': what the cluster's environment says (TPU, SLURM, GKE, Open MPI). 'flags': what
# the command line says.
MODES = ('none', 'auto', 'flags')
# In what collectives and jax's coordination service say where a peer is gone.
LOST = re.compile('gloo|nccl|heartbeat|coordination ?service|connection (reset|refused)|unavailable|barrier', re.I)

# Seconds that process 0 stays after its own end. The others end for the same reason at that moment; without process 0
# jax would end them first, with pages of stacks.
LINGER = 5


def start(mode: str, coordinator: str | None, count: int | None, index: int | None, dead_after: int) -> None:
  """Joins the processes of a run; before any device is used.

  Args:
    mode: one of MODES.
    coordinator: 'HOST:PORT', where process 0 listens; only with 'flags', as what follows.
    count: processes.
    index: of this one.
    dead_after: seconds without a sign of life after which the others give a process up and end.

  Raises:
    InputError: flags that do not go together, no cluster that could be recognised, or processes that do not come.
  """
  given = {'coordinator_address': coordinator, 'num_processes': count, 'process_id': index}
  missing = [name for name, value in given.items() if value is None]
  if mode != 'flags' and len(missing) < len(given):
    raise InputError(f'distributed is {mode!r}: expected none of {", ".join(given)}, which go with --distributed=flags')
  if mode == 'none':
    return
  if mode == 'flags':
    if missing:
      raise InputError(f"distributed is 'flags': expected {missing[0]} too")
    if not 0 <= index < count:
      raise InputError(f'process_id is {index}: expected 0 to {count - 1}')
  # What CPUs talk to each other with; other devices have their own.
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  try:
    jax.distributed.initialize(
      **given, heartbeat_timeout_seconds=dead_after, initialization_timeout=max(dead_after, 60)
    )
  except (RuntimeError, ValueError) as error:
    raise InputError(f'the processes of the run do not find each other: {" ".join(str(error).split())}') from None


@contextlib.contextmanager
def ending_alone() -> Iterator[None]:
  """Of a run of several processes, ends this one at once if the block fails: with code 1 and the reason in a line.

  Otherwise jax would wait for the others when the process ends, who wait for it.
  """
  try:
    yield
  except Exception as error:
    count = jax.process_count()
    if count == 1:
      raise
    text = ' '.join(str(error).split())
    if LOST.search(text):
      text = f'a process of the run has died or cannot be reached ({text[:200]}); run the command again on all hosts'
    elif not isinstance(error, InputError | OSError):
      traceback.print_exc()
    print(f'error: process {jax.process_index()} of {count}: {text}', file=sys.stderr, flush=True)
    if not jax.process_index():
      time.sleep(LINGER)
    os._exit(1)


@contextlib.contextmanager
def first_alone() -> Iterator[bool]:
  """Process 0 runs the block, then the others do and find what it left: files, above all. Gives whether this is 0."""
  is_first = not jax.process_index()
  if not is_first:
    _wait('first_alone')
  yield is_first
  if is_first:
    _wait('first_alone')


def from_first(value: bool) -> bool:
  """What process 0 says."""
  return value if jax.process_count() == 1 else bool(multihost_utils.broadcast_one_to_all(np.int32(value)))


def summed(counts: np.ndarray) -> np.ndarray:
  """Sum over processes of the int64[n] that each of them gives."""
  if jax.process_count() == 1:
    return counts
  # As pairs of int32: jax would cut an int64 down to its lower half.
  gathered = multihost_utils.process_allgather(counts.astype(np.int64).view(np.int32))
  return np.ascontiguousarray(gathered).view(np.int64).sum(0)


def should_stop(asked: bool, step: int) -> bool:
  """Whether to stop after a step, as `asked` of a process by itself.

  Several agree on a step that none of them has passed, once one of them has been sent SIGTERM.
  """
  return asked if jax.process_count() == 1 else multihost_utils.reached_preemption_sync_point(step)


def _wait(name: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f'janus_jax: {name}')
