"""Reading a JSON config field by field, with errors that say which file, which field, and what was expected."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from janus_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class ConfigSection:
  """One object of a config file, which knows where it stands. A field that is null counts as absent.

  Attributes:
    values: the object.
    source: the file, for error messages.
    path: where in the file the object stands ("vision_config.params"); empty for the whole file.
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

  def integer(self, field: str, default: int | None = None) -> int:
    """A whole number above 0. Without `default`, an absent field is an error."""
    value = self.values.get(field)
    if value is None and default is not None:
      return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
      raise self.error(field, 'a whole number above 0')
    return value

  def integers(self, field: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """A list of whole numbers above 0, not empty."""
    value = self.values.get(field)
    if value is None:
      return default
    items = value if isinstance(value, (list, tuple)) else []
    if not items or any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in items):
      raise self.error(field, 'a list of whole numbers above 0')
    return tuple(items)

  def number(self, field: str, default: float) -> float:
    """A number above 0."""
    value = self.values.get(field)
    if value is None:
      return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
      raise self.error(field, 'a number above 0')
    return float(value)

  def require(self, field: str, expected: Any, default: Any = None) -> None:
    """Raises InputError unless the field, or `default` where the field is absent, is `expected`."""
    value = self.values.get(field)
    if (default if value is None else value) != expected:
      raise self.error(field, repr(expected))

  def agreeing(self, **measured: tuple[int, str]) -> 'ConfigSection':
    """The same section with sizes that were read off tensors filled in.

    Args:
      **measured: field -> (size, name of the tensor that has it).

    Raises:
      InputError: the file states another size.
    """
    for field, (size, tensor) in measured.items():
      stated = self.values.get(field)
      if stated is not None and stated != size:
        raise InputError(f'{self.source}: {self.name(field)} is {stated!r}: expected {size}, which tensor {tensor} has')
    sizes = {field: size for field, (size, _) in measured.items()}
    return dataclasses.replace(self, values={**self.values, **sizes})
