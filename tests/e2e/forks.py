"""Runs the verbs in forks of one process that has everything imported, which would be a fifth of the suite's time.

`start` and `run` are what `subprocess.Popen` and `subprocess.run` are for `python -m janus_jax.VERB`.
"""

import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import pathlib
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO

ROOT = pathlib.Path(__file__).parent.parent.parent
# Variables that Python, and JAX when it is imported, have read before the fork.
READ_EARLY = ('JAX_', 'PYTHON')
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2).


class Process:
  """A verb that runs; the server is its parent."""

  def __init__(self, server: 'Server', pid: int):
    self.pid, self.returncode = pid, None
    self._server, self._ended = server, os.pidfd_open(pid)

  def poll(self) -> int | None:
    return self._reap() if self.returncode is None and self._has_ended(0) else self.returncode

  def wait(self, timeout: float | None = None) -> int:
    if self.returncode is None:
      if not self._has_ended(timeout):
        raise subprocess.TimeoutExpired(str(self.pid), timeout)
      self._reap()
    return self.returncode

  def send_signal(self, number: int) -> None:
    if self.poll() is None:
      os.kill(self.pid, number)

  def kill(self) -> None:
    self.send_signal(signal.SIGKILL)

  def _has_ended(self, timeout: float | None) -> bool:
    return bool(select.select([self._ended], [], [], timeout)[0])

  def _reap(self) -> int:
    self.returncode = self._server.ask({'reap': self.pid})
    os.close(self._ended)
    return self.returncode


class Server:
  """The process that forks."""

  def __init__(self) -> None:
    self._socket, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
      path = os.pathsep.join([str(ROOT), str(ROOT / 'tests')])
      command = [sys.executable, '-c', f'from e2e import forks; forks.serve({its.fileno()})']
      environment = {**os.environ, 'PYTHONPATH': path}
      subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=[its.fileno()], stdin=subprocess.DEVNULL)
    self.early = _read_early(os.environ)

  def ask(self, request: Mapping, files: Sequence[int] = ()) -> int:
    socket.send_fds(self._socket, [json.dumps(request).encode()], files)
    return json.loads(self._socket.recv(100))


def start(
  command: Sequence[str],
  cwd: str | os.PathLike | None = None,
  env: Mapping[str, str] | None = None,
  stdin: IO | None = None,
  stdout: IO | None = None,
  stderr: IO | int | None = None,
) -> Process:
  """Starts `[sys.executable, '-m', module, *arguments]`; streams are files, stdin by default empty."""
  python, dash, module, *arguments = map(str, command)
  assert (python, dash) == (sys.executable, '-m'), command
  environment = dict(os.environ if env is None else env)
  server = _server()
  assert _read_early(environment) == server.early, 'the server was started with other variables'
  with open(os.devnull, 'rb') as nothing:
    outputs = stdout or sys.__stdout__, stderr or sys.__stderr__
    outputs = outputs[0], outputs[0] if stderr == subprocess.STDOUT else outputs[1]
    files = [stream.fileno() for stream in (stdin or nothing, *outputs)]
    request = {'module': module, 'arguments': arguments, 'cwd': str(cwd or os.getcwd()), 'environment': environment}
    return Process(server, server.ask(request, files))


def run(
  command: Sequence[str],
  cwd: str | os.PathLike | None = None,
  env: Mapping[str, str] | None = None,
  timeout: float | None = None,
) -> subprocess.CompletedProcess:
  """Runs `[sys.executable, '-m', module, *arguments]` to its end; what it prints comes back as text."""
  with tempfile.TemporaryFile('w+') as stdout, tempfile.TemporaryFile('w+') as stderr:
    process = start(command, cwd, env, stdout=stdout, stderr=stderr)
    try:
      code = process.wait(timeout)
    finally:
      process.kill()
    texts = [stream.seek(0) or stream.read() for stream in (stdout, stderr)]
  return subprocess.CompletedProcess(command, code, *texts)


@functools.cache
def _server() -> Server:
  return Server()


def _read_early(environment: Mapping[str, str]) -> dict[str, str]:
  return {name: value for name, value in environment.items() if name.startswith(READ_EARLY)}


def serve(number: int) -> None:
  """Forks for each request and answers its process id; or waits for one that has ended, and answers its exit code."""
  _import_everything()
  with socket.socket(fileno=number) as connection:
    while True:
      message, files, _, _ = socket.recv_fds(connection, 1 << 20, 3)
      if not message:
        return
      request = json.loads(message)
      if 'reap' in request:
        answer = os.waitstatus_to_exitcode(os.waitpid(request['reap'], 0)[1])
      elif not (answer := os.fork()):
        break
      connection.send(json.dumps(answer).encode())
      for file in files:
        os.close(file)
  _become(request, files)


def _import_everything() -> None:
  """All that the verbs import, which leaves no thread of Python's and no backend of JAX's behind."""
  import janus_jax

  for package in pkgutil.iter_modules(janus_jax.__path__):
    if package.ispkg:
      name = f'janus_jax.{package.name}'
      for module in pkgutil.walk_packages(importlib.import_module(name).__path__, f'{name}.'):
        with contextlib.suppress(ModuleNotFoundError):  # A plug-in's harness may not be installed.
          importlib.import_module(module.name)
  for name in ('sklearn.datasets', 'sklearn.svm', 'tqdm'):
    importlib.import_module(name)
  gc.freeze()


def _become(request: Mapping, files: Sequence[int]) -> None:
  """Runs the module as `python -m` does, in this process."""
  ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
  for stream, file in enumerate(files):
    os.dup2(file, stream)
    os.close(file)
  os.chdir(request['cwd'])
  os.environ.clear()
  os.environ.update(request['environment'])
  sys.path[:2] = [request['cwd']]
  sys.argv = [request['module'], *request['arguments']]
  for name in ('stdin', 'stdout', 'stderr'):
    with contextlib.suppress(AttributeError):
      getattr(sys, name).reconfigure(line_buffering=name == 'stdout' and os.isatty(1))
  runpy.run_module(request['module'], run_name='__main__', alter_sys=True)
