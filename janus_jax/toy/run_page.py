"""A page about a run: its scores, curves, generated images, answers and paths."""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from janus_jax.data.examples import TASKS
from janus_jax.reporting.charts import Axis, Boundary, Figure, Series, line_chart
from janus_jax.reporting.page import Html, charts, element, folded, grid, image_tag, note, page, table
from janus_jax.toy.image_statistics import statistics_tables
from janus_jax.toy.scores import CONTROL_NOTE, INTERVAL_NOTE, STATISTICS_NOTE, interval_text, line_name, percent
from janus_jax.toy.test_set import GENERATION_GROUPS, QUESTION_GROUPS

# Right and wrong images per skill and group each, and images asked about per content and group, that the page shows.
GENERATIONS_SHOWN, ASKED_SHOWN = 10, 6
STAGE_FIELDS = ('steps', 'batch_size', 'learning_rate', 'schedule', 'ratio', 'trainable')
NOTES = (
  'On images and prompts that never occurred in training; new combinations are of things that training never shows '
  'together.',
  f'{INTERVAL_NOTE}.',
  f'{CONTROL_NOTE}.',
)
# Scores along the way (`runs.callbacks.ToyScores`): (title of a chart, metrics), by what is asked for.
EMERGENCE = (
  ('images of new phrasings: one object', 'scores/new_phrasing/', ('single_object', 'colours', 'attributes', 'digit')),
  (
    'images of new phrasings: several objects',
    'scores/new_phrasing/',
    ('counting', 'two_objects', 'position', 'colour_binding'),
  ),
  ('images of new combinations', 'scores/new_combination/', ('attributes', 'counting', 'position', 'colour_binding')),
  *(
    (f'questions about {content}', f'scores/new_scene/{content.replace(" ", "_")}:_', kinds)
    for content, kinds in (
      ('one object', ('colour', 'shape', 'size', 'count')),
      ('several alike', ('colour', 'shape', 'size', 'count')),
      ('two objects', ('colour', 'shape', 'size', 'where', 'beside')),
    )
  ),
)
# Prompts of a skill whose images of several runs stand beside each other.
COMPARED_SHOWN = 6
# (title, metric, label of the y axis) of the charts with one curve.
CURVES = (
  ('reward of samples', 'reward', 'reward'),
  ('groups of samples whose rewards are alike', 'groups_alike', 'fraction of groups'),
  ('divergence from the model before the stage', 'divergence', 'nats per target'),
  ('log-probability by which the chosen sample is ahead', 'margin', 'nats'),
  ('learning rate', 'learning_rate', 'learning rate'),
  ('gradient norm', 'grad_norm', 'L2 norm'),
  ('throughput', 'tokens_per_second', 'tokens/s'),
  ('packing: fraction of tokens that are not padding', 'packing', 'fraction of tokens'),
)


@dataclasses.dataclass(frozen=True, eq=False)
class RunReport:
  """Content of the page.

  Attributes:
    title: heading.
    metrics: the lines of metrics.jsonl: step, stage, time (seconds since the epoch), and values by name.
    scores: scores.json as `evaluate` writes it; empty if nothing was scored.
    generations: uint8[n, size, size, 3], one per case of scores['generation_cases'].
    asked: uint8[m, size, size, 3], the images that scores['question_cases'] refer to.
    config: the run's config.
    model: its architecture.
    tables: title -> {name: value} of what else is known, such as seed, machine, parameters, times and paths.
    others: name -> scores and generations of other runs, of the same prompts and questions.
  """

  title: str
  metrics: Sequence[Mapping[str, Any]]
  scores: Mapping[str, Any]
  generations: np.ndarray
  asked: np.ndarray
  config: Mapping[str, Any]
  model: Mapping[str, Any]
  tables: Mapping[str, Mapping[str, str]]
  others: Mapping[str, tuple[Mapping[str, Any], np.ndarray]] = dataclasses.field(default_factory=dict)


def render_run(run: RunReport) -> str:
  """The page."""
  scored = (('Scores', _scores), ('Generated images', _images), ('Answers', _answers))
  sections = [
    ('', _head(run)),
    ('Training', [charts(_curves(run.metrics))]),
    *([('Beside others', _beside_others(run))] if run.scores and run.others else []),
    *((title, content(run)) for title, content in scored if run.scores),
    ('Configuration', _configuration(run)),
  ]
  return page(run.title, sections)


def _head(run: RunReport) -> list[Html]:
  cards = [_card(score) for score in run.scores.get('target_scores', ())]
  tables = [table((title, ''), list(values.items())) for title, values in run.tables.items()]
  notes = [note(text) for text in NOTES] if cards else ()
  return [grid(cards, 200), *notes, element('div', *tables, class_='row')]


def _card(score: Mapping[str, Any]) -> Html:
  state = {True: 'met', False: 'missed', None: ''}[score['met']]
  target = f'target {score["target"]:.0f} %, {state}' if state else 'no target'
  return element(
    'div',
    score['name'],
    element('b', _percent(score), ' ', element('small', interval_text(score['interval']))),
    note(f'{score["right"]} of {score["total"]} right; {target}; control {score["control_percent"]:.1f} %'),
    class_=f'card {state}'.strip(),
  )


def _percent(score: Mapping[str, Any]) -> str:
  return f'{score["percent"]:.1f} %'


def stages(metrics: Sequence[Mapping[str, Any]]) -> list[Boundary]:
  """The ends of a run's stages, from the steps that were logged in them."""
  following = [*(line['stage'] for line in metrics[1:]), None]
  return [Boundary(line['stage'], line['step']) for line, stage in zip(metrics, following) if line['stage'] != stage]


def _curves(metrics: Sequence[Mapping[str, Any]]) -> list[Figure | None]:
  boundaries = stages(metrics)

  def points(key: str) -> list[tuple[float, float]]:
    return [(line['step'], line[key]) for line in metrics if line.get(key) is not None]

  def chart(title: str, names: Mapping[str, str], label: str, log: bool = False) -> Figure | None:
    series = [Series(name, points(key)) for name, key in names.items()]
    return line_chart(title, series, Axis('steps'), Axis(label, log), boundaries)

  return [
    chart('loss while training', {task: f'loss/{task}' for task in TASKS}, 'nats per target', log=True),
    chart('loss on held-out data', {task: f'held_out/{task}' for task in TASKS}, 'nats per target', log=True),
    *(
      chart(title, {name.replace('_', ' '): f'{path}{name}' for name in names}, '% right')
      for title, path, names in EMERGENCE
    ),
    *(chart(title, {'': key}, label) for title, key, label in CURVES),
  ]


def _scores(run: RunReport) -> list[Html]:
  settings = ', '.join(f'{name} {value}' for name, value in run.scores.get('settings', {}).items())
  tables = (
    _score_table('questions', run.scores['questions'], QUESTION_GROUPS),
    _score_table('generations', run.scores['generations'], GENERATION_GROUPS),
  )
  # Scores of earlier versions have no counting.
  found = statistics_tables(run.scores) if 'counting' in run.scores else ()
  more = [table(lines[0], lines[1:]) for lines in found]
  about = [note(f'{STATISTICS_NOTE}.')] if more else []
  return [note(settings), element('div', *tables, class_='row'), *about, element('div', *more, class_='row')]


def _score_table(title: str, scores: Sequence[Mapping[str, Any]], groups: Sequence[str]) -> Html:
  """A line per name, a column per group, then the control over all groups."""
  by_key = {(*score['name'], score['group']): score for score in scores}
  rows = []
  for name in dict.fromkeys(tuple(score['name']) for score in scores):
    line = [by_key.get((*name, group)) for group in groups]
    control = percent(*(sum(score[part] for score in line if score) for part in ('control', 'total')))
    rows.append((line_name(name), *map(_score_cell, line), element('td', f'{control:.1f} %', class_='number')))
  return table((title, *(group.replace('_', ' ') for group in groups), 'control'), rows)


def _score_cell(score: Mapping[str, Any] | None) -> Html:
  """A figure on a bar of its length."""
  if score is None:
    return element('td')
  bar = f'background: linear-gradient(90deg, #cfe8d5 {score["percent"]:.1f}%, transparent 0)'
  about = element('span', f'{interval_text(score["interval"])} of {score["total"]}', class_='note')
  return element('td', _percent(score), about, class_='number', style=bar)


def _beside_others(run: RunReport) -> list[Html]:
  """The scores of all runs, and the images of all for prompts on which they differ."""
  runs = {**run.others, 'this run': (run.scores, run.generations)}
  tables = []
  for part in ('generations', 'questions'):
    by_key = [{(*score['name'], score['group']): score for score in scores[part]} for scores, _ in runs.values()]
    rows = [
      (f'{line_name(key[:-1])}, {key[-1]}'.replace('_', ' '), *(_score_cell(found.get(key)) for found in by_key))
      for key in by_key[-1]
    ]
    tables.append(table((part, *runs), rows))
  found = [element('div', *tables, class_='row')]
  shown: dict[str, list[Html]] = {}
  for index, case in enumerate(run.scores['generation_cases']):
    cases = [scores['generation_cases'][index] for scores, _ in runs.values()]
    about = f'{case["skill"]}, {case["group"]}'.replace('_', ' ')
    if len({one['right'] for one in cases}) == 2 and len(shown.setdefault(about, [])) < COMPARED_SHOWN:
      images = (image_tag(pixels[index], name, one['right']) for one, (name, (_, pixels)) in zip(cases, runs.items()))
      shown[about].append(element('figure', *images, element('figcaption', case['prompt'])))
  found += [note(f'From top to bottom: {", ".join(runs)}. Green: exactly what was asked for.')]
  for about, figures in shown.items():
    found += [element('h3', about), element('div', *figures, class_='row')]
  return found


def _images(run: RunReport) -> list[Html]:
  rows: dict[str, list[tuple[Mapping[str, Any], np.ndarray]]] = {}
  for case, pixels in zip(run.scores['generation_cases'], run.generations):
    rows.setdefault(f'{case["skill"]}, {case["group"]}'.replace('_', ' '), []).append((case, pixels))
  found = [note('Whole green frame: exactly what was asked for. Under a wrong one stands what is wrong with it.')]
  for name, members in rows.items():
    right = sum(case['right'] for case, _ in members)
    found.append(element('h3', f'{name}: {right} of {len(members)} right'))
    for which in (True, False):
      shown = [member for member in members if member[0]['right'] == which][:GENERATIONS_SHOWN]
      found += [element('div', *(_figure(*member) for member in shown), class_='row')] if shown else []
  return found


def _figure(case: Mapping[str, Any], pixels: np.ndarray) -> Html:
  reason = () if case['right'] else (element('br'), element('i', case['reason']))
  caption = element('figcaption', case['prompt'], *reason)
  return element('figure', image_tag(pixels, case['prompt'], case['right']), caption)


def _answers(run: RunReport) -> list[Html]:
  """The questions about an image stand together, beside it."""
  found = [note('Answered greedily. After a wrong answer stands a right one, in brackets.')]
  groups: dict[tuple[str, str], dict[int, list[Html]]] = {}
  for case in run.scores['question_cases']:
    images = groups.setdefault((case['content'], case['group']), {})
    images.setdefault(case['image'], []).append(_question(case))
  for (content, group), images in groups.items():
    found.append(element('h3', f'{line_name((content,))}, {group.replace("_", " ")}'))
    shown = itertools.islice(images.items(), ASKED_SHOWN)
    cards = [element('div', image_tag(run.asked[number], ''), *lines, class_='card') for number, lines in shown]
    found.append(grid(cards, 350))
  return found


def _question(case: Mapping[str, Any]) -> Html:
  answer = element('strong', case['answer'] or '—', class_='right' if case['right'] else 'wrong')
  # A description has many right answers; one is enough to see what was meant.
  return element('div', f'{case["question"]} ', answer, '' if case['right'] else f' ({case["expected"][0]})')


def _configuration(run: RunReport) -> list[Html]:
  found = run.config.get('stages', {})
  rows = []
  for name in (name for name in run.config.get('run', found) if name in found):
    values = [found[name].get(field, '') for field in STAGE_FIELDS]
    rows.append((name, *(', '.join(map(str, value)) if isinstance(value, list | tuple) else value for value in values)))
  given = {title: values for title, values in (('model', run.model), ('config', run.config)) if values}
  return [
    table(('stage', *(field.replace('_', ' ') for field in STAGE_FIELDS)), rows),
    *(folded(title, element('pre', json.dumps(values, indent=2))) for title, values in given.items()),
  ]
