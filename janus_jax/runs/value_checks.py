"""What a value may be: kinds of checks, each of which says what it expected of a value that it refuses."""

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from janus_jax.errors import InputError

# Counts beyond this overflow somewhere on their way to a device.
LARGEST = 2**31 - 1
MENTIONED = 10**5  # Larger limits are only named to who exceeds them.
HUGE = 1e18  # So do numbers, in float32.
SHOWN = 80  # Characters of a refused value.


class Check(Protocol):
  """What one value may be."""

  def expected(self, value: Any) -> str | None:
    """What was expected in place of the value; None if it may be so."""


@dataclasses.dataclass(frozen=True)
class Integer:
  """An integer from `low` to `high`, or one of `others`."""

  low: int = 0
  high: int = LARGEST
  others: tuple[int, ...] = ()

  def expected(self, value: Any) -> str | None:
    bounds = f'{self.low} or more' if self.high > MENTIONED else f'{self.low} to {self.high}'
    bounds = ' or '.join([bounds, *map(str, self.others)])
    if isinstance(value, bool) or not isinstance(value, int):
      return f'an integer, {bounds}'
    if value > self.high > MENTIONED:
      return f'at most {self.high}'
    return None if self.low <= value <= self.high or value in self.others else bounds


@dataclasses.dataclass(frozen=True)
class Number:
  """A finite number from `low` to `high`, without `low` where `above`, without `high` where `below`."""

  low: float = 0.0
  high: float = math.inf
  above: bool = False
  below: bool = False

  def expected(self, value: Any) -> str | None:
    low = f'above {self.low:g}' if self.above else f'{self.low:g}'
    if self.high == math.inf:
      expected = f'a number {low}' if self.above else f'a number, {low} or more'
    elif self.low == -math.inf:
      expected = 'a number'
    else:
      expected = f'a number {low if self.above else f"from {low}"} to {"below " if self.below else ""}{self.high:g}'
    if isinstance(value, bool) or not isinstance(value, int | float):
      return expected
    try:
      fits = math.isfinite(float(value)) and self.low <= value <= self.high
    except OverflowError:  # An integer beyond all floats.
      fits = False
    if fits and self.high == math.inf and abs(value) > HUGE:
      return f'at most {HUGE:g}'
    fits = fits and not (self.above and value == self.low) and not (self.below and value == self.high)
    return None if fits else expected


@dataclasses.dataclass(frozen=True)
class OneOf:
  """One of some texts."""

  values: tuple[str, ...]

  def expected(self, value: Any) -> str | None:
    names = ', '.join(name or "''" for name in self.values)
    return None if isinstance(value, str) and value in self.values else f'one of {names}'


SEED = Integer(0, 2**32 - 1)


class Bool:
  """True or False."""

  def expected(self, value: Any) -> str | None:
    return None if isinstance(value, bool) else 'True or False'


class Text:
  """Text in one line, which may be empty."""

  def expected(self, value: Any) -> str | None:
    return None if isinstance(value, str) and value.isprintable() else 'text'


class Names:
  """One or more texts, none empty."""

  def expected(self, value: Any) -> str | None:
    good = isinstance(value, list | tuple) and value and all(isinstance(name, str) and name for name in value)
    return None if good else 'a tuple of one or more names'


@dataclasses.dataclass(frozen=True)
class PerTask:
  """A number for each kind of example."""

  names: tuple[str, ...]
  check: Integer | Number
  zeros: bool = True

  def expected(self, value: Any) -> str | None:
    good = isinstance(value, list | tuple) and len(value) == len(self.names)
    good = good and not any(map(self.check.expected, value)) and (any(value) or not self.zeros)
    what = f'{":".join(self.names)}, each {self.check.expected(None)}'
    return None if good else f'{what}, not all 0' if self.zeros else what


class Entries:
  """Mappings by name."""

  def expected(self, value: Any) -> str | None:
    good = isinstance(value, Mapping) and all(isinstance(entry, Mapping) for entry in value.values())
    return None if good else 'entries: {name: {field: value}}'


class Factors:
  """Pairs of a regular expression and a factor of 0 or more."""

  def expected(self, value: Any) -> str | None:
    good = isinstance(value, list | tuple) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value)
    if good and all(isinstance(pattern, str) and not Number().expected(factor) for pattern, factor in value):
      broken = [pattern for pattern, _ in value if not _is_regex(pattern)]
      return f'regular expressions, which {broken[0]!r} is not' if broken else None
    return 'pairs of a regular expression and a factor of 0 or more'


def _is_regex(pattern: str) -> bool:
  try:
    re.compile(pattern)
  except re.error:
    return False
  return True


# Nested as what it checks; '*' stands for any name that is not there.
Table = Mapping[str, 'Check | Table']


def check_value(name: str, value: Any, check: Check) -> None:
  """Raises InputError, naming the value, where the check refuses it."""
  expected = check.expected(value)
  if expected:
    raise InputError(f'{name} is {_shown(value)}: expected {expected}')


def check_fields(values: Any, table: Table, path: str = '') -> None:
  """Checks all fields of a mapping, and of those in it, against a table.

  Args:
    values: may lack fields.
    table: what each may be.
    path: of the mapping, with a dot at the end.

  Raises:
    InputError: a field that the table does not have or refuses, by its dotted name.
  """
  if not isinstance(values, Mapping):
    raise InputError(f'{path[:-1]} is {_shown(values)}: expected fields: {", ".join(table)}')
  for name, value in values.items():
    check = table.get(name, table.get('*'))
    if check is None:
      raise InputError(f'{path}{name} is unknown: {suggestion(name, list(table))}')
    if isinstance(check, Mapping):
      check_fields(value, check, f'{path}{name}.')
    else:
      check_value(f'{path}{name}', value, check)


def suggestion(name: str, known: Sequence[str]) -> str:
  """'did you mean ...?' where a name is close to a known one, else all of those."""
  close = difflib.get_close_matches(name, known, 1)
  return f'did you mean {close[0]}?' if close else f'expected one of {", ".join(known)}'


def _shown(value: Any) -> str:
  text = ' '.join(repr(value).split())
  return text if len(text) <= SHOWN else f'{text[:SHOWN]}...'
