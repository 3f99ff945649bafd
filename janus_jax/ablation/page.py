"""The report of an ablation as one page."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from janus_jax.ablation import tables
from janus_jax.ablation.sheets import Sheet
from janus_jax.ablation.tables import Summary
from janus_jax.reporting.charts import Figure
from janus_jax.reporting.page import Html, charts, element, folded, image, note, page, table

TITLE_VARIANTS = 4  # Named in the title.
STAGE_COLUMNS = ('variant', 'stage', 'steps', 'tokens', 'TFLOP', 'seconds', 'tokens/s')


@dataclasses.dataclass(frozen=True, eq=False)
class Content:
  """What stands on the page.

  Attributes:
    name: of the ablation.
    summaries: of the variants.
    metrics: shown first.
    charts: of the metrics.
    curves: of losses.
    sheet: generated images; None without.
    stages: rows of the table of costs, as `report.stage_rows` gives them.
    changes: variant -> what its config changes.
    base: the config of the ablation's base.
    seeds: of all variants.
    total: runs.
    done: runs that are finished and did not fail.
    forked: of these, how many began from a checkpoint of another run.
  """

  name: str
  summaries: Sequence[Summary]
  metrics: Sequence[str]
  charts: Sequence[Figure]
  curves: Sequence[Figure]
  sheet: Sheet | None
  stages: Sequence[Sequence[str]]
  changes: Mapping[str, Sequence[str]]
  base: Mapping[str, Any]
  seeds: Sequence[int]
  total: int
  done: int
  forked: int


def render(content: Content) -> str:
  """The page."""
  names = tables.all_metrics(content.summaries)
  rest = [name for name in names if name not in (*content.metrics, *tables.COSTS)]
  costs = [name for name in tables.COSTS if name in names]
  sections = [
    ('', _head(content)),
    ('What each variant changes', _changes(content)),
    ('What was compared', [_metric_table(content.summaries, content.metrics), *_intervals(content.charts)]),
    ('What it cost', [_metric_table(content.summaries, costs), *_stages(content.stages)]),
    ('Learning curves', _curves(content.curves)),
    ('Generated images', _images(content.sheet)),
    ('All other metrics', [folded('table', _metric_table(content.summaries, rest))] if rest else []),
  ]
  return page(title(content), sections)


def title(content: Content) -> str:
  """'Ablation NAME: a, b and c compared over 3 seeds'."""
  names, seeds = [item.variant for item in content.summaries], len(content.seeds)
  if len(names) > TITLE_VARIANTS:
    names = [*names[: TITLE_VARIANTS - 1], f'{len(names) - TITLE_VARIANTS + 1} more variants']
  listed = ' and '.join(filter(None, (', '.join(names[:-1]), names[-1])))
  return f'Ablation {content.name}: {listed} compared over {seeds} seed{"s" if seeds > 1 else ""}'


def _head(content: Content) -> list[Html]:
  baseline = next(summary.variant for summary in content.summaries if summary.is_baseline)
  problems = [summary for summary in content.summaries if not summary.is_whole]
  items = [element('li', element('b', item.variant), f': {tables.status(item)}') for item in problems]
  runs = f'{content.done} of {content.total} runs: {len(content.summaries)} variants, seeds '
  forked = f'. {content.forked} runs began from the checkpoint of a run that was the same up to there.'
  return [
    element('p', runs, ', '.join(map(str, content.seeds)), '; baseline ', element('b', baseline), forked),
    note(
      tables.LEGEND.replace('\\', ''),
      ' With one seed there is no interval. All runs answered the same questions and generated images of the same '
      "prompts with the same seeds; held-out losses are on the same batches of the baseline's last stage.",
    ),
    element('ul', *items) if items else Html(),
  ]


def _changes(content: Content) -> list[Html]:
  rows = [
    (name, element('td', *(part for line in lines or ['nothing'] for part in (line, element('br')))))
    for name, lines in content.changes.items()
  ]
  base = element('pre', json.dumps(content.base, indent=2))
  return [table(('variant', 'what differs from the baseline'), rows), folded('the whole base config', base)]


def _metric_table(summaries: Sequence[Summary], metrics: Sequence[str]) -> Html:
  """A line per metric, a column per variant."""
  head = [f'{item.variant} (baseline)' if item.is_baseline else item.variant for item in summaries]
  rows = [
    (
      element('td', metric, element('span', tables.unit(metric), class_='note')),
      *(_cell(item, metric) for item in summaries),
    )
    for metric in metrics
  ]
  return table(('metric', *head), rows)


def _cell(summary: Summary, metric: str) -> Html:
  mean, difference = tables.mean_text(summary, metric), tables.difference_text(summary, metric)
  if mean in (tables.FAILED, tables.NOTHING):
    return element('td', mean, class_='failed')
  kind = 'note clear' if difference.endswith('*') else 'note'
  return element('td', mean, element('span', difference, class_=kind) if difference else '', class_='number')


def _intervals(figures: Sequence[Figure]) -> list[Html]:
  about = 'Mark and number: mean over seeds. Bar: its 95 % interval. Strokes: each seed. Dashed line: the baseline.'
  return [note(about), charts(figures)] if figures else []


def _curves(figures: Sequence[Figure]) -> list[Html]:
  about = (
    'Means over seeds, in a band from the least to the greatest of them; the number is the last one. Dotted lines: '
    'ends of stages, with the marks of the variants whose stage ends there.'
  )
  return [note(about), charts(figures)] if figures else []


def _stages(stages: Sequence[Sequence[str]]) -> list[Html]:
  about = (
    'As if each run had been trained alone, from its first step. Seconds are of training, without compiling, scoring '
    'and saving.'
  )
  rows = [
    (variant, stage, *(element('td', text, class_='number') for text in numbers)) for variant, stage, *numbers in stages
  ]
  return [note(about), table(STAGE_COLUMNS, rows)] if stages else []


def _images(sheet: Sheet | None) -> list[Html]:
  if sheet is None:
    return []
  rows = []
  for skill, prompt, found in sheet.rows:
    cells = [[image(item.pixels, item.about, item.right) for item in found.get(name, ())] for name in sheet.variants]
    about = element('td', prompt, element('span', skill, class_='note'))
    rows.append((about, *(element('td', *cell, class_='images') for cell in cells)))
  about = 'An image per seed. Whole green frame: exactly what was asked for. Dashed red frame: not.'
  return [note(about), table(('prompt', *sheet.variants), rows)]
