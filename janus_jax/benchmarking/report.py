"""Figures of a benchmark, for people and for scripts."""

import datetime
import importlib.metadata
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from janus_jax.benchmarking.measured_table import BUSY
from janus_jax.benchmarking.scaling import Cost
from janus_jax.reporting.charts import Axis, Figure, Series, line_chart, save_chart
from janus_jax.runs.revision import revision


def environment() -> dict[str, str | int]:
  """Date, device and versions."""
  return {
    'date': datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d'),
    'revision': revision(),
    'device': jax.devices()[0].device_kind,
    'devices': jax.device_count(),
    'jax': jax.__version__,
    'jaxlib': importlib.metadata.version('jaxlib'),
  }


def rounded(value: Any) -> Any:
  """Floats to four significant digits, also inside of dicts and lists."""
  if isinstance(value, Mapping):
    return {name: rounded(item) for name, item in value.items()}
  if isinstance(value, list | tuple):
    return [rounded(item) for item in value]
  return float(f'{value:.4g}') if isinstance(value, float) else value


def to_text(found: Mapping[str, Any]) -> str:
  """Aligned lines, one a figure; figures inside of a dict or list have dotted names."""
  lines = _usable_lines(found)
  width = max(len(name) for name, _ in lines)
  return '\n'.join(f'{name:{width}}  {value}' for name, value in lines)


def results_to_markdown(found: Mapping[str, Any]) -> str:
  """The same as a table."""
  rows = [f'| {name} | {value} |' for name, value in _usable_lines(found)]
  return '\n'.join(['| figure | value |', '|---|---|', *rows])


def write_results(directory: str, found: Mapping[str, Any], costs: Sequence[Cost]) -> None:
  """Writes results.json, table.md, and a chart of each cost; makes the directory, replaces files of those names."""
  out = pathlib.Path(directory)
  out.mkdir(parents=True, exist_ok=True)
  for name, text in (('results.json', json.dumps(found, indent=2)), ('table.md', results_to_markdown(found))):
    (out / name).write_text(f'{text}\n')
  for cost in costs:
    save_chart(cost_chart(cost), str(out / f'{cost.axis}.png'))


def cost_chart(cost: Cost) -> Figure:
  """Medians against size in a band of their spread, and the fitted power law; both axes are logarithmic."""
  spreads = {size: timing.spread() for size, timing in cost.seconds.items()}
  medians = [(size, spread['median']) for size, spread in spreads.items()]
  band = [(size, spread['low'], spread['high']) for size, spread in spreads.items()]
  series = [Series('median', medians, band), Series('fit', [(size, cost.fit.at(size)) for size in spreads])]
  title = f'{cost.title}: exponent {cost.fit.exponent:.2f}'
  return line_chart(title, series, Axis(cost.axis, log=True), Axis('seconds', log=True))


def _usable_lines(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
  """Lines without comparisons with a peer on a busy machine: torch's threads wait for each other all the time, and
  answers took it eight times as long.
  """
  load = found.get('load_average_before', 0.0)
  refused = f'not usable: load average {load:.1f} before, above {BUSY}'
  return [(name, refused if load > BUSY and 'times_the_peer' in name else value) for name, value in _lines(found, '')]


def _lines(value: Any, name: str) -> list[tuple[str, Any]]:
  if isinstance(value, Mapping) and set(value) == {'median', 'low', 'high'}:
    return [(name, f'{value["median"]:.4g}  ({value["low"]:.4g} to {value["high"]:.4g})')]
  if isinstance(value, Mapping):
    items: Sequence[tuple[str, Any]] = list(value.items())
  elif isinstance(value, list):
    # The first figure of a row says which row it is, or the first two where that is not enough.
    rows = [list(item.items()) for item in value]
    count = 1 if len({row[0][1] for row in rows}) == len(rows) else 2
    items = [(','.join(f'{key}={figure}' for key, figure in row[:count]), dict(row[count:])) for row in rows]
  elif value is None:
    return [(name, 'not known')]
  else:
    return [(name, f'{value:.4g}' if isinstance(value, float) else value)]
  return [line for key, item in items for line in _lines(item, f'{name}.{key}' if name else key)]
