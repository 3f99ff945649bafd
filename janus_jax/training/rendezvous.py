"""Meeting of the processes of a run before jax's own, which ends in C++ where one is missing.

Process 0 listens where jax will afterwards. Every process, 0 too, connects there, says which it is, and stays connected
until process 0 answers: all are there, or what is wrong. Messages are lines of JSON.
"""

import asyncio
import contextlib
import errno
import json
import logging
import re
import socket
import time
import uuid
from collections.abc import Mapping
from typing import Any

from janus_jax.errors import InputError

RETRY = 0.5  # Seconds between attempts to reach process 0.
SAY_EVERY = 60.0  # Seconds between lines about who is missing.
GRACE = 5.0  # Seconds that the others wait longer for process 0's word, and that it goes on to say what is wrong.
MAX_LINE = 100_000


def parse_address(text: str) -> tuple[str, int]:
  """'HOST:PORT' -> (host, port). Raises InputError for another form."""
  found = re.fullmatch(r'(?:\[([^\[\]]+)\]|([^:\[\]]+)):(\d{1,5})', text)
  if not found or not 0 < int(found[3]) < 2**16:
    raise InputError(
      f'coordinator_address is {text!r}: expected HOST:PORT of process 0, as in 10.0.0.1:8476 (a port from 1 to 65535)'
    )
  return found[1] or found[2], int(found[3])


def meet(coordinator: str, count: int, index: int, patience: float) -> None:
  """Returns when all processes of a run are there, in all of them.

  Args:
    coordinator: 'HOST:PORT' of process 0.
    count: processes.
    index: index of this process.
    patience: seconds that it waits for the others.

  Raises:
    InputError: in all that are there: an id is missing or given twice, or numbers of processes differ.
  """
  hello = {'process': index, 'count': count, 'host': socket.gethostname(), 'key': uuid.uuid4().hex}
  asyncio.run(_meet(coordinator, hello, patience))


async def _meet(coordinator: str, hello: Mapping[str, Any], patience: float) -> None:
  address, end = parse_address(coordinator), time.monotonic() + patience
  index, count, meeting, why = hello['process'], hello['count'], None, 'no answer'
  with contextlib.ExitStack() as stack:
    while True:
      if index == 0 and not meeting and (listening := _listen(address[1], count)):
        meeting = _Meeting(count, patience)
        server = await asyncio.start_server(meeting.hear, sock=listening, limit=MAX_LINE)
        stack.callback(server.close)
        stack.callback(asyncio.create_task(meeting.answer()).cancel)
      answer, problem = await _ask(address, hello, end + GRACE)
      why = problem or why
      if answer.get('met'):
        return
      if 'error' in answer:
        if meeting:
          await asyncio.sleep(GRACE)  # Latecomers are answered for a while; they would wait for long.
        raise InputError(answer['error'])
      if time.monotonic() > end + (0 if meeting else GRACE):
        missing = f'; {_missing(answer["missing"], count)}' if answer.get('missing') else ''
        raise InputError(
          f'process {index} of {count} did not reach process 0 at {coordinator} within {patience:.0f} s ({why})'
          f'{missing}: expected all processes of the run to be started, with the same --coordinator_address'
        )
      await asyncio.sleep(RETRY)


def _listen(port: int, count: int) -> socket.socket | None:
  """A socket for process 0; None where another process listens: a second process 0, or a run that is ending."""
  ipv6 = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if ipv6 else socket.AF_INET
  try:
    return socket.create_server(('', port), family=family, backlog=min(count + 16, 4096), dualstack_ipv6=ipv6)
  except OSError as error:
    if error.errno == errno.EADDRINUSE:
      return None
    raise InputError(f'coordinator_address: port {port}: {error.strerror}: expected one to listen on') from None


async def _ask(address: tuple[str, int], hello: Mapping[str, Any], end: float) -> tuple[dict[str, Any], str]:
  """The last answer of process 0 to one connection, and why that ended, if not for want of time."""
  answer: dict[str, Any] = {}
  try:
    # Not asyncio's own, whose errors do not say what the system does.
    connection = await asyncio.to_thread(socket.create_connection, address, 10)
    reader, writer = await asyncio.open_connection(sock=connection, limit=MAX_LINE)
    with contextlib.closing(writer), contextlib.suppress(TimeoutError):
      async with asyncio.timeout(end - time.monotonic()):
        writer.write(_line(hello))
        async for line in reader:
          answer = _parsed(line)
          if 'met' in answer or 'error' in answer:
            return answer, ''
        return answer, 'connection closed'
  except ValueError:
    return answer, 'something else answers there'
  except OSError as error:
    return answer, error.strerror or str(error)
  return answer, ''


class _Meeting:
  """Process 0's end of the meeting."""

  def __init__(self, count: int, patience: float):
    self._count, self._patience, self._wrong = count, patience, ''
    self._there: dict[asyncio.StreamWriter, dict[str, Any]] = {}

  async def hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Takes messages from a connection until it ends; it may come again, or it is nobody of ours."""
    # Up to Python 3.12 asyncio logs a traceback for a connection that is cancelled at the end.
    with contextlib.closing(writer), contextlib.suppress(OSError, ValueError, asyncio.CancelledError):
      try:
        async for line in reader:
          hello = _parsed(line)
          if not isinstance(hello.get('process'), int):
            return
          self._there[writer] = hello
      finally:
        self._there.pop(writer, None)

  async def answer(self) -> None:
    """Tells those who are there, again and again, once all are, something is wrong or time is up."""
    began = said = time.monotonic()
    while True:
      missing = sorted(set(range(self._count)) - {hello['process'] for hello in self._there.values()})
      # Kept: those it is wrong with leave as soon as they know.
      self._wrong = self._wrong or self._what_is_wrong()
      now = time.monotonic()
      if self._wrong:
        self._tell(error=self._wrong)
      elif not missing:
        self._tell(met=True)
      elif now > began + self._patience:
        who = f'{_missing(missing, self._count)} within {self._patience:.0f} s (--wait_for_processes)'
        self._tell(error=f'{who}: expected all to be started')
      elif now > said + SAY_EVERY:
        said = now
        logging.info('%s yet', _missing(missing, self._count))
        self._tell(missing=missing)
      await asyncio.sleep(0.05)

  def _what_is_wrong(self) -> str:
    seen: dict[int, dict[str, Any]] = {}
    for hello in self._there.values():
      index, count = hello['process'], hello.get('count')
      if count != self._count:
        return (
          f'process {index} on {hello.get("host")} has --num_processes={count}: expected {self._count} as on process 0'
        )
      if seen.get(index, hello).get('key') != hello.get('key'):
        hosts = ' and '.join(sorted({str(seen[index].get('host')), str(hello.get('host'))}))
        return f'process_id {index} is given twice (on {hosts}): expected each of 0 to {self._count - 1} once'
      seen[index] = hello
    return ''

  def _tell(self, **message: Any) -> None:
    for writer in self._there:
      writer.write(_line(message))


def _line(message: Mapping[str, Any]) -> bytes:
  return json.dumps(message).encode() + b'\n'


def _parsed(line: bytes) -> dict[str, Any]:
  """Raises ValueError for a line that is no JSON object."""
  message = json.loads(line)
  if not isinstance(message, dict):
    raise ValueError('no object')
  return message


def _missing(missing: list[int], count: int) -> str:
  shown = ', '.join(map(str, missing[:20])) + (f' and {len(missing) - 20} more' if len(missing) > 20 else '')
  return f'process{"es" if len(missing) > 1 else ""} {shown} of {count} did not come'
