"""Tables of scores beside the report's rows: Markdown, and a page of HTML."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from janus_jax.data.whole_files import write_text
from janus_jax.evaluation.headline import digits
from janus_jax.evaluation.reference import COLUMNS, report_figures
from janus_jax.reporting import page

HEAD = ('benchmark', 'figure', '95 %', 'rule', 'prompt', 'sampling', 'dataset', 'rows', 'Janus-Pro-1B', 'Janus-Pro-7B')


def table_rows(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
  """A line of the table for each score: {benchmark, rule, headline, interval, prompt, sampling, dataset, rows,
  missing_rows}.
  """
  lines = []
  for score in found:
    benchmark, interval = score['benchmark'], score.get('interval')
    report, places = report_figures(benchmark), digits(benchmark)
    low_high = '-' if interval is None else f'{interval[0]:.{places}f} to {interval[1]:.{places}f}'
    figure = '-' if score['headline'] is None else f'{score["headline"]:.{places}f}'
    missing = score.get('missing_rows', 0)
    lines.append(
      [
        f'{benchmark} ({COLUMNS[benchmark][1]}, Table {COLUMNS[benchmark][0]})',
        f'{figure} (partial)' if missing else figure,
        low_high,
        score['rule'],
        score.get('prompt', '-'),
        score.get('sampling', '-'),
        score.get('dataset') or '-',
        f'{score["rows"]} of {score["rows"] + missing}' if missing else str(score['rows']),
        *(report.get(model, '-') for model in HEAD[-2:]),
      ]
    )
  return lines


def scoreboard_to_markdown(title: str, found: Sequence[Mapping[str, Any]]) -> str:
  """The table of ours, and below it all rows that the report has for these benchmarks."""
  lines = [f'# {title}', '', *_markdown(HEAD, table_rows(found)), '', 'Rows of the report (arXiv 2501.17811v1):', '']
  return '\n'.join([*lines, *_markdown(*_report_table(found))]) + '\n'


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  return [f'| {" | ".join(line)} |' for line in (head, ['---'] * len(head), *rows)]


def _report_table(found: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
  names = list(dict.fromkeys(score['benchmark'] for score in found))
  by_benchmark = {name: report_figures(name) for name in names}
  models = list(dict.fromkeys(model for figures in by_benchmark.values() for model in figures))
  head = ['model', *(f'{COLUMNS[name][1]} (Table {COLUMNS[name][0]})' for name in names)]
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
