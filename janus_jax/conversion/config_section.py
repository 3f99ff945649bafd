"""Reading a JSON config field by field, with errors that say which file, which field, and what was expected."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from janus_jax.data.pointers import check_content
from janus_jax.errors import InputError


def json_object(content: bytes, name: str) -> dict[str, Any]:
  """The JSON object that a file holds; InputError, which begins with `name`, where it is none."""
  check_content(content, name)
  try:
    value = json.loads(content.decode('utf-8-sig'))
  except (ValueError, RecursionError) as error:  # ValueError covers bad UTF-8 and bad JSON.
    raise InputError(f'{name}: not JSON ({error})') from None
  if not isinstance(value, dict):
    raise InputError(f'{name}: expected a JSON object, found {type(value).__name__}')
  return value


def read_json(path: str) -> dict[str, Any]:
  """Reads a JSON object from a file; InputError names the file where it is missing or none."""
  try:
    with open(path, 'rb') as file:
      return json_object(file.read(), path)
  except FileNotFoundError:
    raise InputError(f'{path}: no such file') from None


def written_section(config: Any, names: Mapping[str, str], fixed: Mapping[str, Any]) -> dict[str, Any]:
  """The object of a config file that `ConfigSection.fields` and `allow` read, sorted by name.

  Args:
    config: dataclass with our fields.
    names: our field -> its name in the file.
    fixed: fields of the file that do not depend on `config`.
  """
  values = {theirs: getattr(config, ours) for ours, theirs in names.items()}
  values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
  return dict(sorted({**fixed, **values}.items()))


@dataclasses.dataclass(frozen=True)
class ConfigSection:
  """One object of a config file, with its position in the file. A field that is null counts as absent.

  Attributes:
    values: the object.
    source: the file, for error messages.
    path: names of the fields that lead to the object ("vision_config.params"); empty for the whole file.
  """

  values: Mapping[str, Any]
  source: str
  path: str = ''

  def name(self, field: str) -> str:
    return f'{self.path}.{field}' if self.path else field

  def error(self, field: str, expected: str) -> InputError:
    """The error to raise when `field` is not what was expected."""
    value = self.values.get(field)
    found = 'missing' if value is None else repr(value)
    return InputError(f'{self.source}: {self.name(field)} is {found}: expected {expected}')

  def section(self, field: str) -> 'ConfigSection':
    """The object under `field`; empty where the file has none."""
    value = self.values.get(field)
    if value is not None and not isinstance(value, Mapping):
      raise self.error(field, 'an object')
    return ConfigSection(value or {}, self.source, self.name(field))

  def _value(self, field: str, default: Any, is_valid: Callable[[Any], bool], expected: str) -> Any:
    value = self.values.get(field)
    if value is None:
      return default
    if not is_valid(value):
      raise self.error(field, expected)
    return value

  def integer(self, field: str, default: int) -> int:
    """A whole number above 0."""
    return self._value(field, default, _is_count, 'a whole number above 0')

  def integers(self, field: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """A list of whole numbers above 0, not empty."""
    return tuple(self._value(field, default, _are_counts, 'a list of whole numbers above 0'))

  def number(self, field: str, default: float) -> float:
    """A number above 0."""
    return float(self._value(field, default, _is_positive, 'a number above 0'))

  def fields(self, names: Mapping[str, str], defaults: Any) -> dict[str, Any]:
    """Our fields: name -> value, of the same type as its default.

    Args:
      names: our field -> its name in the file.
      defaults: dataclass with the values of absent fields.
    """
    readers = {int: self.integer, float: self.number, tuple: self.integers}
    found = {}
    for ours, theirs in names.items():
      default = getattr(defaults, ours)
      found[ours] = readers[type(default)](theirs, default)
    return found

  def require(self, field: str, expected: Any, default: Any = None) -> None:
    """Raises InputError unless the field, or `default` where the field is absent, is `expected`."""
    value = self.values.get(field)
    if (default if value is None else value) != expected:
      raise self.error(field, repr(expected))

  def allow(self, fixed: Mapping[str, Any]) -> None:
    """Raises InputError unless each of these fields is absent or has this value."""
    for field, expected in fixed.items():
      self.require(field, expected, default=expected)

  def agreeing(self, **measured: tuple[int, str]) -> 'ConfigSection':
    """The same section with sizes that were read off tensors filled in.

    Args:
      **measured: field -> (size, name of the tensor that has it).

    Raises:
      InputError: the file states another size.
    """
    values = dict(self.values)
    for field, (size, tensor) in measured.items():
      if values.get(field) not in (None, size):
        raise self.error(field, f'{size}, which tensor {tensor} has')
      values[field] = size
    return dataclasses.replace(self, values=values)


def _is_positive(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _is_count(value: Any) -> bool:
  return isinstance(value, int) and _is_positive(value)


def _are_counts(value: Any) -> bool:
  return isinstance(value, list | tuple) and len(value) > 0 and all(map(_is_count, value))
