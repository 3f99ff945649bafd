"""Meeting of the processes of a run before jax's own, which ends in C++ where one is missing.

Process 0 listens where jax will afterwards. Every process, 0 too, connects there, says which it is, and stays connected
until process 0 answers: all are there, or what is wrong. Messages are lines of JSON.
"""

import contextlib
import errno
import json
import logging
import re
import select
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
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
  address, end = parse_address(coordinator), time.monotonic() + patience
  hello = {'process': index, 'count': count, 'host': socket.gethostname(), 'key': uuid.uuid4().hex}
  with contextlib.ExitStack() as stack:
    meeting, why = None, 'no answer'
    while True:
      if not index and not meeting and (server := _listen(address[1], count)):
        meeting = stack.enter_context(_Meeting(server, count, patience))
      answer, problem = _ask(address, hello, end, meeting)
      why = problem or why
      if answer.get('met'):
        return
      if 'error' in answer:
        if meeting:
          meeting.tell_latecomers()
        raise InputError(answer['error'])
      if time.monotonic() > end + (0 if meeting else GRACE):
        missing = f'; {_missing(answer["missing"], count)}' if answer.get('missing') else ''
        raise InputError(
          f'process {index} of {count} did not reach process 0 at {coordinator} within {patience:.0f} s ({why})'
          f'{missing}: expected all processes of the run to be started, with the same --coordinator_address'
        )
      time.sleep(RETRY)


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


def _ask(
  address: tuple[str, int], hello: Mapping[str, Any], end: float, meeting: '_Meeting | None'
) -> tuple[dict[str, Any], str]:
  """The last answer of process 0 to one connection, and why that ended, if not for want of time."""
  answer: dict[str, Any] = {}
  try:
    with socket.create_connection(address, timeout=10) as connection:
      connection.sendall(_line(hello))
      connection.settimeout(0.1 if meeting else 1)
      lines = _Lines(connection)
      while time.monotonic() <= end + GRACE:
        if meeting:
          meeting.serve()
        for line in lines.read():
          answer = line
          if 'met' in answer or 'error' in answer:
            return answer, ''
  except ValueError:
    return answer, 'something else answers there'
  except OSError as error:
    return answer, error.strerror or str(error)
  return answer, ''


class _Lines:
  """JSON objects that arrive at a connection, one a line."""

  def __init__(self, connection: socket.socket):
    self._connection, self._rest = connection, b''

  def read(self) -> Iterator[dict[str, Any]]:
    """Objects that have arrived. Raises ValueError for another line, OSError where the connection has ended."""
    try:
      content = self._connection.recv(65536)
    except TimeoutError:
      return
    if not content:
      raise OSError('connection closed')
    *lines, self._rest = (self._rest + content).split(b'\n')
    if len(self._rest) > MAX_LINE:
      raise ValueError('no line')
    for line in lines:
      value = json.loads(line)
      if not isinstance(value, dict):
        raise ValueError('no object')
      yield value


class _Meeting:
  """Process 0's end of the meeting. It has no thread: process 0 serves between its own reads."""

  def __init__(self, server: socket.socket, count: int, patience: float):
    self._server, self._count, self._patience = server, count, patience
    self._began = self._said = time.monotonic()
    self._lines: dict[socket.socket, _Lines] = {}
    self._there: dict[socket.socket, dict[str, Any]] = {}
    self._wrong = ''
    server.setblocking(False)

  def __enter__(self) -> '_Meeting':
    return self

  def __exit__(self, *_: Any) -> None:
    for connection in (*self._lines, self._server):
      connection.close()

  def serve(self) -> None:
    """Takes messages that have arrived, and answers once all are there, something is wrong or time is up."""
    for ready in select.select([self._server, *self._lines], [], [], 0.05)[0]:
      if ready is self._server:
        self._accept()
      else:
        self._hear(ready)
    missing = sorted(set(range(self._count)) - {hello['process'] for hello in self._there.values()})
    now = time.monotonic()
    # Kept: those it is wrong with leave as soon as they know.
    self._wrong = self._wrong or self._what_is_wrong()
    if self._wrong:
      self._tell(error=self._wrong)
    elif not missing:
      self._tell(met=True)
    elif now > self._began + self._patience:
      self._tell(
        error=f'{_missing(missing, self._count)} within {self._patience:.0f} s (--wait_for_processes): expected all '
        'to be started'
      )
    elif now > self._said + SAY_EVERY:
      self._said = now
      logging.info('%s yet', _missing(missing, self._count))
      self._tell(missing=missing)

  def tell_latecomers(self) -> None:
    """Answers for a while those who come after something was wrong; they would wait for long."""
    end = time.monotonic() + GRACE
    while time.monotonic() < end:
      self.serve()

  def _accept(self) -> None:
    with contextlib.suppress(OSError):
      connection, _ = self._server.accept()
      connection.setblocking(False)
      self._lines[connection] = _Lines(connection)

  def _hear(self, connection: socket.socket) -> None:
    try:
      for hello in self._lines[connection].read():
        if not isinstance(hello.get('process'), int):
          raise ValueError('no process')
        self._there[connection] = hello
    except BlockingIOError:
      return
    except (OSError, ValueError):  # It has ended and may come again, or it is nobody of ours.
      del self._lines[connection]
      self._there.pop(connection, None)
      connection.close()

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
    for connection in self._there:
      with contextlib.suppress(OSError):
        connection.sendall(_line(message))


def _line(message: Mapping[str, Any]) -> bytes:
  return json.dumps(message).encode() + b'\n'


def _missing(missing: list[int], count: int) -> str:
  shown = ', '.join(map(str, missing[:20])) + (f' and {len(missing) - 20} more' if len(missing) > 20 else '')
  return f'process{"es" if len(missing) > 1 else ""} {shown} of {count} did not come'
