"""One page about a run, in one file: what it scored, how it trained, what it draws and answers, where things are."""

import base64
import dataclasses
import html
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from janus_jax.reporting.charts import Series, Span, line_chart
from janus_jax.toy.scores import CONTROL_NOTE, INTERVAL_NOTE, interval_text, line_name
from janus_jax.toy.test_set import DRAWING_GROUPS, QUESTION_GROUPS

BLUE, PURPLE, ORANGE, GREY = '#1f6feb', '#8250df', '#c4601a', '#57606a'
KIND_COLOURS = {'understanding': BLUE, 'text': PURPLE, 'generation': ORANGE}
# Pictures per skill and group, and scenes per subject and group, that the page shows.
DRAWINGS_SHOWN, SCENES_SHOWN = 10, 6

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2328; max-width: 1180px; margin: 0 auto; padding: 24px; }
h1 { margin: 0 0 4px; font-size: 26px; } h2 { margin: 40px 0 12px; font-size: 20px; border-bottom: 1px solid #d0d7de; }
h3 { margin: 18px 0 6px; font-size: 15px; } p { margin: 6px 0; } .note, figcaption { color: #57606a; font-size: 13px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 12px; margin: 20px 0; }
.tile { border: 1px solid #d0d7de; border-left: 5px solid #8c959f; border-radius: 6px; padding: 10px 12px; }
.tile.met { border-left-color: #28a03c; } .tile.missed { border-left-color: #dc1e28; }
.tile b { display: block; font-size: 28px; line-height: 1.3; } .tile small { font-size: 15px; font-weight: 400; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(480px, 1fr)); gap: 16px; }
svg { width: 100%; background: #fff; border: 1px solid #d0d7de; border-radius: 6px; }
svg text { font: 12px system-ui, sans-serif; fill: #57606a; }
svg text.title { font-weight: 600; fill: #1f2328; font-size: 13px; }
svg .grid { stroke: #eaeef2; } svg .curve { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
svg .span0 { fill: #f6f8fa; } svg .span1 { fill: #ebf1f7; }
.row { display: flex; flex-wrap: wrap; gap: 8px 24px; align-items: flex-start; }
table { border-collapse: collapse; margin: 8px 0; } th { font-weight: 600; background: #f6f8fa; }
th, td { border: 1px solid #d0d7de; padding: 4px 10px; text-align: left; font-size: 14px; }
td.score { min-width: 150px; white-space: nowrap; font-variant-numeric: tabular-nums; }
.pictures { display: flex; flex-wrap: wrap; gap: 10px; } figure { margin: 0; width: 100px; }
figure img, .scene img { width: 92px; height: 92px; image-rendering: pixelated; border-radius: 3px; }
figure img { border: 4px solid #dc1e28; box-sizing: content-box; } figure.right img { border-color: #28a03c; }
figcaption { line-height: 1.25; }
.scenes { display: grid; grid-template-columns: repeat(auto-fill, minmax(350px, 1fr)); gap: 12px; }
.scene { display: flex; gap: 10px; border: 1px solid #d0d7de; border-radius: 6px; padding: 8px; font-size: 13px; }
.scene .wrong { color: #b3141d; } .scene .right::before { content: "\\2713 "; color: #28a03c; }
.scene .wrong::before { content: "\\2717 "; }
pre { background: #f6f8fa; padding: 12px; overflow: auto; font-size: 12px; } code { font-size: 13px; }
"""


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """What is reported.

  Attributes:
    title: of the page.
    metrics: the lines of metrics.jsonl: step, stage, time (seconds since the epoch), and values by name.
    scores: scores.json as `evaluate` writes it; empty if nothing was scored.
    drawings: uint8[n, size, size, 3], one per case of scores['drawing_cases'].
    scenes: uint8[m, size, size, 3], the images that scores['question_cases'] refer to.
    config: of the run.
    model: its architecture.
    revision: of the code.
    paths: name to path.
    seconds: name of a part to its wall time.
  """

  title: str
  metrics: Sequence[Mapping[str, Any]]
  scores: Mapping[str, Any]
  drawings: np.ndarray
  scenes: np.ndarray
  config: Mapping[str, Any]
  model: Mapping[str, Any]
  revision: str
  paths: Mapping[str, str]
  seconds: Mapping[str, float]


def render(run: Run) -> str:
  """The page: HTML with everything inside it, no scripts."""
  sections = [
    ('', _head(run)),
    ('Training', _training(run)),
    ('Scores', _scores(run.scores) if run.scores else ''),
    ('Drawings', _drawings(run) if run.scores else ''),
    ('Answers', _answers(run) if run.scores else ''),
    ('Configuration', _configuration(run)),
  ]
  body = ''.join((f'<h2>{title}</h2>' if title else '') + content for title, content in sections if content)
  return (
    f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(run.title)}</title>'
    f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>{body}</body></html>\n'
  )


def _text(value: Any) -> str:
  return html.escape(str(value))


def _percent(score: Mapping[str, Any]) -> str:
  return f'{score["percent"]:.1f} %'


def _interval(score: Mapping[str, Any]) -> str:
  """'' for scores that were written without."""
  return interval_text(score.get('interval'))


def _head(run: Run) -> str:
  tiles = ''
  for goal in run.scores.get('goals', ()):
    state = {True: 'met', False: 'missed', None: ''}[goal['met']]
    aim = f'goal {goal["goal"]:.0f} %, {state}' if state else 'no goal'
    tiles += (
      f'<div class="tile {state}">{_text(goal["name"])}<b>{_percent(goal)} <small>{_interval(goal)}</small></b>'
      '<span class="note">'
      f'{goal["right"]} of {goal["total"]} right; {aim}; control {goal["control_percent"]:.1f} %</span></div>'
    )
  note = ''
  if tiles:
    note = (
      '<p class="note">On images and prompts that never occurred in training; new combinations are of things that '
      f'training never shows together.<br>{_text(INTERVAL_NOTE)}.<br>{_text(CONTROL_NOTE)}.</p>'
    )
  files = _table(('', 'path'), [(_text(name), f'<code>{_text(path)}</code>') for name, path in run.paths.items()])
  times = _table(('part', 'seconds'), [(_text(name), f'{value:.0f}') for name, value in run.seconds.items()])
  revision = f'<p class="note">revision <code>{_text(run.revision)}</code></p>' if run.revision else ''
  return (
    f'<h1>{_text(run.title)}</h1>{revision}<div class="tiles">{tiles}</div>{note}<div class="row">{files}{times}</div>'
  )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Of cells that are HTML; '' without rows."""
  if not rows:
    return ''
  lines = [''.join(f'<td>{cell}</td>' for cell in row) for row in rows]
  names = ''.join(f'<th>{name}</th>' for name in head)
  return f'<table><tr>{names}</tr>{"".join(f"<tr>{line}</tr>" for line in lines)}</table>'


def stages(metrics: Sequence[Mapping[str, Any]]) -> list[Span]:
  """The stages of a run from the steps that were logged in them."""
  spans: list[Span] = []
  for line in metrics:
    if spans and spans[-1].name == line['stage']:
      spans[-1] = dataclasses.replace(spans[-1], end=line['step'])
    else:
      spans.append(Span(line['stage'], spans[-1].end if spans else 0, line['step']))
  return spans


def _series(metrics: Sequence[Mapping[str, Any]], key: str, name: str, colour: str, dashed: bool = False) -> Series:
  points = tuple((line['step'], line[key]) for line in metrics if line.get(key) is not None)
  return Series(name, points, colour, dashed)


def _training(run: Run) -> str:
  spans, metrics = stages(run.metrics), run.metrics
  losses = [_series(metrics, f'loss/{kind}', kind, colour) for kind, colour in KIND_COLOURS.items()]
  held_out = [_series(metrics, f'held_out/{kind}', kind, colour) for kind, colour in KIND_COLOURS.items()]
  single = (
    ('learning rate', 'learning_rate', BLUE),
    ('gradient norm', 'grad_norm', GREY),
    ('tokens per second', 'tokens_per_second', GREY),
    ('packing: share of tokens that are not padding', 'packing', GREY),
  )
  charts = [
    line_chart('loss per target', losses, spans, log=True),
    line_chart('loss on held-out data', held_out, spans, log=True),
    *(line_chart(title, [_series(metrics, key, '', colour)], spans) for title, key, colour in single),
  ]
  return f'<div class="charts">{"".join(charts)}</div>' if any(charts) else ''


def _scores(scores: Mapping[str, Any]) -> str:
  settings = ', '.join(f'{name} {value}' for name, value in scores.get('settings', {}).items())
  return (
    f'<p class="note">{_text(settings)}</p><div class="row">'
    + _score_table('questions', scores['questions'], QUESTION_GROUPS)
    + _score_table('drawings', scores['drawings'], DRAWING_GROUPS)
    + '</div>'
  )


def _score_table(title: str, scores: Sequence[Mapping[str, Any]], groups: Sequence[str]) -> str:
  """A line per sort, a column per group, then the control over all groups."""
  by_key = {(*score['name'], score['group']): score for score in scores}
  names = dict.fromkeys(tuple(score['name']) for score in scores)
  lines = ''
  for name in names:
    line = [by_key.get((*name, group)) for group in groups]
    control = sum(score['control'] for score in line if score) / sum(score['total'] for score in line if score)
    cells = ''.join(_score_cell(score) for score in line)
    lines += f'<tr><td>{_text(line_name(name))}</td>{cells}<td>{100 * control:.1f} %</td></tr>'
  head = ''.join(f'<th>{_text(group.replace("_", " "))}</th>' for group in groups)
  return f'<table><tr><th>{title}</th>{head}<th>control</th></tr>{lines}</table>'


def _score_cell(score: Mapping[str, Any] | None) -> str:
  """A figure on a bar of its length."""
  if score is None:
    return '<td></td>'
  bar = f'background: linear-gradient(90deg, #cfe8d5 {score["percent"]:.1f}%, transparent 0)'
  note = f'<span class="note">{_interval(score)} of {score["total"]}</span>'
  return f'<td class="score" style="{bar}">{_percent(score)} {note}</td>'


def png_uri(pixels: np.ndarray) -> str:
  """uint8[h, w, 3] as a data: address."""
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, 'PNG')
  return f'data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'


def _drawings(run: Run) -> str:
  rows: dict[tuple[str, str], list[int]] = {}
  cases = run.scores['drawing_cases']
  for index, case in enumerate(cases):
    rows.setdefault((case['skill'], case['group']), []).append(index)
  text = '<p class="note">Green: exactly what was asked for. Under a wrong one stands what is wrong with it.</p>'
  for key, members in rows.items():
    right = sum(cases[index]['right'] for index in members)
    name = ', '.join(key).replace('_', ' ')
    text += f'<h3>{_text(name)}: {right} of {len(members)} right</h3>'
    figures = [_drawing(cases[index], run.drawings[index]) for index in members[:DRAWINGS_SHOWN]]
    text += f'<div class="pictures">{"".join(figures)}</div>'
  return text


def _drawing(case: Mapping[str, Any], pixels: np.ndarray) -> str:
  prompt = _text(case['prompt'])
  reason = '' if case['right'] else f'<br><i>{_text(case["reason"])}</i>'
  kind = ' class="right"' if case['right'] else ''
  return f'<figure{kind}><img src="{png_uri(pixels)}" alt="{prompt}"><figcaption>{prompt}{reason}</figcaption></figure>'


def _answers(run: Run) -> str:
  text = '<p class="note">Answered greedily. After a wrong answer stands a right one, in brackets.</p>'
  for (subject, group), scenes in _grouped(run.scores['question_cases']).items():
    text += f'<h3>{_text(line_name((subject,)))}, {group.replace("_", " ")}</h3><div class="scenes">'
    for image, cases in list(scenes.items())[:SCENES_SHOWN]:
      lines = ''.join(_question(case) for case in cases)
      text += f'<div class="scene"><img src="{png_uri(run.scenes[image])}" alt=""><div>{lines}</div></div>'
    text += '</div>'
  return text


def _grouped(cases: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], dict[int, list[Mapping[str, Any]]]]:
  """(subject, group) -> number of the image -> the questions about it."""
  found: dict[tuple[str, str], dict[int, list[Mapping[str, Any]]]] = {}
  for case in cases:
    found.setdefault((case['subject'], case['group']), {}).setdefault(case['image'], []).append(case)
  return found


def _question(case: Mapping[str, Any]) -> str:
  kind = 'right' if case['right'] else 'wrong'
  # A description has many right answers; one is enough to see what was meant.
  expected = '' if case['right'] else f' <span class="note">({_text(case["expected"][0])})</span>'
  return f'<div>{_text(case["question"])} <b class="{kind}">{_text(case["answer"]) or "&mdash;"}</b>{expected}</div>'


def _configuration(run: Run) -> str:
  return ''.join(_configuration_parts(run))


def _configuration_parts(run: Run) -> Iterator[str]:
  found = run.config.get('stages', {})
  names = [name for name in run.config.get('run', found) if name in found]
  fields = ('steps', 'batch_size', 'learning_rate', 'schedule', 'ratio', 'trainable')
  rows = []
  for name in names:
    values = [found[name].get(field, '') for field in fields]
    cells = [', '.join(map(str, value)) if isinstance(value, list | tuple) else str(value) for value in values]
    rows.append([_text(name), *map(_text, cells)])
  yield _table(('stage', *(field.replace('_', ' ') for field in fields)), rows)
  for title, values in (('model', run.model), ('config', run.config)):
    if values:
      yield f'<details><summary>{title}</summary><pre>{_text(json.dumps(values, indent=2))}</pre></details>'
