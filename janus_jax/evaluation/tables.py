"""Scores as text."""

from collections.abc import Mapping, Sequence
from typing import Any


def side_by_side(found: Sequence[Mapping[str, Any]]) -> str:
  """A table of metrics (lines) by rule (columns); names of nested metrics are joined by ' / '."""
  columns = [dict(_flat(scores['metrics'])) for scores in found]
  names = list(dict.fromkeys(name for column in columns for name in column))
  head = ['', *(scores['rule'] for scores in found)]
  lines = [[name, *(_number(column[name]) if name in column else '' for column in columns)] for name in names]
  widths = [max(map(len, cells)) for cells in zip(head, *lines)]
  return '\n'.join(
    f'{line[0]:<{widths[0]}}' + ''.join(f'  {cell:>{width}}' for cell, width in zip(line[1:], widths[1:]))
    for line in (head, *lines)
  )


def _flat(metrics: Mapping[str, Any], above: str = '') -> list[tuple[str, Any]]:
  found = []
  for name, value in metrics.items():
    found += _flat(value, f'{above}{name} / ') if isinstance(value, Mapping) else [(f'{above}{name}', value)]
  return found


def _number(value: float | None) -> str:
  return '-' if value is None else str(value) if isinstance(value, int) else f'{value:.4f}'
