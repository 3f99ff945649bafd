"""Scores answers to a benchmark under named rules, without a model.

    python -m janus_jax.score --benchmark=pope --predictions=FILE [--data=FILE] [--rule=NAME|all] --out=DIR [--json]

A predictions file (.jsonl, .json, .tsv, .xlsx) has a column `prediction`, and either `index`, where --data is the
dataset's file, or the dataset's own columns. DIR gets rows.jsonl, what each rule read in each answer and whether it is
right, and scores.json, the metrics as the original scorer names them, unrounded. With --rule=all the same answers are
scored under every rule, and a table shows them side by side.
"""

import json
import logging
import math
import os
from collections.abc import Mapping
from typing import Any

from absl import flags

from janus_jax import cli
from janus_jax.data.whole_files import write_json, write_text
from janus_jax.evaluation.benchmarks import BENCHMARKS
from janus_jax.evaluation.rows import read_rows
from janus_jax.evaluation.tables import side_by_side

_BENCHMARK = flags.DEFINE_enum('benchmark', None, list(BENCHMARKS), 'Benchmark.', required=True)
_PREDICTIONS = cli.define_path('predictions', None, 'File of answers: .jsonl, .json, .tsv or .xlsx.', required=True)
_DATA = cli.define_path('data', None, "The dataset's file, where predictions have only `index`.")
_RULE = flags.DEFINE_string('rule', None, 'Rule, or all; default: vlmevalkit-2026, official for geneval and dpg.')
_OUT = cli.define_path('out', None, 'Directory for rows.jsonl and scores.json.', required=True)
_ALLOW_PARTIAL = flags.DEFINE_bool('allow_partial', False, 'Score although some rows have no prediction.')
_JSON = flags.DEFINE_bool('json', False, 'Print one JSON object per rule on stdout.')


def _without_nan(value: Any) -> Any:
  """Metrics with None in place of NaN, which JSON does not know."""
  if isinstance(value, Mapping):
    return {name: _without_nan(inner) for name, inner in value.items()}
  return None if isinstance(value, float) and math.isnan(value) else value


def main() -> None:
  benchmark = BENCHMARKS[_BENCHMARK.value]
  rules = benchmark.find_rules(_RULE.value)
  data = read_rows(_DATA.value) if _DATA.value else None
  rows, missing = benchmark.prepare(read_rows(_PREDICTIONS.value), data, _ALLOW_PARTIAL.value)
  lines, found = [{'index': row.get('index', number)} for number, row in enumerate(rows)], []
  for name, rule in rules.items():
    readings, metrics = rule(rows)
    for line, reading in zip(lines, readings):
      line[name] = {'read': reading.read, 'score': reading.score, 'is_random': reading.is_random}
    scores = {'benchmark': _BENCHMARK.value, 'rule': name, 'metrics': _without_nan(metrics), 'rows': len(rows)}
    random_fallbacks = sum(reading.is_random for reading in readings)
    found.append({**scores, 'random_fallbacks': random_fallbacks, **({'missing_rows': missing} if missing else {})})
  os.makedirs(_OUT.value, exist_ok=True)
  write_text(
    os.path.join(_OUT.value, 'rows.jsonl'), ''.join(f'{json.dumps(line, ensure_ascii=False)}\n' for line in lines)
  )
  write_json(os.path.join(_OUT.value, 'scores.json'), found if len(found) > 1 else found[0])
  for scores in found if _JSON.value else ():
    print(json.dumps(scores))
  if not _JSON.value:
    print(side_by_side(found))
  logging.info('%s: %d rows scored under %s', _OUT.value, len(rows), ', '.join(rules))


if __name__ == '__main__':
  cli.run(main)
