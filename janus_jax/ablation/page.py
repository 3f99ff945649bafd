"""The report of an ablation as one page."""

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from janus_jax.ablation import tables
from janus_jax.ablation.settings import Ablation
from janus_jax.ablation.sheets import Sheet
from janus_jax.ablation.tables import Summary
from janus_jax.ablation.variants import PlannedRun
from janus_jax.reporting.charts import Figure
from janus_jax.reporting.page import Html, charts, element, folded, image_tag, note, page, table
from janus_jax.runs.config import to_json
from janus_jax.runs.workdirs import differences

TITLE_VARIANTS = 4  # Variants named in the title.
NOTE = (
  'With one seed there is no interval. All runs answered the same questions and generated images of the same prompts '
  "with the same seeds; held-out losses are on the same batches of the baseline's last stage."
)
INTERVALS = 'Mark and number: mean over seeds. Bar: its 95 % interval. Strokes: each seed. Dashed line: the baseline.'
CURVES = (
  'Means over seeds, in a band from the least to the greatest of them; the number is the last one. Dotted lines: ends '
  'of stages, with the marks of the variants whose stage ends there.'
)
COSTS = (
  'As if each run had been trained alone, from its first step. Seconds are of training, without compiling, scoring and '
  'saving.'
)
IMAGES = 'An image per seed. Whole green frame: exactly what was asked for. Dashed red frame: not.'


@dataclasses.dataclass(frozen=True, eq=False)
class Findings:
  """Findings of an ablation so far: records of the runs that are done and did not fail; metrics to show first."""

  name: str
  ablation: Ablation
  runs: Sequence[PlannedRun]
  done: Mapping[str, Mapping[str, Any]]
  summaries: Sequence[Summary]
  metrics: Sequence[str]


def render(found: Findings, metric_charts: Sequence[Figure], curves: Sequence[Figure], sheet: Sheet | None) -> str:
  """The page."""
  names = tables.all_metrics(found.summaries)
  rest = [name for name in names if name not in (*found.metrics, *tables.COSTS)]
  costs = [name for name in tables.COSTS if name in names]
  compared, cost, others = (_metric_table(found.summaries, some) for some in (found.metrics, costs, rest))
  sections = [
    ('', _head(found)),
    ('What each variant changes', _changes(found)),
    ('What was compared', [compared, *([note(INTERVALS), charts(metric_charts)] if metric_charts else [])]),
    ('What it cost', [cost, *_stages(found)]),
    ('Learning curves', [note(CURVES), charts(curves)] if curves else []),
    ('Generated images', [note(IMAGES), _images(sheet)] if sheet else []),
    ('All other metrics', [folded('table', others)] if rest else []),
  ]
  return page(title(found), sections)


def title(found: Findings) -> str:
  """'Ablation NAME: a, b and c compared over 3 seeds'."""
  names, seeds = [item.variant for item in found.summaries], len(found.ablation.seeds)
  if len(names) > TITLE_VARIANTS:
    names = [*names[: TITLE_VARIANTS - 1], f'{len(names) - TITLE_VARIANTS + 1} more variants']
  listed = ' and '.join(filter(None, (', '.join(names[:-1]), names[-1])))
  return f'Ablation {found.name}: {listed} compared over {seeds} seed{"s" if seeds > 1 else ""}'


def _head(found: Findings) -> list[Html]:
  runs = (
    f'{len(found.done)} of {len(found.runs)} runs: {len(found.summaries)} variants, seeds '
    f'{", ".join(map(str, found.ablation.seeds))}; baseline {found.ablation.baseline}. '
    f'{sum(bool(record.get("forked")) for record in found.done.values())} runs began from the checkpoint of a run that '
    'was the same up to there.'
  )
  problems = [
    element('li', element('b', item.variant), f': {tables.status(item)}')
    for item in found.summaries
    if not item.is_whole
  ]
  return [element('p', runs), note(tables.LEGEND.replace('\\', ''), ' ', NOTE), element('ul', *problems)]


def _changes(found: Findings) -> list[Html]:
  """The lines in which configs differ from the baseline's."""
  configs = {run.variant: to_json(run.config) for run in reversed(found.runs)}
  baseline, rows = configs[found.ablation.baseline], []
  for item in found.summaries:
    if item.baseline:
      lines = differences(baseline, configs[item.variant]) or ['nothing']
      rows.append((item.variant, element('td', '\n'.join(lines), class_='lines')))
  base = element('pre', json.dumps(to_json(found.ablation.base), indent=2))
  return [table(('variant', 'what differs from the baseline'), rows), folded('the whole base config', base)]


def _metric_table(summaries: Sequence[Summary], metrics: Sequence[str]) -> Html:
  """A line per metric, a column per variant."""
  about = [element('td', metric, element('span', tables.unit(metric), class_='note')) for metric in metrics]
  rows = [(cell, *(_cell(item, metric) for item in summaries)) for cell, metric in zip(about, metrics)]
  return table(('metric', *map(tables.column_name, summaries)), rows)


def _cell(summary: Summary, metric: str) -> Html:
  mean, difference = tables.mean_text(summary, metric), tables.difference_text(summary, metric)
  if mean in (tables.FAILED, tables.NOTHING):
    return element('td', mean, class_='failed')
  kind = 'note clear' if difference.endswith('*') else 'note'
  return element('td', mean, element('span', difference, class_=kind) if difference else '', class_='number')


def _stages(found: Findings) -> list[Html]:
  """Cost of each stage of each variant, means over seeds."""
  rows = []
  for item in found.summaries:
    names = [run.name for run in found.runs if run.variant == item.variant and run.name in found.done]
    for stages in zip(*(found.done[name]['stages'] for name in names)):
      keys = ('steps', 'tokens', 'flops', 'seconds')
      steps, tokens, flops, seconds = (statistics.fmean(stage[key] for stage in stages) for key in keys)
      speed = f'{tokens / seconds:,.0f}' if seconds else ''
      texts = (f'{steps:,.0f}', f'{tokens:,.0f}', f'{flops / 1e12:.4g}', f'{seconds:,.1f}', speed)
      rows.append((item.variant, stages[0]['name'], *(element('td', text, class_='number') for text in texts)))
  head = ('variant', 'stage', 'steps', 'tokens', 'TFLOP', 'seconds', 'tokens/s')
  return [note(COSTS), table(head, rows)] if rows else []


def _images(sheet: Sheet) -> Html:
  rows = []
  for skill, prompt, groups in sheet.rows:
    cells = [[image_tag(item.pixels, item.about, item.right) for item in group] for group in groups]
    about = element('td', prompt, element('span', skill, class_='note'))
    rows.append((about, *(element('td', *cell, class_='images') for cell in cells)))
  return table(('prompt', *sheet.variants), rows)
