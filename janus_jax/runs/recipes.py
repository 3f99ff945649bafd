"""Recipes: Python files whose `get_config` returns a config; messages about those that do not."""

import difflib
import importlib.machinery
import importlib.util
import inspect
import linecache
import os
import sys
import traceback
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from janus_jax.errors import InputError

MODULE = 'recipe'


def read_recipe(path: str) -> ConfigDict:
  """Reads the config that `get_config()` of a file returns; of FILE:ARGUMENT, `get_config(ARGUMENT)`.

  Raises:
    InputError: no such file, one that fails (with its line, where that is known), or that returns no config.
  """
  path, *arguments = os.path.expanduser(path).split(':', 1)
  if not os.path.isfile(path):
    raise InputError(f'{path or "config is empty"}: no such file: expected a config file, such as configs/tiny.py')
  try:
    loader = importlib.machinery.SourceFileLoader(MODULE, path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(MODULE, loader))
    sys.modules[MODULE] = module  # Where dataclasses of the file look for their annotations.
    loader.exec_module(module)
    get_config = getattr(module, 'get_config', None)
    if not callable(get_config):
      raise InputError('no function get_config: expected one that returns a config')
    _check_arguments(get_config, arguments)
    config = get_config(*arguments)
    if not isinstance(config, ConfigDict):
      raise InputError(f'get_config returns {type(config).__name__}: expected a ConfigDict')
  except InputError as error:
    raise InputError(f'{path}: {error}') from None
  except Exception as error:  # A file of a person's own may raise anything.
    line, text = _line_of(path, error), ' '.join(str(error.msg if isinstance(error, SyntaxError) else error).split())
    if isinstance(error, AttributeError | KeyError) and line:  # Of ConfigDict they name the last part of a field alone.
      text += f', in {linecache.getline(path, line).strip()}'
    raise InputError(f'{path}{f", line {line}" if line else ""}: {type(error).__name__}: {text}') from error
  return config


def _check_arguments(get_config: Any, arguments: list[str]) -> None:
  try:
    inspect.signature(get_config).bind(*arguments)
  except TypeError as error:
    given = f'the argument {arguments[0]!r}' if arguments else 'no argument'
    raise InputError(f'get_config cannot take {given} ({error}): expected FILE or FILE:ARGUMENT as it says') from None


def _line_of(path: str, error: Exception) -> int | None:
  """The line of the file at which it failed; None where the file has nothing to do with it."""
  if isinstance(error, SyntaxError) and error.filename == path:
    return error.lineno
  lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
  return lines[-1] if lines else None


def unknown_field(config: ConfigDict, name: str) -> str | None:
  """Describes a dotted name of a field that the config lacks; None where it has it."""
  node, path = config, ''
  for part in name.split('.'):
    if not isinstance(node, ConfigDict):
      return f'config.{name} is unknown: {path} is a value without fields'
    if part not in node:
      known = list(flat_fields(config.to_dict()))
      # 'stages.stage2.steps' means another stage's steps before it means another field.
      alike = [field for field in known if field.split('.')[-1] == name.split('.')[-1]]
      close = difflib.get_close_matches(name, alike, 1, cutoff=0) or difflib.get_close_matches(name, known, 1)
      here = f'{path or "fields"} here: {", ".join(node) or "none"}'
      meant = f'did you mean config.{close[0]}?' if close else ''
      return f'config.{name} is unknown: {"; ".join(filter(None, [here if path or not close else "", meant]))}'
    node, path = node[part], f'{path}.{part}' if path else part
  return None


def flat_fields(values: Mapping[str, Any], before: str = '') -> dict[str, Any]:
  """Dotted name -> value of each field of nested ones; an empty mapping is a value."""
  found = {}
  for key, value in values.items():
    name = f'{before}{key}'
    found |= flat_fields(value, f'{name}.') if isinstance(value, Mapping) and value else {name: value}
  return found
