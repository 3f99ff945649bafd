"""Checks of values; each says what it expected in place of a value that it refuses."""

import dataclasses
import difflib
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from janus_jax.errors import InputError

# Integers and numbers (in float32) beyond these overflow somewhere on their way to a device.
LARGEST, HUGE = 2**31 - 1, 1e18
MENTIONED = 10**5  # Larger limits are named only where a value exceeds them.
SHOWN = 80  # Characters of a refused value.


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
    if self.low == -math.inf:
      expected = 'a number'
    elif self.high == math.inf:
      expected = f'a number {low}' if self.above else f'a number, {low} or more'
    else:
      expected = f'a number {low if self.above else f"from {low}"} to {"below " if self.below else ""}{self.high:g}'
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > sys.float_info.max:
      return expected  # Integers may exceed all floats.
    fits = self.low <= value <= self.high
    if fits and self.high == math.inf and abs(value) > HUGE:
      return f'at most {HUGE:g}'
    fits = fits and not (self.above and value == self.low) and not (self.below and value == self.high)
    return None if fits else expected


SEED = Integer(0, 2**32 - 1)


@dataclasses.dataclass(frozen=True)
class Fitting:
  """A value that `fits`; `what` describes one."""

  fits: Callable[[Any], Any]
  what: str

  def expected(self, value: Any) -> str | None:
    return None if self.fits(value) else self.what


def one_of(values: Sequence[str]) -> Fitting:
  names = ', '.join(name or "''" for name in values)
  return Fitting(lambda value: isinstance(value, str) and value in values, f'one of {names}')


def some_of(values: Sequence[str]) -> Fitting:
  """Any of the values in a tuple, which may be empty."""
  return Fitting(
    lambda value: isinstance(value, list | tuple) and all(isinstance(name, str) and name in values for name in value),
    f'a tuple of any of {", ".join(values)}',
  )


def _are_names(value: Any) -> bool:
  return isinstance(value, list | tuple) and all(isinstance(name, str) and name for name in value)


def _is_dicts(value: Any) -> bool:
  return isinstance(value, Mapping) and all(isinstance(entry, Mapping) for entry in value.values())


BOOL = Fitting(lambda value: isinstance(value, bool), 'True or False')
TEXT = Fitting(lambda value: isinstance(value, str) and value.isprintable(), 'text')  # A line, which may be empty.
NAMES = Fitting(lambda value: value and _are_names(value), 'a tuple of one or more names')
NAMES_OR_NONE = Fitting(_are_names, 'a tuple of names')
SIZES = Fitting(
  lambda value: isinstance(value, list | tuple) and all(type(size) is int and size > 0 for size in value),
  'a tuple of sizes in pixels',
)
DICTS = Fitting(_is_dicts, 'entries: {name: {field: value}}')


@dataclasses.dataclass(frozen=True)
class PerTask:
  """A number for each task."""

  names: tuple[str, ...]
  check: Integer | Number
  zeros: bool = True

  def expected(self, value: Any) -> str | None:
    good = isinstance(value, list | tuple) and len(value) == len(self.names)
    good = good and not any(map(self.check.expected, value)) and (any(value) or not self.zeros)
    what = f'{":".join(self.names)}, each {self.check.expected(None)}'
    return None if good else f'{what}, not all 0' if self.zeros else what


class Factors:
  """Pairs of a regular expression and a factor of 0 or more."""

  def expected(self, value: Any) -> str | None:
    good = isinstance(value, list | tuple) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value)
    if good and all(isinstance(pattern, str) and not Number().expected(factor) for pattern, factor in value):
      try:
        for pattern, _ in value:
          re.compile(pattern)
        return None
      except re.error:
        return f'regular expressions, which {pattern!r} is not'
    return 'pairs of a regular expression and a factor of 0 or more'


# Methods `expected` of checks describe the values that they accept; None if they accept the one at hand.
Check = Integer | Number | Fitting | PerTask | Factors
# Nested as the values that it checks; '*' stands for any other name.
Table = Mapping[str, 'Check | Table']


def check_value(name: str, value: Any, check: Check) -> None:
  """Raises InputError, naming the value, where the check refuses it."""
  expected = check.expected(value)
  if expected:
    raise InputError(f'{name} is {_shown(value)}: expected {expected}')


def check_fields(values: Any, table: Table, path: str = '') -> None:
  """Raises InputError for a field that a table does not have or refuses, by its dotted name, which `path` begins."""
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
