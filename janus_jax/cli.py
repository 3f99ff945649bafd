"""What every entry point shares: exit codes, one-line errors, progress on stderr."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import tqdm
from absl import app, flags

from janus_jax.errors import InputError

INPUT_ERROR, USAGE_ERROR, INTERRUPTED = 1, 2, 130


def _quit(*_: Any) -> None:
  os.write(2, b'interrupted\n')
  os._exit(INTERRUPTED)


def _interrupt_again(unraisable: Any) -> None:
  """Ctrl-C that comes in a callback of the garbage collector, of which jax has one, would be lost there."""
  if issubclass(unraisable.exc_type, KeyboardInterrupt):
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
  else:
    sys.__unraisablehook__(unraisable)


def _on_interrupt(handler: Callable[..., Any]) -> None:
  if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # As of jobs in the background.
    signal.signal(signal.SIGINT, handler)


# While a command's modules load there is nothing to clean up, and an exception may be lost in one of them.
_spec = getattr(sys.modules['__main__'], '__spec__', None)
if _spec and _spec.name.startswith('janus_jax.'):
  _on_interrupt(_quit)


def parse_shard(text: str) -> tuple[int, int]:
  """Of a flag --shard, '2/8' -> (2, 8): the third of eight hosts.

  Raises:
    InputError: not of that form, or no such host.
  """
  index, _, count = text.partition('/')
  if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
    raise InputError(f'shard is {text!r}: expected i/n, the hosts being 0/n to n-1/n')
  return int(index), int(count)


def _parse(argv: list[str]) -> list[str]:
  try:
    positional = flags.FLAGS(argv)[1:]
  except (flags.Error, TypeError, ValueError) as error:
    _fail(str(error), USAGE_ERROR)
  except (AttributeError, KeyError) as error:  # What ml_collections raises for `--config.FIELD=...`.
    _fail(f'unknown config field: {error}', USAGE_ERROR)
  except OSError as error:
    _fail(f'error: {_describe(error)}', INPUT_ERROR)
  if positional:
    _fail(f'unexpected argument {positional[0]!r}: every argument is a --flag', USAGE_ERROR)
  return argv


def _fail(message: str, code: int) -> None:
  print(' '.join(message.split()), file=sys.stderr)
  sys.exit(code)


def _describe(error: OSError) -> str:
  names = [str(name) for name in (error.filename, error.filename2) if name]
  return f'{" -> ".join(names)}: {error.strerror}' if names and error.strerror else str(error)


def run(main: Callable[[], None]) -> None:
  """Parses flags and calls `main`. Wrong usage (flags.Error) exits with 2, wrong input (InputError, OSError) with 1,
  each with one line on stderr.
  """

  def call(argv: list[str]) -> None:
    del argv
    _on_interrupt(signal.default_int_handler)
    sys.unraisablehook = _interrupt_again
    # Here and not before: app.run has installed absl's own handler and level by now.
    logging.basicConfig(level=logging.INFO, format='%(message)s', stream=sys.stderr, force=True)
    # They narrate every step at INFO (Orbax through absl); errors of theirs come as exceptions anyway.
    for name in ('absl', 'fsspec', 'jax'):
      logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger('gcsfs').setLevel(logging.CRITICAL)  # It logs the traceback of what it raises.
    try:
      main()
    except flags.Error as error:
      _fail(str(error), USAGE_ERROR)
    except InputError as error:
      _fail(f'error: {error}', INPUT_ERROR)
    except OSError as error:
      _fail(f'error: {_describe(error)}', INPUT_ERROR)
    except KeyboardInterrupt:
      _on_interrupt(lambda *_: os._exit(INTERRUPTED))  # Threads may take a while to end.
      _fail('interrupted', INTERRUPTED)

  app.run(call, flags_parser=_parse)


def byte_progress(total: int, description: str) -> tqdm.tqdm:
  """A progress bar over bytes; `.update(n)`."""
  return tqdm.tqdm(total=total, desc=description, unit='B', unit_scale=True, unit_divisor=1000, dynamic_ncols=True)
