"""Shared parts of all entry points: flags, exit codes, one-line errors, progress on stderr."""

import logging
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from janus_jax.errors import InputError
from janus_jax.runs.recipes import read_recipe, unknown_field
from janus_jax.runs.value_checks import SEED, Integer, Number, check_value

flags.disclaim_key_flags()  # --help lists a flag as that of the verb which has it defined here.

INPUT_ERROR, USAGE_ERROR, INTERRUPTED = 1, 2, 130
# Checks of the values of flags for numbers, by name: of those defined, and of the fields of settings of requests.
CHECKS: dict[str, Integer | Number] = {}
SETTING_CHECKS: Mapping[str, Integer | Number] = {
  'num_images': Integer(1),
  'cfg_weight': Number(),
  'max_new_tokens': Integer(1),
  'tiles': Integer(1, 100),
  'temperature': Number(),
  'top_k': Integer(),
  'top_p': Number(0, 1, above=True),
  'seed': SEED,
  'batch_size': Integer(1),
}


def quit_at_once(*_: Any) -> None:
  """Ends an interrupted process without waiting for its threads."""
  os.write(2, b'interrupted\n')
  os._exit(INTERRUPTED)


def _interrupt_again(unraisable: Any) -> None:
  """Ctrl-C that comes in a callback of the garbage collector, of which jax has one, would be lost there."""
  if issubclass(unraisable.exc_type, KeyboardInterrupt):
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
  else:
    sys.__unraisablehook__(unraisable)


def _on_interrupt(handler: Callable[..., Any]) -> None:
  if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # As it is for jobs in the background.
    signal.signal(signal.SIGINT, handler)


# While a command's modules load there is nothing to clean up, and an exception may be lost in one of them.
_spec = getattr(sys.modules['__main__'], '__spec__', None)
if _spec and _spec.name.startswith('janus_jax.'):
  _on_interrupt(quit_at_once)


def parse_shard(text: str) -> tuple[int, int]:
  """The value of a flag --shard, '2/8' -> (2, 8): the third of eight hosts. Raises InputError for any other form."""
  index, _, count = text.partition('/')
  if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
    raise InputError(f'shard is {text!r}: expected i/n, the hosts being 0/n to n-1/n')
  return int(index), int(count)


class _PathParser(flags.ArgumentParser):
  """Paths, in which a leading ~ is the home directory."""

  def __init__(self, may_be_empty: bool):
    self._may_be_empty = may_be_empty

  def parse(self, argument: str) -> str:
    if not argument and not self._may_be_empty:
      raise ValueError('expected a path')
    return os.path.expanduser(argument)


class _ConfigError(Exception):
  """A config file is wrong. No ValueError: absl would take it for a wrong flag."""


class _ConfigParser(flags.ArgumentParser):
  """Reads a config file, and keeps what it read: a flag has no value yet while its fields are looked up."""

  config: ConfigDict | None = None

  def parse(self, path: str) -> ConfigDict:
    from janus_jax.runs.config_checks import set_floats  # Commands without a recipe need none of what it imports.

    try:
      config = read_recipe(path)
      set_floats(config)
      self.config = config.lock()
    except InputError as error:
      raise _ConfigError(str(error)) from None
    return self.config


def define_path(name: str, default: str | None, help: str, required: bool = False) -> flags.FlagHolder[str]:
  """Defines a flag for a path."""
  return flags.DEFINE(_PathParser(not required), name, default, help, required=required)


def define_paths(name: str, help: str) -> flags.FlagHolder[list[str]]:
  """Defines a flag for a path that may be given several times."""
  return flags.DEFINE_multi(_PathParser(False), flags.ArgumentSerializer(), name, [], help)


def define_config(help: str = 'Recipe, a file of configs/.') -> flags.FlagHolder[ConfigDict]:
  """Defines the required flag --config for a config file, and with it --config.FIELD for each field of it."""
  holder = config_flags.DEFINE_config_file('config', None, help, lock_config=True)
  flags.FLAGS['config'].parser = _ConfigParser()
  flags.mark_flag_as_required('config')
  return holder


def define_number(name: str, default: float | None, help: str, check: Integer | Number) -> flags.FlagHolder:
  """Defines a flag for a number, which is checked before a command begins."""
  define = flags.DEFINE_integer if isinstance(check, Integer) else flags.DEFINE_float
  CHECKS[name] = check
  return define(name, default, help)


def define_model() -> tuple[flags.FlagHolder, flags.FlagHolder, flags.FlagHolder]:
  """Defines --checkpoint, --dtype and --mesh, for `runs.loading.load` (`sharding.mesh.parse_mesh`)."""
  from janus_jax.conversion.export import DTYPES

  return (
    define_checkpoint(),
    flags.DEFINE_enum('dtype', 'bfloat16', list(DTYPES), 'What to compute in.'),
    flags.DEFINE_string('mesh', None, 'Spread the parameters over devices, e.g. tensor=2,fsdp=-1.'),
  )


def define_checkpoint() -> flags.FlagHolder[str]:
  """Defines the required flag --checkpoint."""
  return define_path('checkpoint', None, 'Checkpoint of any layout, or a training workdir.', required=True)


def define_settings(kind: type, *names: str, stored: Mapping[str, float] | None = None) -> tuple[flags.FlagHolder, ...]:
  """Defines flags for fields of a dataclass of settings (`inference.requests`), by its defaults and descriptions.

  Args:
    kind: the dataclass.
    names: its fields.
    stored: values by name where a training workdir says none (`runs.workdirs.read_sampling`). A flag that is not given
      is None, for what the workdir says.
  """
  from janus_jax.inference.cache import CACHE_DTYPES
  from janus_jax.inference.decoder import WEIGHTS
  from janus_jax.runs.config_help import field_descriptions

  choices = {'weights': WEIGHTS, 'cache_dtype': CACHE_DTYPES}
  descriptions, found = field_descriptions(kind), []
  for name in names:
    default, help = getattr(kind, name), descriptions[name][0].upper() + descriptions[name][1:]
    if stored is not None:
      default, help = None, f'{help} Default: as a workdir says, else {stored[name]:g}.'
    if name in choices:
      found.append(flags.DEFINE_enum(name, default, list(choices[name]), help))
    elif name == 'window':
      found.append(flags.DEFINE(_NumberOrAuto(), name, default, help))
    elif name == 'aspect':
      found.append(flags.DEFINE_string(name, default, help))
    else:
      found.append(define_number(name, default, help, SETTING_CHECKS[name]))
  return tuple(found)


class _NumberOrAuto(flags.IntegerParser):
  """'auto' stays as it is."""

  def parse(self, argument: str | int) -> int | str:
    return argument if argument == 'auto' else super().parse(argument)

  def flag_type(self) -> str:
    return 'int or auto'


def values(*holders: flags.FlagHolder) -> dict[str, Any]:
  """Values of flags by name, without those that are None."""
  return {holder.name: holder.value for holder in holders if holder.value is not None}


def check_flags() -> None:
  """Raises InputError for a flag whose value its check refuses, and for results that are to go into a bucket."""
  for name in ('out', 'output'):
    if name in flags.FLAGS and '://' in (flags.FLAGS[name].value or ''):
      raise InputError(f'{flags.FLAGS[name].value}: expected a local path, which can be copied to a bucket afterwards')
  for name, check in CHECKS.items():
    if flags.FLAGS[name].value is not None:
      check_value(name, flags.FLAGS[name].value, check)


def parse(argv: list[str]) -> list[str]:
  """Sets all flags from a command line; ends the process with help, or with one line on stderr where it is wrong."""
  try:
    try:
      positional = flags.FLAGS(argv)[1:]
    except SystemExit:  # absl has printed help that was asked for, and ends with 1.
      _print_fields(argv)
      sys.exit()
  except (_ConfigError, OSError) as error:
    _fail_input(error)
  except (flags.Error, AttributeError, LookupError, TypeError, ValueError) as error:
    # Of fields that a config does not have, ml_collections raises various.
    _fail(_wrong_field(argv) or _described(str(error)), USAGE_ERROR)
  if positional:
    _fail(f'unexpected argument {positional[0]!r}: every argument is a --flag', USAGE_ERROR)
  return argv


def _print_fields(argv: list[str]) -> None:
  """Prints below the help of a command the fields of the recipe that a command line names, for `--config.FIELD`."""
  if 'config' not in flags.FLAGS:
    return
  parser = flags.FLAGS['config'].parser
  # absl stops at --help: a recipe that is named after it has not been read.
  path = next((found.group(1) for found in (re.match(r'--?config=(.+)', argument) for argument in argv) if found), None)
  config = parser.config or (path and parser.parse(path))
  from janus_jax.runs.config_help import describe_fields, every_field

  if config:
    said, fields = 'of the recipe, with its values', config.to_dict()
  else:
    said, fields = 'of training; --config=FILE --help lists the fields of a recipe', every_field()
  print(f'\nFields {said}:')
  print(describe_fields(fields, shutil.get_terminal_size().columns))


def _wrong_field(argv: list[str]) -> str | None:
  """Describes the first `--config.FIELD` of a command line that names no field of its config."""
  config = flags.FLAGS['config'].parser.config if 'config' in flags.FLAGS else None
  if config is None:
    return None
  names = [match.group(1) for match in (re.match(r'--?(?:no)?config\.([^=]*)', argument) for argument in argv) if match]
  return next(filter(None, (unknown_field(config, name) for name in names)), None)


def _described(message: str) -> str:
  """A message of absl about a flag, in a person's words."""
  if missing := re.findall(r'Flag --(\S+) must have a value other than None', message):
    return '; '.join(f'--{name} is missing: expected --{name}=VALUE ({flags.FLAGS[name].help})' for name in missing)
  wrong = re.match(r'flag --([\w.]+)=(.*?): ', message, re.DOTALL)
  if wrong and wrong.group(1) in flags.FLAGS:
    kind = flags.FLAGS[wrong.group(1)].parser.flag_type()
    expected = {'int': 'an integer', 'float': 'a number', 'bool': 'true or false'}.get(kind)
    if expected:
      return f'--{wrong.group(1)} is {wrong.group(2)!r}: expected {expected}'
  return message


def _fail(message: str, code: int) -> None:
  print(' '.join(message.split()), file=sys.stderr)
  sys.exit(code)


def _fail_input(error: Exception) -> None:
  if isinstance(error, OSError) and error.filename and error.strerror:
    names = [str(name) for name in (error.filename, error.filename2) if name]
    error = f'{" -> ".join(names)}: {error.strerror}'
  _fail(f'error: {error}', INPUT_ERROR)


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
    for name in ('absl', 'fsspec', 'jax', 'httpx', 'httpx2'):
      logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger('gcsfs').setLevel(logging.CRITICAL)  # It logs the traceback of what it raises.
    try:
      check_flags()
      main()
    except flags.Error as error:
      _fail(str(error), USAGE_ERROR)
    except (InputError, OSError) as error:
      _fail_input(error)
    except KeyboardInterrupt:
      _on_interrupt(lambda *_: os._exit(INTERRUPTED))  # Threads may take a while to end.
      _fail('interrupted', INTERRUPTED)

  app.run(call, flags_parser=parse)
