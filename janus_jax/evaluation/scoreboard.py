"""Tables of scores beside the report's rows: Markdown, and a page of HTML."""

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from janus_jax.data.whole_files import write_json, write_text
from janus_jax.errors import InputError, one_line, shown
from janus_jax.evaluation.headline import OWN_FIGURES, digits, value_at
from janus_jax.evaluation.reference import COLUMNS, PARTS, report_figures
from janus_jax.reporting import page

# What `evaluate` knows of answers and images that a judge scores later, beside them: model, prompt style, sampling.
ABOUT_FILE = 'about.json'
ABOUT = ('model', 'prompt', 'sampling', 'dataset')
LARGEST = {'mme': 2000, 'geneval': 1, 'bias': 1}  # Figures; of all others 100, and of none is one below 0.
HEAD = ('benchmark', 'figure', '95 %', 'rule', 'prompt', 'sampling', 'dataset', 'rows', 'Janus-Pro-1B', 'Janus-Pro-7B')


def table_rows(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
  """A line of the table for each score {benchmark, rule, headline, interval, prompt, sampling, dataset, rows,
  missing_rows}, and   for each skill of GenEval and category of DPG-Bench, from its {metrics, intervals}.
  """
  lines = []
  is_one_model = len({score['model'] for score in found if 'model' in score}) < 2
  for score in found:
    benchmark, owner = score['benchmark'], '' if is_one_model else f'{score.get("model", "-")}: '
    missing = score.get('missing_rows', 0)
    rows = f'{score["rows"]} of {score["rows"] + missing}' if missing else str(score['rows'])
    line = _line(score, owner + _name(benchmark), rows, score['headline'], score.get('interval'))
    lines.append([*line, *_of_the_report(benchmark)])
    part, scale = PARTS.get(benchmark, ('', 1))
    for column, value in score.get('metrics', {}).get(part, {}).items():
      ends = value_at(score.get('intervals'), (part, column))
      line = _line(score, f'{owner}{benchmark}: {column}', '-', scale * value, ends and [scale * end for end in ends])
      lines.append([*line, *_of_the_report(benchmark, column)])
  return lines


def _line(
  score: Mapping[str, Any], name: str, rows: str, value: float | None, ends: Sequence[float] | None
) -> list[str]:
  places = digits(score['benchmark'])
  if ends is not None:
    ends = max(ends[0], 0), min(ends[1], LARGEST.get(score['benchmark'], 100))
  figure = '-' if value is None else f'{value:.{places}f}'
  return [
    name,
    f'{figure} (partial)' if score.get('missing_rows') else figure,
    '-' if ends is None else f'{ends[0]:.{places}f} to {ends[1]:.{places}f}',
    score['rule'],
    score.get('prompt', '-'),
    score.get('sampling', '-'),
    re.sub(r'(md5 \w{8})\w+', r'\1...', score.get('dataset') or '-'),  # scores.json has all of it.
    rows,
  ]


def _of_the_report(benchmark: str, *column: str) -> list[str]:
  report = report_figures(benchmark, *column)
  return [report.get(model, '-') for model in HEAD[-2:]]


def _name(benchmark: str) -> str:
  if benchmark not in COLUMNS:
    return f'{benchmark} ({OWN_FIGURES[benchmark]})'
  return f'{benchmark} ({COLUMNS[benchmark][1]}, Table {COLUMNS[benchmark][0]})'


def scoreboard_to_markdown(title: str, found: Sequence[Mapping[str, Any]]) -> str:
  """The table of ours, and below it all rows that the report has for these benchmarks."""
  lines = [f'# {title}', '', *markdown_table(HEAD, table_rows(found))]
  head, rows = _report_table(found)
  if rows:
    lines += ['', 'Rows of the report (arXiv 2501.17811v1):', '', *markdown_table(head, rows)]
  return '\n'.join(lines) + '\n'


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  """Lines of a table in Markdown."""
  return [f'| {" | ".join(line)} |' for line in (head, ['---'] * len(head), *rows)]


def _report_table(found: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
  names = list(dict.fromkeys(score['benchmark'] for score in found if score['benchmark'] in COLUMNS))
  by_benchmark = {name: report_figures(name) for name in names}
  models = list(dict.fromkeys(model for figures in by_benchmark.values() for model in figures))
  head = ['model', *map(_name, names)]
  return head, [[model, *(by_benchmark[name].get(model, '-') for name in names)] for model in models]


def write_scoreboard(directory: str, title: str, found: Sequence[Mapping[str, Any]]) -> None:
  """Writes scores.md and scores.html."""
  write_text(os.path.join(directory, 'scores.md'), scoreboard_to_markdown(title, found))
  html = page.page(
    title,
    [
      ('Scores', [page.table(HEAD, table_rows(found))]),
      ('The report (arXiv 2501.17811v1)', [page.table(*_report_table(found))]),
    ],
  )
  write_text(os.path.join(directory, 'scores.html'), html)


def claim(directory: str, about: Mapping[str, str]) -> None:
  """Writes what `read_about` reads. Raises InputError where answers or images are there already of something else."""
  if differing := [f'{name} {value}' for name, value in read_about(directory).items() if about.get(name) != value]:
    raise InputError(f'{directory}: what is there has {", ".join(differing)}: expected another --out, or the same')
  write_json(os.path.join(directory, ABOUT_FILE), about)


def read_about(directory: str) -> dict[str, str]:
  """Model, prompt and sampling of the answers or images in a directory of `evaluate`; {} of another directory."""
  path = Path(directory, ABOUT_FILE)
  try:
    found = json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    return {}
  except ValueError as error:
    raise InputError(f'{path}: {one_line(error)}: expected what janus_jax.evaluate wrote') from None
  is_known = isinstance(found, dict) and all(name in ABOUT and isinstance(value, str) for name, value in found.items())
  if not is_known:
    raise InputError(f'{path}: {shown(found)}: expected texts as janus_jax.evaluate wrote them, {", ".join(ABOUT)}')
  return found


def read_scores(directory: str) -> list[dict[str, Any]]:
  """The first rule's score of each <directory>/*/scores.json, in the order of the report's tables.

  Raises:
    InputError: a file is no JSON, or there is none.
  """
  order, found, others = [*COLUMNS, *OWN_FIGURES], [], []
  for path in sorted(Path(directory).glob('*/scores.json')):
    try:
      content = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
      raise InputError(f'{path}: {one_line(error)}: expected scores as janus_jax.score writes them') from None
    score = content[0] if isinstance(content, list) and content else content
    if isinstance(score, dict) and score.get('benchmark') in order and 'headline' in score:
      try:
        markdown_table(HEAD, table_rows([score]))
      except (AttributeError, LookupError, TypeError, ValueError) as error:
        said = f'{path}: {type(error).__name__} {one_line(error)}'
        raise InputError(f'{said}: expected scores as janus_jax.score writes them') from None
      found.append(score)
    else:
      others.append(path)
  for path in others if found else ():
    logging.warning('%s: left out: no score of a benchmark', path)
  if not found:
    raise InputError(f'{directory}: no */scores.json of a benchmark: expected directories of janus_jax.score --out')
  return sorted(found, key=lambda score: order.index(score['benchmark']))


def write_table(directory: str) -> list[dict[str, Any]]:
  """Writes the scoreboard of all scores below a directory into it, under the names of their models. Returns them."""
  found = read_scores(directory)
  models = dict.fromkeys(score['model'] for score in found if 'model' in score)
  write_scoreboard(directory, ', '.join(models) or os.path.basename(os.path.abspath(directory)), found)
  return found
