"""What a benchmark found, for people and for scripts."""

import datetime
import importlib.metadata
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from janus_jax.benchmarking.measured_table import BUSY
from janus_jax.benchmarking.scaling import Cost
from janus_jax.reporting.charts import Axis, Figure, Series, line_chart, save_chart
from janus_jax.runs.revision import revision


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


def rounded(value: Any) -> Any:
  """Floats to four significant digits, also inside of dicts and lists."""
  if isinstance(value, Mapping):
    return {name: rounded(item) for name, item in value.items()}
  if isinstance(value, list | tuple):
    return [rounded(item) for item in value]
  return float(f'{value:.4g}') if isinstance(value, float) else value


def to_text(found: Mapping[str, Any]) -> str:
  """Aligned lines, one a figure; what is inside of a dict or list has a dotted name."""
  lines = _usable_lines(found)
  width = max(len(name) for name, _ in lines)
  return '\n'.join(f'{name:{width}}  {value}' for name, value in lines)


def to_markdown(found: Mapping[str, Any]) -> str:
  """The same as a table."""
  return '\n'.join(
    ['| figure | value |', '|---|---|', *(f'| {name} | {value} |' for name, value in _usable_lines(found))]
  )


def write(directory: str, found: Mapping[str, Any], costs: Sequence[Cost]) -> None:
  """results.json, table.md, and a PNG for each of the costs.

  Args:
    directory: made if missing; files of those names are replaced.
    found: as it is printed.
    costs: to draw.
  """
  os.makedirs(directory, exist_ok=True)
  for name, text in (('results.json', json.dumps(found, indent=2)), ('table.md', to_markdown(found))):
    with open(os.path.join(directory, name), 'w') as file:
      file.write(f'{text}\n')
  for cost in costs:
    save_chart(cost_chart(cost), os.path.join(directory, f'{cost.axis}.png'))


def cost_chart(cost: Cost) -> Figure:
  """Medians against size in a band of their spread, and the fitted power law; both axes are logarithmic."""
  medians = [(point.size, point.seconds.median) for point in cost.points]
  band = [(point.size, point.seconds.low, point.seconds.high) for point in cost.points]
  fit = [(size, cost.fit.at(size)) for size, _ in medians]
  series = [Series('median', medians, band), Series('fit', fit)]
  title = f'{cost.title}: exponent {cost.fit.exponent:.2f}'
  return line_chart(title, series, Axis(cost.axis, log=True), Axis('seconds', log=True))


def _usable_lines(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
  """Without comparisons with a peer on a busy machine: torch's threads wait for each other all the time, and answers
  took it eight times as long.
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
    # The first figure of a row says which row it is.
    rows = [list(item.items()) for item in value]
    items = [(f'{row[0][0]}={row[0][1]}', dict(row[1:])) for row in rows]
  elif value is None:
    return [(name, 'not known')]
  else:
    return [(name, f'{value:.4g}' if isinstance(value, float) else value)]
  return [line for key, item in items for line in _lines(item, f'{name}.{key}' if name else key)]
