"""The peer in a process of its own, which waits while it is not its turn.

In one process the threads of torch and of XLA wait for work by spinning and take each other's cores: on two cores both
took half again as long.
"""

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

from janus_jax.errors import InputError


class PeerProcess:
  """An object that lives elsewhere; its methods are called by name."""

  def __init__(self, make: Callable[[], Any]):
    """
    Args:
      make: makes the object, over there; can be pickled.
    """
    context = multiprocessing.get_context('spawn')
    self._ours, theirs = context.Pipe()
    self._process = context.Process(target=_serve, args=(theirs, make), daemon=True)
    before = os.environ.get('JAX_PLATFORMS')
    os.environ['JAX_PLATFORMS'] = 'cpu'  # It only prepares arrays with jax.
    try:
      self._process.start()
    finally:
      if before is None:
        del os.environ['JAX_PLATFORMS']
      else:
        os.environ['JAX_PLATFORMS'] = before
    theirs.close()
    self._answer()

  def call(self, method: str, *arguments: Any) -> Any:
    """Waits for what the method returns.

    Raises:
      InputError: what it raised, or that the process died.
    """
    self._ours.send((method, arguments))
    return self._answer()

  def close(self) -> None:
    """Ends it; its memory is free afterwards."""
    self._ours.close()
    self._process.join()

  def _answer(self) -> Any:
    try:
      failed, value = self._ours.recv()
    except EOFError:
      self._process.join()
      raise InputError(f'the peer died with exit code {self._process.exitcode}: out of memory?') from None
    if failed:
      raise InputError(value)
    return value


def _serve(connection: Any, make: Callable[[], Any]) -> None:
  try:
    made = make()
    connection.send((False, None))
    while True:
      method, arguments = connection.recv()
      connection.send((False, getattr(made, method)(*arguments)))
  except EOFError:
    return
  except InputError as error:
    connection.send((True, str(error)))
  except Exception as error:
    connection.send((True, f'the peer: {type(error).__name__}: {" ".join(str(error).split())[:500]}'))
