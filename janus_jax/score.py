"""Scores answers to a benchmark under named rules, without a model.

    python -m janus_jax.score --benchmark=pope --predictions=FILE [--data=FILE] [--rule=NAME|all] --out=DIR [--json]
                              [--images=DIR]
    python -m janus_jax.score --table=DIR

A predictions file (.jsonl, .json, .tsv, .csv, .xlsx) has a column `prediction`, and either `index` (or another key of
the dataset), where --data is the dataset's file, or the dataset's own columns. DIR gets rows.jsonl, what each rule read
in each answer and whether it is right, and scores.json, the metrics as the original scorer names them, unrounded, with
95 % intervals. With --rule=all the same answers are scored under every rule, and a table shows them side by side. With
--images, DIR/sheets/ gets pages of the images of geneval or dpg with what their judge saw.

--table puts the scores of DIR/*/scores.json into one table, DIR/scores.md and scores.html, beside the report's rows;
given with the rest, once these are scored.
"""

import json
import logging
import os

from absl import flags

from janus_jax import cli
from janus_jax.errors import InputError
from janus_jax.evaluation.benchmarks import BENCHMARKS
from janus_jax.evaluation.rows import read_rows
from janus_jax.evaluation.scoreboard import read_about, write_table
from janus_jax.evaluation.scores import PRINTED, score_rows, side_by_side, write_rule_scores
from janus_jax.evaluation.sheets import WITH_IMAGES, write_sheets

_BENCHMARK = flags.DEFINE_enum('benchmark', None, list(BENCHMARKS), 'Benchmark.')
_PREDICTIONS = cli.define_path('predictions', None, 'File of answers.')
_DATA = cli.define_path('data', None, "The dataset's file, where predictions have only a key.")
_RULE = flags.DEFINE_string('rule', None, 'Rule, or all; default: vlmevalkit-2026, else official, else janus_jax.')
_OUT = cli.define_path('out', None, 'Directory for rows.jsonl and scores.json.')
_IMAGES = cli.define_path('images', None, 'Directory of the generated images, for sheets.')
_TABLE = cli.define_path('table', None, 'Directory whose */scores.json are put into one table.')
_ALLOW_PARTIAL = flags.DEFINE_bool('allow_partial', False, 'Score although some rows have no prediction.')
_JSON = flags.DEFINE_bool('json', False, 'Print one JSON object per rule on stdout.')


def main() -> None:
  scoring = (_BENCHMARK, _PREDICTIONS, _OUT)
  if any(flag.value for flag in scoring) or not _TABLE.value:
    if missing := [flag.name for flag in scoring if not flag.value]:
      raise flags.Error(f'--{missing[0]} is missing: expected --benchmark, --predictions and --out, or --table alone')
    _score()
  if _TABLE.value:
    found = write_table(_TABLE.value)
    logging.info('%s/scores.md, scores.html: %s', _TABLE.value, ', '.join(score['benchmark'] for score in found))


def _score() -> None:
  benchmark = BENCHMARKS[_BENCHMARK.value]
  benchmark.find_rules(_RULE.value)  # Wrong names are said before files are read.
  if _IMAGES.value and _BENCHMARK.value not in WITH_IMAGES:
    raise InputError(f'--images is of no use to {_BENCHMARK.value}: expected it with {" or ".join(WITH_IMAGES)}')
  data = read_rows(_DATA.value) if _DATA.value else None
  rows, missing = benchmark.prepare(read_rows(_PREDICTIONS.value), data, _ALLOW_PARTIAL.value)
  about = read_about(_OUT.value) or read_about(os.path.dirname(_PREDICTIONS.value))
  lines, scores = score_rows(_BENCHMARK.value, rows, _RULE.value, missing, **about)
  if _IMAGES.value:
    readings = [line[scores[0]['rule']] for line in lines]
    logging.info('wrote %s', ', '.join(write_sheets(_BENCHMARK.value, _IMAGES.value, rows, readings, _OUT.value)))
  write_rule_scores(_OUT.value, lines, scores)
  if _JSON.value:
    for score in scores:
      print(json.dumps({name: score[name] for name in PRINTED if name in score}))
  else:
    print(side_by_side(scores))
  partial = f' ({missing} without an answer)' if missing else ''
  logging.info('%s: %d rows%s scored under %s', _OUT.value, len(rows), partial, ', '.join(s['rule'] for s in scores))


if __name__ == '__main__':
  cli.run(main)
