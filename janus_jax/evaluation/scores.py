"""Scores of answers under one or all rules: computed, written, and printed side by side."""

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from janus_jax.data.whole_files import write_json, write_text
from janus_jax.errors import InputError
from janus_jax.evaluation.benchmarks import BENCHMARKS
from janus_jax.evaluation.headline import headline, headline_interval, metric_intervals
from janus_jax.evaluation.rows import Row

# What a line of --json holds, in this order; scores.json also has the headline and its interval.
PRINTED = ('benchmark', 'rule', 'metrics', 'rows', 'random_fallbacks', 'missing_rows', 'dataset', 'judge')


def score_rows(
  benchmark: str, rows: Sequence[Row], rule: str | None = None, missing: int = 0, **about: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
  """Scores rows under a rule, the default for None, or 'all'.

  Args:
    benchmark: a key of `benchmarks.BENCHMARKS`.
    rows: as its `prepare` gives them.
    rule: name.
    missing: rows of the dataset without an answer.
    **about: more that each score says, such as the prompt style.

  Returns:
    A line for each row: its index, and per rule {'read', 'score', 'is_random'}; and a score for each rule.

  Raises:
    InputError: an unknown rule, or rows that it (of all, any) cannot read.
  """
  lines: list[dict[str, Any]] = [{'index': row.get('index', number)} for number, row in enumerate(rows)]
  scores, refusals = [], []
  for name, apply in BENCHMARKS[benchmark].find_rules(rule).items():
    try:
      readings, metrics = apply(rows)
    except InputError as error:
      if rule != 'all':
        raise
      refusals.append(f'{name}: {error}')
      continue
    for line, reading in zip(lines, readings):
      line[name] = {'read': reading.read, 'score': reading.score, 'is_random': reading.is_random}
    score = {'benchmark': benchmark, 'rule': name, 'metrics': _without_nan(metrics), 'rows': len(rows)}
    score['random_fallbacks'] = sum(reading.is_random for reading in readings)
    score |= {'missing_rows': missing} if missing else {}
    intervals = metric_intervals(benchmark, apply, rows)
    figures = {'headline': headline(benchmark, metrics), 'interval': headline_interval(benchmark, metrics, intervals)}
    scores.append({**score, **figures, 'intervals': intervals, **about})
  if not scores:
    raise InputError(refusals[0])
  for refusal in refusals:
    logging.warning('left out: %s', refusal)
  return lines, scores


def _without_nan(value: Any) -> Any:
  """Metrics with None in place of NaN, which JSON does not know."""
  if isinstance(value, Mapping):
    return {name: _without_nan(inner) for name, inner in value.items()}
  return None if isinstance(value, float) and math.isnan(value) else value


def write_rule_scores(directory: str, lines: Sequence[Mapping[str, Any]], scores: Sequence[Mapping[str, Any]]) -> None:
  """Writes rows.jsonl and scores.json: one object for one rule, a list for several."""
  os.makedirs(directory, exist_ok=True)
  rows = ''.join(f'{json.dumps(line, ensure_ascii=False)}\n' for line in lines)
  write_text(os.path.join(directory, 'rows.jsonl'), rows)
  write_json(os.path.join(directory, 'scores.json'), scores if len(scores) > 1 else scores[0])


def side_by_side(scores: Sequence[Mapping[str, Any]]) -> str:
  """A table of metrics (lines) by rule (columns), of one rule with 95 % intervals; names of nested metrics are joined
  by ' / '.
  """
  columns = [dict(_flat(score['metrics'])) for score in scores]
  names = list(dict.fromkeys(name for column in columns for name in column))
  rows, missing = scores[0]['rows'], scores[0].get('missing_rows', 0)
  head = [f'partial: {rows} of {rows + missing}' if missing else '', *(score['rule'] for score in scores)]
  table = [[name, *(_number(column[name]) if name in column else '' for column in columns)] for name in names]
  if len(scores) == 1:
    ends = dict(_flat(scores[0].get('intervals', {})))
    head.append('95 %')
    table = [[*line, ' to '.join(map(_number, ends[line[0]])) if line[0] in ends else ''] for line in table]
  widths = [max(map(len, cells)) for cells in zip(head, *table)]
  return '\n'.join(
    f'{line[0]:<{widths[0]}}' + ''.join(f'  {cell:>{width}}' for cell, width in zip(line[1:], widths[1:]))
    for line in (head, *table)
  )


def _flat(metrics: Mapping[str, Any], above: str = '') -> list[tuple[str, Any]]:
  found = []
  for name, value in metrics.items():
    found += _flat(value, f'{above}{name} / ') if isinstance(value, Mapping) else [(f'{above}{name}', value)]
  return found


def _number(value: float | None) -> str:
  return '-' if value is None else str(value) if isinstance(value, int) else f'{value:.4f}'
