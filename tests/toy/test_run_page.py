"""The page about a run, its charts, and the scores that stand on it."""

import base64
import io
import re

import numpy as np
import pytest
from html_pages import parse
from PIL import Image

from janus_jax.reporting.charts import Boundary
from janus_jax.toy import run_page, scores
from janus_jax.toy.run_page import RunReport
from janus_jax.toy.scores import Score
from janus_jax.toy.test_set import GenerationCase, QuestionCase


def score(name, group, right, total, control):
  """Each case on a prompt or an image of its own."""
  units = {(name, group, number): (int(number < right), 1) for number in range(total)}
  return Score(name=name, group=group, units=units, control=control)


QUESTIONS = [
  score(('one', 'colour'), 'new_scene', 9, 10, 2),
  score(('one', 'colour'), 'new_combination', 4, 10, 1),
  score(('one', 'shape'), 'new_scene', 10, 10, 2),
  score(('one', 'size'), 'new_scene', 7, 10, 5),
  score(('two', 'colour'), 'new_scene', 1, 10, 0),
  score(('digit', 'digit'), 'new_scene', 19, 20, 2),
]
GENERATIONS = [
  score(('single_object',), 'seen', 10, 10, 3),
  score(('single_object',), 'new_phrasing', 8, 10, 3),
  score(('colours',), 'new_phrasing', 10, 10, 0),
  score(('attributes',), 'new_phrasing', 9, 10, 0),
  score(('attributes',), 'new_combination', 1, 10, 0),
  score(('counting',), 'new_phrasing', 0, 10, 0),
  score(('digit',), 'seen', 10, 10, 1),
  score(('digit',), 'new_phrasing', 8, 10, 1),
]


def question(image, answer, expected, content='one'):
  case = {'content': content, 'kind': 'colour', 'group': 'new_scene', 'image': image, 'question': 'What colour is it?'}
  return {**case, 'answer': answer, 'expected': [expected], 'right': answer == expected}


def generation(prompt, right, reason=''):
  return {'skill': 'digit', 'group': 'seen', 'prompt': prompt, 'right': right, 'reason': reason}


def run_of(**changes) -> RunReport:
  rng = np.random.default_rng(0)
  found = {
    'target_scores': [scores.score_dict(item) for item in scores.target_scores(QUESTIONS, GENERATIONS)],
    'questions': [scores.score_dict(item) for item in QUESTIONS],
    'generations': [scores.score_dict(item) for item in GENERATIONS],
    'settings': {'cfg_weight': 1.5},
    'question_cases': [question(0, 'red', 'red'), question(1, 'pink', 'blue'), question(0, '<b>', 'black')],
    'generation_cases': [generation('the digit one', True), generation('draw the digit two', False, 'reads as 7')],
  }
  lines = [{'step': s, 'stage': 'stage1' if s < 3 else 'stage2', 'loss/text': 5.0 / s} for s in range(1, 6)]
  values = {
    'title': 'A & B',
    'metrics': lines,
    'scores': found,
    'generations': rng.integers(256, size=(2, 4, 4, 3)).astype(np.uint8),
    'asked': rng.integers(256, size=(2, 4, 4, 3)).astype(np.uint8),
    'config': {'run': ['stage2'], 'stages': {'stage2': {'steps': 77, 'ratio': [2, 3, 5]}}},
    'model': {'image_token_id': 5},
    'tables': {'run': {'revision': 'abc-dirty', 'seed': '7'}, 'paths': {'export': '/x/<y>'}},
  }
  return RunReport(**{**values, **changes})


def test_scores_along_the_way_are_charts_and_right_images_stand_before_wrong_ones():
  scored = [
    {'step': step, 'stage': 'stage1', 'scores/new_phrasing/counting': 20.0 * step, 'scores/new_phrasing/digit': 90.0}
    for step in (1, 3)
  ]
  prompts = ['a cross', 'a ring', 'a circle']
  cases = [generation(prompt, right) for prompt, right in zip(prompts, (False, True, True))]
  run = run_of()
  run = run_of(
    metrics=[*run.metrics, *scored],
    scores={**run.scores, 'generation_cases': cases},
    generations=np.zeros((3, 4, 4, 3), np.uint8),
  )
  page = run_page.render_run(run)
  titles = [title for title, _, _ in run_page.EMERGENCE if title.startswith('images') and title in page]
  assert titles == ['images of new phrasings: one object', 'images of new phrasings: several objects']
  assert page.index('>a ring<') < page.index('>a circle<') < page.index('>a cross<')


def test_the_page_holds_everything_and_fetches_nothing():
  run = run_of()
  page = run_page.render_run(run)
  found = parse(page)
  charts = [link for link in found.links if link.startswith('data:image/svg+xml;base64,')]
  assert len(charts) == 1
  files = [base64.b64decode(link.removeprefix('data:image/png;base64,')) for link in found.links if link not in charts]
  shown = [np.asarray(Image.open(io.BytesIO(file))) for file in files]
  assert [image.tolist() for image in shown] == [image.tolist() for image in (*run.generations, *run.asked)]
  assert not re.search(r'https?:|url\(|@import', page)
  assert found.tags['script'] == found.tags['link'] == 0
  text = ' '.join(found.text)
  expected = (
    'A & B',
    'abc-dirty',
    '/x/<y>',
    '77',
    '2, 3, 5',
    'draw the digit two',
    'reads as 7',
    '(blue)',
    '86.7 %',
    '[69, 95]',
  )
  assert [item for item in expected if item not in text] == []
  # What a model answered is text and not a tag.
  assert '<b>' in text


def test_right_and_wrong_are_told_apart():
  page = run_page.render_run(run_of())
  assert re.search(r'<img class="pixels right" [^>]*alt="the digit one"', page)
  assert re.search(r'<img class="pixels wrong" [^>]*alt="draw the digit two"', page)
  assert '<strong class="right">red</strong>' in page
  assert '<strong class="wrong">pink</strong>' in page


def test_prompts_that_one_run_alone_draws_right_stand_beside_each_other():
  run = run_of()
  prompts = ['a cross', 'a ring', 'a circle']
  own = [generation(prompt, right) for prompt, right in zip(prompts, (True, True, False))]
  before = [generation(prompt, right) for prompt, right in zip(prompts, (False, True, False))]
  images = np.zeros((3, 4, 4, 3), np.uint8)
  halved = [{**item, 'percent': item['percent'] / 2} for item in run.scores['generations']]
  others = {'before': ({**run.scores, 'generations': halved, 'generation_cases': before}, images)}
  page = run_page.render_run(run_of(scores={**run.scores, 'generation_cases': own}, generations=images, others=others))
  section = page[page.index('Beside others') : page.index('>Scores<')]
  assert re.findall(r'<figcaption>([^<]*)', section) == ['a cross']
  assert re.findall(r'class="pixels (right|wrong)" [^>]*alt="(before|this run)"', section) == [
    ('wrong', 'before'),
    ('right', 'this run'),
  ]
  assert re.search(r'digit, new phrasing.*?40\.0 %.*?80\.0 %', section, re.DOTALL)
  assert 'Beside others' not in run_page.render_run(run)


def test_a_run_without_scores_or_curves_still_has_a_page():
  found = parse(run_page.render_run(run_of(scores={}, metrics=[], config={}, model={})))
  assert found.tags['img'] == found.tags['h2'] == 0


def test_stages_follow_each_other():
  lines = [{'step': step, 'stage': name} for step, name in ((5, 'a'), (10, 'a'), (20, 'b'), (30, 'b'), (40, 'a'))]
  assert run_page.stages(lines) == [Boundary('a', 10), Boundary('b', 30), Boundary('a', 40)]
  assert run_page.stages([]) == []


def test_charts_have_units():
  values = {'loss/text': 2.0, 'held_out/text': 1.0, 'learning_rate': 1e-3, 'grad_norm': 0.5, 'packing': 0.9}
  lines = [{'step': step, 'stage': 'a', 'tokens_per_second': 100.0 * step, **values} for step in (1, 2)]
  page = run_page.render_run(run_of(metrics=lines))
  found = [base64.b64decode(text).decode() for text in re.findall('data:image/svg.xml;base64,([^"]*)', page)]
  units = ('nats per target', 'nats per target', 'learning rate', 'L2 norm', 'tokens/s', 'fraction of tokens')
  for chart, unit in zip(found, units, strict=True):
    assert f'>{unit}</text>' in chart
    assert '>steps</text>' in chart


def test_target_scores_count_what_training_never_had():
  listed = scores.target_scores(QUESTIONS, GENERATIONS)
  found = {item.name: (item.right, item.total, item.control, item.met) for item in listed}
  assert found == {
    'questions about one object': (26, 30, 9, False),
    'questions about one object: colour': (9, 10, 2, True),
    'questions about one object: shape': (10, 10, 2, True),
    'questions about one object: size': (7, 10, 5, False),
    'questions about one object, new combinations': (4, 10, 1, None),
    'questions about digits': (19, 20, 2, True),
    'generations of one object, new phrasings': (27, 30, 3, True),
    'generations of one object, new combinations': (1, 10, 0, None),
    'generations of digits, new phrasings': (8, 10, 1, False),
  }


def test_nothing_measured_is_no_target_met():
  assert {item.met for item in scores.target_scores([], [])} == {False, None}


def test_tables_give_every_figure():
  printed = scores.tables(QUESTIONS, GENERATIONS)
  lines = [' '.join(line.split()) for line in printed.splitlines()]
  for expected in (
    'target scores measured [95 %] control target',
    'questions about one object 26/30 86.7 % [69, 95] 30.0 % 90 % missed by 3.3',
    'questions about digits 19/20 95.0 % [74, 100] 10.0 % 95 % met',
    'one object: colour 9/10 90.0 % [54, 99] 4/10 40.0 % [14, 73] 15.0 %',
    'two objects: colour 1/10 10.0 % [1, 46] 0.0 %',
    'all 46/60 76.7 % [64, 86] 4/10 40.0 % [14, 73] 17.1 %',
    'single object 10/10 100.0 % [66, 100] 8/10 80.0 % [44, 96] 30.0 %',
    'all 20/20 100.0 % [82, 100] 35/50 70.0 % [55, 82] 1/10 10.0 % [1, 46] 10.0 %',
    "control: each answer or generated image scored against another item's question or prompt",
    '[95 %]: 95 % interval',
  ):
    assert [line for line in lines if line.startswith(expected)], expected


def test_swapped_ones_are_others_of_the_same_key():
  keys = ['a', 'b', 'a', 'c', 'a', 'b', 'a']
  swapped = scores.swap_within(keys, 3)
  assert sorted(swapped) == list(range(7))
  assert [keys[i] for i in swapped] == keys
  assert [i for i, other in enumerate(swapped) if i == other] == [3]
  assert scores.swap_within(keys, 3) == swapped


def test_counts_keep_every_key_and_every_unit_apart():
  cases = [
    GenerationCase(*key, prompt, 1) for key, prompt in (('xg', 'p'), ('yg', 'p'), ('xg', 'q'), ('xh', 'p'), ('xg', 'p'))
  ]
  found = scores.count(cases, [True, False, True, False, False], [False, True, True, True, False])
  assert found == [
    Score(name=('x',), group='g', units={'p': (1, 2), 'q': (1, 1)}, control=1),
    Score(name=('y',), group='g', units={'p': (0, 1)}, control=1),
    Score(name=('x',), group='h', units={'p': (0, 1)}, control=1),
  ]
  assert [(item.right, item.total) for item in found] == [(2, 3), (0, 1), (0, 1)]
  together = scores.combine(found)
  assert (together.units, together.control) == ({'p': (1, 4), 'q': (1, 1)}, 3)


def test_prompts_and_images_are_the_units():
  prompts = ('the digit one', 'draw the digit one', 'the digit one')
  cases = [GenerationCase('digit', 'seen', prompt, 1) for prompt in prompts]
  (found,) = scores.count(cases, [True, False, False], [False] * 3)
  assert found.units == {'the digit one': (1, 2), 'draw the digit one': (0, 1)}
  images = [np.full((2, 2, 3), value, np.uint8) for value in (0, 1, 0)]
  cases = [
    QuestionCase('one', kind, 'new_scene', image, '?', ('red',)) for image in images for kind in ('colour', 'size')
  ]
  together = scores.combine(scores.count_questions(cases, [True] * 5 + [False], [False] * 6))
  assert sorted(together.units.values()) == [(2, 2), (3, 4)]


def test_a_score_as_json():
  found = scores.score_dict(score(('digit',), 'new_phrasing', 19, 20, 2))
  low, high = found.pop('interval')
  assert found == {
    'name': ('digit',), 'group': 'new_phrasing', 'right': 19, 'total': 20, 'control': 2, 'percent': 95.0,
    'control_percent': 10.0, 'units': 20,
  }  # fmt: skip
  assert (low, high) == pytest.approx((74.6, 99.2), abs=0.1)
  assert scores.score_dict(scores.target_scores([], [])[0])['interval'] is None
