"""Several processes of one run: how they find each other, who goes first, what they have to agree on.

With one process every function here does nothing but what its name says of one.
"""

import contextlib
import itertools
import json
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from janus_jax.errors import InputError, one_line
from janus_jax.training import rendezvous

# 'none': a process by itself. 'auto': by the cluster's environment (TPU, SLURM, GKE, Open MPI). 'flags': by the command
# line.
MODES = ('none', 'auto', 'flags')
# Words of collectives and of jax's coordination service where a peer is gone.
LOST = re.compile('gloo|nccl|heartbeat|coordination ?service|connection (reset|refused)|unavailable|barrier', re.I)

# Seconds that process 0 stays after its own end. The others end for the same reason at that moment; without process 0
# jax would end them first, with pages of stacks.
LINGER = 5
MISSING = 'not there'  # Shown by `check_same` for a value that a process does not have.


def start(
  mode: str, coordinator: str | None, count: int | None, index: int | None, dead_after: int, patience: int = 600
) -> None:
  """Joins the processes of a run, before any device is used.

  Args:
    mode: one of MODES; with 'flags' the next three are given, else None.
    coordinator: 'HOST:PORT', where process 0 listens.
    count: number of processes.
    index: index of this process.
    dead_after: seconds without a sign of life after which the others give a process up and end.
    patience: seconds that a process waits for the others to start.

  Raises:
    InputError: flags that do not go together, no cluster that could be recognised, or processes that do not come.
  """
  given = {'coordinator_address': coordinator, 'num_processes': count, 'process_id': index}
  _check_flags(mode, given, {'dead_after': dead_after, 'wait_for_processes': patience})
  if mode == 'none':
    return
  # For CPUs; other devices have collectives of their own.
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  if mode == 'flags':
    rendezvous.meet(coordinator, count, index, patience)
  # Longer than ours: jax's own end is in C++, with pages of stacks.
  timeouts = {'heartbeat_timeout_seconds': dead_after, 'initialization_timeout': patience + 60}
  try:
    with _ending_after(patience if mode == 'auto' else patience + 30):
      jax.distributed.initialize(**given, **timeouts)
  except (RuntimeError, ValueError) as error:
    text = one_line(error)
    if (mode == 'auto' and 'should be defined' in text) or 'must be defined' in text:
      raise InputError(
        "distributed is 'auto' and no cluster was recognised (a TPU pod, SLURM, Open MPI, GKE ...): leave the flag out "
        'for a process by itself, or use --distributed=flags --coordinator_address=HOST:PORT --num_processes=N '
        '--process_id=I'
      ) from None
    raise InputError(f'the processes of the run do not find each other: {text}') from None


def _check_flags(mode: str, given: Mapping[str, Any], seconds: Mapping[str, int]) -> None:
  for name, value in seconds.items():
    if value < 1:
      raise InputError(f'{name} is {value}: expected seconds, 1 or more')
  missing = [name for name, value in given.items() if value is None]
  if mode != 'flags' and len(missing) < len(given):
    raise InputError(f'distributed is {mode!r}: expected none of {", ".join(given)}, which go with --distributed=flags')
  if mode != 'flags':
    return
  if missing:
    raise InputError(f"distributed is 'flags': expected {missing[0]} too")
  count, index = given['num_processes'], given['process_id']
  if count < 1:
    raise InputError(f'num_processes is {count}: expected 1 or more')
  if not 0 <= index < count:
    raise InputError(f'process_id is {index}: expected 0 to {count - 1}')
  rendezvous.parse_address(given['coordinator_address'])


@contextlib.contextmanager
def _ending_after(seconds: float) -> Iterator[None]:
  """Ends the process with code 1 and a line if the block takes longer: in C++, where nothing else ends it so."""

  def end() -> None:
    line = f'the processes of the run do not find each other within {seconds:.0f} s (--wait_for_processes)'
    print(f'error: {line}: expected all of them to be started', file=sys.stderr, flush=True)
    os._exit(1)

  timer = threading.Timer(seconds, end)
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


@contextlib.contextmanager
def ending_alone() -> Iterator[None]:
  """Ends a process of a run of several at once if the block fails: with code 1 and the reason in a line.

  Otherwise jax would wait for the others when the process ends, and they for it.
  """
  try:
    yield
  except Exception as error:
    count = jax.process_count()
    if count == 1:
      raise
    text = one_line(error)
    if LOST.search(text):
      text = f'a process of the run has died or cannot be reached ({text[:200]}); run the command again on all hosts'
    elif not isinstance(error, InputError | OSError):
      traceback.print_exc()
    print(f'error: process {jax.process_index()} of {count}: {text}', file=sys.stderr, flush=True)
    if not jax.process_index():
      time.sleep(LINGER)
    os._exit(1)


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Fails in all processes, with InputError and the reason of the first, where the block fails in one of them."""
  if jax.process_count() == 1:
    yield
    return
  error = None
  try:
    yield
  except Exception as caught:
    error = caught
  reasons = gathered(' '.join(f'{error or type(error).__name__}'.split()) if error else None)
  if error:
    raise error
  for index, reason in enumerate(reasons):
    if reason is not None:
      raise InputError(f'process {index}: {reason}')


@contextlib.contextmanager
def first_alone() -> Iterator[bool]:
  """Runs the block in process 0, then in the others, which find what it left, files above all. Gives True in 0.

  As in `together`, all fail where one does.
  """
  is_first = not jax.process_index()
  if not is_first:
    with together():
      pass
  with together():
    yield is_first
  if is_first and jax.process_count() > 1:
    with together():
      pass


def gathered(value: Any) -> list[Any]:
  """The values (JSON) that all processes give, in order."""
  if jax.process_count() == 1:
    return [value]
  content = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(len(content)))
  padded = np.zeros(int(sizes.max()), np.uint8)
  padded[: len(content)] = content
  rows = multihost_utils.process_allgather(padded)
  return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes)]


def check_same(what: str, values: Mapping[str, Any]) -> None:
  """Checks that all processes of a run have the same JSON values; `what` names others, as in 'another config'.

  Raises InputError in all of them, with the first value that differs from that of process 0, and who has it.
  """
  if jax.process_count() == 1:
    return
  by_process = [dict(_flat_items(found)) for found in gathered(values)]
  for name in dict.fromkeys(itertools.chain(*by_process)):
    expected, *others = (own.get(name, MISSING) for own in by_process)
    if found := next((value for value in others if value != expected), None):
      same = [index for index, value in enumerate(others, 1) if value == found]
      who = f'process {same[0]} has' if len(same) == 1 else f'processes {", ".join(map(str, same))} have'
      raise InputError(f'{who} {what}: {name} is {found}: expected {expected} as on process 0')


def _flat_items(values: Any, name: str = '') -> Iterator[tuple[str, str]]:
  """('stages.stage1.steps', '100') for each value of nested dicts."""
  if isinstance(values, dict) and values:
    for key, value in values.items():
      yield from _flat_items(value, f'{name}.{key}' if name else key)
  else:
    yield name, json.dumps(values)


def from_first(value: bool) -> bool:
  """The value of process 0."""
  return value if jax.process_count() == 1 else bool(multihost_utils.broadcast_one_to_all(np.int32(value)))


def summed(counts: np.ndarray) -> np.ndarray:
  """Sum over processes of their int64[n]."""
  if jax.process_count() == 1:
    return counts
  # As pairs of int32: jax would cut an int64 down to its lower half.
  gathered = multihost_utils.process_allgather(counts.astype(np.int64).view(np.int32))
  return np.ascontiguousarray(gathered).view(np.int64).sum(0)


def should_stop(asked: bool, step: int) -> bool:
  """True if the run is to stop after a step. A process by itself decides by `asked`.

  Several agree on a step that none of them has passed, once one of them has been sent SIGTERM.
  """
  return asked if jax.process_count() == 1 else multihost_utils.reached_preemption_sync_point(step)
