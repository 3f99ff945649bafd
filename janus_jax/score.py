"""Scores answers to a benchmark under named rules, without a model.

    python -m janus_jax.score --benchmark=pope --predictions=FILE [--data=FILE] [--rule=NAME|all] --out=DIR [--json]

A predictions file (.jsonl, .json, .tsv, .csv, .xlsx) has a column `prediction`, and either `index` (or another key of
the dataset), where --data is the dataset's file, or the dataset's own columns. DIR gets rows.jsonl, what each rule read
in each answer and whether it is right, and scores.json, the metrics as the original scorer names them, unrounded. With
--rule=all the same answers are scored under every rule, and a table shows them side by side. The rule `official` of
geneval and dpg also writes what their own scorers write (results.jsonl and summary.txt; dpg-bench_results.txt).
"""

import json
import logging

from absl import flags

from janus_jax import cli
from janus_jax.evaluation.benchmarks import BENCHMARKS
from janus_jax.evaluation.official_texts import write_official_texts
from janus_jax.evaluation.rows import read_rows
from janus_jax.evaluation.scores import PRINTED, score_rows, side_by_side, write_rule_scores
from janus_jax.evaluation.versions import version_of_file

_BENCHMARK = flags.DEFINE_enum('benchmark', None, list(BENCHMARKS), 'Benchmark.', required=True)
_PREDICTIONS = cli.define_path('predictions', None, 'File of answers.', required=True)
_DATA = cli.define_path('data', None, "The dataset's file, where predictions have only a key.")
_RULE = flags.DEFINE_string('rule', None, 'Rule, or all; default: vlmevalkit-2026, official for geneval and dpg.')
_OUT = cli.define_path('out', None, 'Directory for rows.jsonl and scores.json.', required=True)
_ALLOW_PARTIAL = flags.DEFINE_bool('allow_partial', False, 'Score although some rows have no prediction.')
_JSON = flags.DEFINE_bool('json', False, 'Print one JSON object per rule on stdout.')


def main() -> None:
  benchmark = BENCHMARKS[_BENCHMARK.value]
  benchmark.find_rules(_RULE.value)  # Wrong names are said before files are read.
  data = read_rows(_DATA.value) if _DATA.value else None
  rows, missing = benchmark.prepare(read_rows(_PREDICTIONS.value), data, _ALLOW_PARTIAL.value)
  version = {'dataset': version_of_file(_DATA.value)} if _DATA.value else {}
  lines, scores = score_rows(_BENCHMARK.value, rows, _RULE.value, missing, **version)
  write_rule_scores(_OUT.value, lines, scores)
  write_official_texts(_BENCHMARK.value, rows, lines, scores, _OUT.value)
  if _JSON.value:
    for score in scores:
      print(json.dumps({name: score[name] for name in PRINTED if name in score}))
  else:
    print(side_by_side(scores))
  partial = f' ({missing} without an answer)' if missing else ''
  of = f' of {version["dataset"]}' if version.get('dataset') else ''
  rules = ', '.join(score['rule'] for score in scores)
  logging.info('%s: %d rows%s%s scored under %s', _OUT.value, len(rows), of, partial, rules)


if __name__ == '__main__':
  cli.run(main)
