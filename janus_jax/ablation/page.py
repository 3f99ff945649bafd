"""The report of an ablation as one page: HTML with everything inside it, no scripts, nothing fetched."""

import dataclasses
import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from janus_jax.ablation import tables
from janus_jax.ablation.sheets import Picture, Sheet
from janus_jax.ablation.tables import Summary
from janus_jax.reporting.drawing import Drawing, to_svg
from janus_jax.toy.run_page import STYLE, png_uri

OWN_STYLE = """
.charts { grid-template-columns: repeat(auto-fit, minmax(520px, 1fr)); } .charts svg { height: auto; }
td, th { vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td .difference { color: #57606a; font-size: 12px; display: block; } td .difference.clear { color: #1f2328;
font-weight: 600; } td.failed { background: repeating-linear-gradient(45deg, #fff, #fff 5px, #e4e4e4 5px,
#e4e4e4 7px); font-weight: 600; } .scroll { overflow-x: auto; }
td.prompt { min-width: 130px; }
td.pictures { white-space: nowrap; display: table-cell; }
td.pictures img { width: 44px; height: 44px; margin-right: 3px; image-rendering: pixelated; }
td.pictures img { border: 3px dashed #b3141d; }
td.pictures img.right { border: 3px solid #28a03c; }
@media print { .charts { display: block; } svg, tr { break-inside: avoid; } }
"""


@dataclasses.dataclass(frozen=True, eq=False)
class Content:
  """What stands on the page.

  Attributes:
    title: of the page.
    summaries: of the variants.
    metrics: shown first.
    charts: of the metrics.
    curves: of losses.
    sheet: drawings; None without.
    stages: rows of the table of costs, as `report.stage_rows` gives them.
    changes: variant -> what its config changes.
    base: the config of the ablation's base.
    seeds: of all variants.
    total: runs.
    done: runs that are finished and did not fail.
    forked: of these, how many began from a checkpoint of another run.
  """

  title: str
  summaries: Sequence[Summary]
  metrics: Sequence[str]
  charts: Sequence[Drawing]
  curves: Sequence[Drawing]
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
  rest = [name for name in tables.all_metrics(content.summaries) if name not in (*content.metrics, *tables.COSTS)]
  costs = [name for name in tables.COSTS if name in tables.all_metrics(content.summaries)]
  sections = [
    ('', _head(content)),
    ('What was compared', _metric_table(content.summaries, content.metrics) + _charts(content.charts)),
    ('What it cost', _metric_table(content.summaries, costs) + _stages(content.stages)),
    ('Learning curves', _charts(content.curves)),
    ('Drawings', _drawings(content.sheet)),
    ('What each variant changes', _changes(content.changes, content.base)),
    ('All other metrics', _folded('table', _metric_table(content.summaries, rest)) if rest else ''),
  ]
  body = ''.join((f'<h2>{title}</h2>' if title else '') + text for title, text in sections if text)
  return (
    f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(content.title)}</title>'
    f'<meta name="viewport" content="width=device-width"><style>{STYLE}{OWN_STYLE}</style></head><body>{body}</body>'
    '</html>\n'
  )


def _text(value: Any) -> str:
  return html.escape(str(value))


def _head(content: Content) -> str:
  baseline = next(summary.variant for summary in content.summaries if summary.is_baseline)
  problems = [summary for summary in content.summaries if not summary.is_whole]
  items = ''.join(f'<li><b>{_text(item.variant)}</b>: {_text(tables.status(item))}</li>' for item in problems)
  seeds = ', '.join(map(str, content.seeds))
  return (
    f'<h1>{_text(content.title)}</h1><p>{content.done} of {content.total} runs: {len(content.summaries)} variants, '
    f'seeds {seeds}; baseline <b>{_text(baseline)}</b>. {content.forked} runs began from the checkpoint of a run that '
    f'was the same up to there.</p><p class="note">{_text(tables.LEGEND.replace(chr(92), ""))} With one seed there is '
    f'no interval. All runs answered the same questions and drew the same prompts with the same seeds; held-out losses '
    f"are on the same batches of the baseline's last stage.</p>" + (f'<ul>{items}</ul>' if items else '')
  )


def _metric_table(summaries: Sequence[Summary], metrics: Sequence[str]) -> str:
  """A line per metric, a column per variant."""
  head = ''.join(f'<th>{_text(item.variant)}{" (baseline)" if item.is_baseline else ""}</th>' for item in summaries)
  lines = ''
  for metric in metrics:
    lines += f'<tr><td>{_text(metric)}</td>{"".join(_cell(item, metric) for item in summaries)}</tr>'
  return f'<div class="scroll"><table><tr><th></th>{head}</tr>{lines}</table></div>' if lines else ''


def _cell(summary: Summary, metric: str) -> str:
  mean, difference = tables.mean_text(summary, metric), tables.difference_text(summary, metric)
  if mean in (tables.FAILED, tables.NOTHING):
    return f'<td class="failed">{mean}</td>'
  clear = ' clear' if difference.endswith('*') else ''
  below = f'<span class="difference{clear}">{_text(difference)}</span>' if difference else ''
  return f'<td class="number">{_text(mean)}{below}</td>'


def _charts(charts: Sequence[Drawing]) -> str:
  return f'<div class="charts">{"".join(map(to_svg, charts))}</div>' if charts else ''


def _stages(stages: Sequence[Sequence[str]]) -> str:
  if not stages:
    return ''
  names = ('variant', 'stage', 'steps', 'tokens', 'teraflops', 'seconds', 'tokens per second')
  head = ''.join(f'<th>{name}</th>' for name in names)
  lines = ''
  for variant, stage, *numbers in stages:
    cells = ''.join(f'<td class="number">{text}</td>' for text in numbers)
    lines += f'<tr><td>{_text(variant)}</td><td>{_text(stage)}</td>{cells}</tr>'
  note = (
    '<p class="note">As if each run had been trained alone, from its first step. Seconds are of training, without '
    'compiling, scoring and saving.</p>'
  )
  return f'{note}<table><tr>{head}</tr>{lines}</table>'


def _drawings(sheet: Sheet | None) -> str:
  if sheet is None:
    return ''
  head = ''.join(f'<th>{_text(name)}</th>' for name in sheet.variants)
  lines = ''
  for skill, prompt, pictures in sheet.rows:
    cells = ''.join(
      f'<td class="pictures">{"".join(map(_picture, pictures.get(name, ())))}</td>' for name in sheet.variants
    )
    lines += f'<tr><td class="prompt">{_text(prompt)}<br><span class="note">{_text(skill)}</span></td>{cells}</tr>'
  note = '<p class="note">A picture per seed. Whole green frame: exactly what was asked for. Dashed red frame: not.</p>'
  return f'{note}<div class="scroll"><table><tr><th>prompt</th>{head}</tr>{lines}</table></div>'


def _picture(picture: Picture) -> str:
  kind = ' class="right"' if picture.right else ''
  about = _text(f'seed {picture.seed}' + ('' if picture.right else f': {picture.reason}'))
  return f'<img{kind} src="{png_uri(picture.pixels)}" alt="{about}" title="{about}">'


def _changes(changes: Mapping[str, Sequence[str]], base: Mapping[str, Any]) -> str:
  lines = ''.join(
    f'<h3>{_text(name)}</h3><pre>{_text(chr(10).join(found) or "nothing")}</pre>' for name, found in changes.items()
  )
  return lines + _folded('the whole base config', f'<pre>{_text(json.dumps(base, indent=2))}</pre>')


def _folded(title: str, content: str) -> str:
  return f'<details><summary>{title}</summary>{content}</details>'
