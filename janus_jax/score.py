"""Scores answers to a benchmark under named rules, without a model.

    python -m janus_jax.score --benchmark=pope --predictions=FILE [--data=FILE] [--rule=NAME|all] --out=DIR [--json]
                              [--images=DIR]
    python -m janus_jax.score --table=DIR

A predictions file (.jsonl, .json, .tsv, .csv, .xlsx) has a column `prediction`, and either `index` (or another key of
the dataset), where --data is the dataset's file, or the dataset's own columns. DIR gets rows.jsonl, what each rule read
in each answer and whether it is right, and scores.json, the metrics as the original scorer names them, unrounded, with
95 % intervals. With --rule=all the same answers are scored under every rule, and a table shows them side by side. The
rule `official` of geneval and dpg also writes what their own scorers write (results.jsonl and summary.txt;
dpg-bench_results.txt). With --images, DIR/sheets/ gets pages of the images of geneval or dpg with what their judge saw.

    python -m janus_jax.score --benchmark=geneval --images=DIR --detector=DIR --clip=DIR --out=DIR
    python -m janus_jax.score --benchmark=dpg --images=DIR --data=dpg_bench.csv --vqa=DIR --out=DIR

judge images, as `evaluate` writes them, by networks of `transformers` from local directories, and score what these say:
detections.jsonl or vqa_answers.jsonl in --out. A run that was stopped goes on where it was.

--table puts the scores of DIR/*/scores.json into one table, DIR/scores.md and scores.html, beside the report's rows;
given with the rest, once these are scored.
"""

import json
import logging
import os

from absl import flags

from janus_jax import cli
from janus_jax.evaluation.benchmarks import BENCHMARKS, Benchmark
from janus_jax.evaluation.judges import Images
from janus_jax.evaluation.official_texts import write_official_texts
from janus_jax.evaluation.rows import Row, read_rows
from janus_jax.evaluation.scoreboard import read_about, write_table
from janus_jax.evaluation.scores import PRINTED, score_rows, side_by_side, write_rule_scores
from janus_jax.evaluation.sheets import write_sheets
from janus_jax.evaluation.versions import version_of_file

_BENCHMARK = flags.DEFINE_enum('benchmark', None, list(BENCHMARKS), 'Benchmark.')
_PREDICTIONS = cli.define_path('predictions', None, 'File of answers, or of what judges said.')
_IMAGES = cli.define_path('images', None, 'Directory of the images of geneval or dpg: to be judged, and for sheets.')
_DETECTOR = cli.define_path('detector', None, "Directory of GenEval's detector: a Mask2Former for COCO's instances.")
_CLIP = cli.define_path('clip', None, 'Directory of the CLIP that names colours for GenEval.')
_VQA = cli.define_path('vqa', None, 'Directory of the network that answers questions for DPG-Bench.')
_DATA = cli.define_path('data', None, "The dataset's file, where predictions have only a key.")
_RULE = flags.DEFINE_string('rule', None, 'Rule, or all; default: vlmevalkit-2026, else official, else janus_jax.')
_OUT = cli.define_path('out', None, 'Directory for rows.jsonl and scores.json.')
_TABLE = cli.define_path('table', None, 'Directory whose */scores.json are put into one table.')
_ALLOW_PARTIAL = flags.DEFINE_bool('allow_partial', False, 'Score although some rows have no prediction.')
_JSON = flags.DEFINE_bool('json', False, 'Print one JSON object per rule on stdout.')


def _predictions(benchmark: Benchmark, data: list[Row] | None) -> list[Row]:
  """Rows of --predictions, or what networks say of --images."""
  networks = cli.values(_DETECTOR, _CLIP, _VQA)
  if _IMAGES.value and benchmark.judge is None:
    raise flags.Error(f'{_BENCHMARK.value} has no images: expected no --images')
  if _PREDICTIONS.value:
    if networks:
      raise flags.Error(f'--{next(iter(networks))} judges --images; predictions say what a judge said')
    return read_rows(_PREDICTIONS.value)
  if set(networks) != set(benchmark.networks):
    expected = ' and '.join(f'--{name}' for name in benchmark.networks)
    raise flags.Error(f'images of {_BENCHMARK.value} are judged by {expected}: expected a directory for each, no other')
  return benchmark.judge(Images(_IMAGES.value, data, _ALLOW_PARTIAL.value), networks, _OUT.value)


def main() -> None:
  if _BENCHMARK.value or _OUT.value or not _TABLE.value:
    for holders in ((_BENCHMARK,), (_PREDICTIONS, _IMAGES), (_OUT,)):
      if not any(holder.value for holder in holders):
        names = ' or '.join(f'--{holder.name}' for holder in holders)
        raise flags.Error(
          f'{names} is missing: expected --benchmark, --predictions or --images, --out; or --table alone'
        )
    _score()
  if _TABLE.value:
    found = write_table(_TABLE.value)
    logging.info('%s/scores.md, scores.html: %s', _TABLE.value, ', '.join(score['benchmark'] for score in found))


def _score() -> None:
  benchmark = BENCHMARKS[_BENCHMARK.value]
  benchmark.find_rules(_RULE.value)  # Wrong names are said before files are read.
  data = read_rows(_DATA.value) if _DATA.value else None
  predictions = _predictions(benchmark, data)
  rows, missing = benchmark.prepare(predictions, data, _ALLOW_PARTIAL.value)
  judges = dict.fromkeys(str(row['judge']) for row in predictions if benchmark.networks and 'judge' in row)
  about = read_about(_OUT.value) or read_about(os.path.dirname(_PREDICTIONS.value or _IMAGES.value))
  about |= {'judge': '; '.join(judges)} if judges else {}
  about |= {'dataset': version_of_file(_DATA.value)} if _DATA.value else {}
  lines, scores = score_rows(_BENCHMARK.value, rows, _RULE.value, missing, **about)
  if _IMAGES.value:
    readings = [line[scores[0]['rule']] for line in lines]
    logging.info('wrote %s', ', '.join(write_sheets(_BENCHMARK.value, _IMAGES.value, rows, readings, _OUT.value)))
  write_rule_scores(_OUT.value, lines, scores)
  write_official_texts(_BENCHMARK.value, rows, lines, scores, _OUT.value)
  if _JSON.value:
    for score in scores:
      print(json.dumps({name: score[name] for name in PRINTED if name in score}))
  else:
    print(side_by_side(scores))
    if judges:
      print(f'judge: {about["judge"]}')
  partial = f' ({missing} without an answer)' if missing else ''
  of = f' of {about["dataset"]}' if about.get('dataset') else ''
  rules = ', '.join(score['rule'] for score in scores)
  logging.info('%s: %d rows%s%s scored under %s', _OUT.value, len(rows), of, partial, rules)


if __name__ == '__main__':
  cli.run(main)
