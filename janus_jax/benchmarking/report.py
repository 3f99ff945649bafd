"""What a benchmark found, for people and for scripts."""

import datetime
import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from janus_jax.benchmarking.timing import Timing
from janus_jax.workdirs import revision


def environment() -> dict[str, str | int]:
  """On what, when, by which versions."""
  device = jax.devices()[0]
  return {
    'date': datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d'),
    'revision': revision(),
    'device': device.device_kind,
    'devices': jax.device_count(),
    'jax': jax.__version__,
    'jaxlib': importlib.metadata.version('jaxlib'),
  }


def spread(timing: Timing) -> dict[str, float]:
  """Median, lowest and highest."""
  return {'median': timing.median, 'low': timing.low, 'high': timing.high}


def rounded(value: Any) -> Any:
  """Floats to four significant digits, also inside of dicts and lists."""
  if isinstance(value, Mapping):
    return {name: rounded(item) for name, item in value.items()}
  if isinstance(value, list | tuple):
    return [rounded(item) for item in value]
  return float(f'{value:.4g}') if isinstance(value, float) else value


def to_text(found: Mapping[str, Any]) -> str:
  """Aligned lines, one a figure; what is inside of a dict or list has a dotted name."""
  lines = _lines(found, '')
  width = max(len(name) for name, _ in lines)
  return '\n'.join(f'{name:{width}}  {value}' for name, value in lines)


def _lines(value: Any, name: str) -> list[tuple[str, Any]]:
  if isinstance(value, Mapping) and set(value) == {'median', 'low', 'high'}:
    return [(name, f'{value["median"]:.4g}  ({value["low"]:.4g} to {value["high"]:.4g})')]
  if isinstance(value, Mapping):
    items: Sequence[tuple[str, Any]] = list(value.items())
  elif isinstance(value, list):
    items = [(str(item.get('batch', index)), item) for index, item in enumerate(value)]
  else:
    return [(name, f'{value:.4g}' if isinstance(value, float) else value)]
  return [line for key, item in items for line in _lines(item, f'{name}.{key}' if name else key)]
