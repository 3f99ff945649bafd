"""Runs parts one after another, each in a process of its own and within a time; every figure is kept at once."""

import contextlib
import dataclasses
import datetime
import json
import logging
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from janus_jax.benchmarking.machine import Machine
from janus_jax.benchmarking.measured_table import table_to_markdown
from janus_jax.benchmarking.parts import Part
from janus_jax.data.whole_files import write_text
from janus_jax.errors import InputError
from janus_jax.sharding.accelerators import GIB

MEASURED, FAILED, LEFT_OUT = 'measured', 'failed', 'left out'
USABLE = 0.95  # Fraction of the memory that is sold; the rest is the runtime's.
PROGRESS_SECONDS = 10.0
LONGEST = 300  # Characters of an error.
_OUT_OF_MEMORY = ('RESOURCE_EXHAUSTED', 'out of memory', 'OutOfMemory', 'Out of memory', 'killed by signal 9')


@dataclasses.dataclass(frozen=True)
class Result:
  """Result of a part.

  Attributes:
    status: one of MEASURED, FAILED and LEFT_OUT.
    command: the last one that was run, or would have been run.
    figures: the JSON object that it printed; None without one.
    load: load average before the first part of the call, which is others' work.
    error: why it failed or was left out, '' otherwise.
  """

  part: str
  title: str
  status: str
  command: str
  seconds: float
  figures: dict[str, Any] | None
  load: float
  error: str = ''


def measure(parts: Sequence[Part], machine: Machine, minutes: float, out: pathlib.Path) -> list[Result]:
  """Runs parts in order; figures.json, table.md and a log for each part are in `out` after each of them.

  Args:
    parts: parts to run.
    machine: this machine.
    minutes: time for all of them; the one that runs then is ended.
    out: directory, made if missing; an earlier call's results of other parts are kept.

  Raises:
    OSError: `out` cannot be written, before anything runs.
    KeyboardInterrupt: Ctrl-C; figures so far are kept.
  """
  out.mkdir(parents=True, exist_ok=True)
  end = time.monotonic() + 60 * minutes
  results: list[Result] = []
  earlier = _earlier(out, machine, {part.name for part in parts})
  _write(out, machine, earlier)
  load = os.getloadavg()[0]
  for index, part in enumerate(parts):
    logging.info('%d of %d: %s', index + 1, len(parts), part.title)
    result = _run_part(part, machine, end, load, out / f'{part.name}.log')
    logging.info('  %s in %.0f s%s', result.status, result.seconds, f': {result.error}' if result.error else '')
    results.append(result)
    _write(out, machine, earlier + results)
  return results


def _earlier(out: pathlib.Path, machine: Machine, names: set[str]) -> list[Result]:
  """Reads the results on the same machine of parts that are not among `names`."""
  try:
    found = json.loads((out / 'figures.json').read_text())
    same = found['machine'] == dataclasses.asdict(machine)
    return [Result(**part) for part in found['parts'] if part['part'] not in names] if same else []
  except FileNotFoundError:
    return []
  except (ValueError, KeyError, TypeError):
    raise InputError(f'{out}/figures.json: expected what an earlier call has written, or no such file') from None


def _run_part(part: Part, machine: Machine, end: float, load: float, log: pathlib.Path) -> Result:
  """Tries its commands until one fits the memory."""
  began = time.monotonic()
  left = end - began
  result = Result(part.name, part.title, LEFT_OUT, _shown(part.commands[0]), 0, None, load)
  if part.memory > USABLE * machine.memory:
    need = f'needs {part.memory / GIB:.0f} GiB of memory: there are {machine.memory / GIB:.0f}'
    return dataclasses.replace(result, error=need)
  if left < part.seconds:
    return dataclasses.replace(result, error=f'takes about {part.seconds:.0f} s: {max(left, 0):.0f} s are left')
  for command in part.commands:
    limit = min(part.limit, end - time.monotonic())
    code, printed = _run(command, limit, log)
    figures = _figures(printed)
    error = _error(code, limit, log) or ('' if figures else 'printed no figures')
    status, now = FAILED if error else MEASURED, time.monotonic()
    if code is None and limit < part.limit:
      status, error = LEFT_OUT, f'the minutes were over after {limit:.0f} s of it: give more with --minutes'
    result = Result(part.name, part.title, status, _shown(command), now - began, figures, load, error)
    if end - now <= part.seconds or not any(words in error for words in _OUT_OF_MEMORY):
      break
    logging.info('  does not fit the memory')
  return result


def _shown(command: Sequence[str]) -> str:
  return ' '.join('python' if word == sys.executable else word for word in command)


def _run(command: Sequence[str], limit: float, log: pathlib.Path) -> tuple[int | None, str]:
  """Exit code, None if the command was ended at the limit, and its stdout. Whatever it started ends with it."""
  with open(log, 'w') as errors:
    process = subprocess.Popen(
      command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True, stdin=subprocess.DEVNULL
    )
    stop = threading.Event()
    threading.Thread(target=_report_progress, args=(log, stop), daemon=True).start()
    try:
      printed, _ = process.communicate(timeout=limit)
      return process.returncode, printed
    except subprocess.TimeoutExpired:
      return None, ''
    finally:
      stop.set()
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
      process.wait()


def _report_progress(log: pathlib.Path, stop: threading.Event) -> None:
  """Repeats the last line of a part now and then, so that a long one is seen to work."""
  began, said = time.monotonic(), ''
  while not stop.wait(PROGRESS_SECONDS):
    line = _last_line(log)
    logging.info('  %.0f s%s', time.monotonic() - began, f': {line[:100]}' if line != said else '')
    said = line


def _figures(printed: str) -> dict[str, Any] | None:
  """The JSON object in the last line, None if there is none."""
  try:
    found = json.loads(printed.strip().rpartition('\n')[2])
  except ValueError:
    return None
  return found if isinstance(found, dict) else None


def _error(code: int | None, limit: float, log: pathlib.Path) -> str:
  """Why a part failed, '' if it did not: its own line, else the last of an exception, else its last one.

  XLA's allocator tries less and less memory, and logs that, before a program runs: not a failure.
  """
  if code == 0:
    return ''
  if code is None:
    return f'ended after {limit:.0f} s'
  lines = log.read_text(errors='replace').splitlines()
  if code < 0 or code > 128:
    signals = {number.value: number.name for number in signal.Signals}
    number = -code if code < 0 else code - 128
    fatal = next((line for line in lines if re.match(r'F\d{4} |.*(Check failed|FATAL)', line)), '')
    return f'killed by signal {number} ({signals.get(number, "unknown")}){f": {fatal}" if fatal else ""}'[:LONGEST]
  named = [line for line in lines if re.match(r'error: |[\w.]*(Error|Exception)\b.*: ', line)]
  return (named[-1] if named else _last_line(log) or f'exit code {code}').removeprefix('error: ').strip()[:LONGEST]


def _last_line(log: pathlib.Path) -> str:
  text = log.read_text(errors='replace').strip()
  return text.replace('\r', '\n').rpartition('\n')[2].strip()


def _write(out: pathlib.Path, machine: Machine, results: Sequence[Result]) -> None:
  found = {
    'date': datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d'),
    'machine': dataclasses.asdict(machine),
    'parts': [dataclasses.asdict(result) for result in results],
  }
  for name, text in (('figures.json', json.dumps(found, indent=2)), ('table.md', table_to_markdown(found))):
    write_text(out / name, f'{text}\n')
