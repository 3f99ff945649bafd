"""The page about a run, its charts, and the scores that stand on it."""

import base64
import collections
import html.parser
import io
import re

import numpy as np
import pytest
from PIL import Image

from janus_jax.reporting import charts
from janus_jax.reporting.charts import Series, Span
from janus_jax.toy import run_page, scores
from janus_jax.toy.run_page import Run
from janus_jax.toy.scores import Score
from janus_jax.toy.test_set import DrawingCase, QuestionCase


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
DRAWINGS = [
  score(('single_object',), 'seen', 10, 10, 3),
  score(('single_object',), 'new_wording', 8, 10, 3),
  score(('colours',), 'new_wording', 10, 10, 0),
  score(('attributes',), 'new_wording', 9, 10, 0),
  score(('attributes',), 'new_combination', 1, 10, 0),
  score(('counting',), 'new_wording', 0, 10, 0),
  score(('digit',), 'seen', 10, 10, 1),
  score(('digit',), 'new_wording', 8, 10, 1),
]


def question(image, answer, expected, subject='one'):
  case = {'subject': subject, 'kind': 'colour', 'group': 'new_scene', 'image': image, 'question': 'What colour is it?'}
  return {**case, 'answer': answer, 'expected': [expected], 'right': answer == expected}


def drawing(prompt, right, reason=''):
  return {'skill': 'digit', 'group': 'seen', 'prompt': prompt, 'right': right, 'reason': reason}


def run_of(**changes) -> Run:
  rng = np.random.default_rng(0)
  found = {
    'goals': [scores.score_dict(goal) for goal in scores.goals(QUESTIONS, DRAWINGS)],
    'questions': [scores.score_dict(item) for item in QUESTIONS],
    'drawings': [scores.score_dict(item) for item in DRAWINGS],
    'settings': {'cfg_weight': 1.5},
    'question_cases': [question(0, 'red', 'red'), question(1, 'pink', 'blue'), question(0, '<b>', 'black')],
    'drawing_cases': [drawing('the digit one', True), drawing('draw the digit two', False, 'reads as 7')],
  }
  lines = [{'step': s, 'stage': 'stage1' if s < 3 else 'stage2', 'loss/text': 5.0 / s} for s in range(1, 6)]
  values = {
    'title': 'A & B',
    'metrics': lines,
    'scores': found,
    'drawings': rng.integers(256, size=(2, 4, 4, 3)).astype(np.uint8),
    'scenes': rng.integers(256, size=(2, 4, 4, 3)).astype(np.uint8),
    'config': {'run': ['stage2'], 'stages': {'stage2': {'steps': 77, 'ratio': [2, 3, 5]}}},
    'model': {'image_token_id': 5},
    'revision': 'abc-dirty',
    'paths': {'export': '/x/<y>'},
    'seconds': {'training': 12.4},
  }
  return Run(**{**values, **changes})


VOID = ('meta', 'img', 'br', 'rect', 'line', 'circle', 'polyline')


class Parser(html.parser.HTMLParser):
  """Every attribute that could fetch something, the text, and whether the tags nest."""

  def __init__(self):
    super().__init__()
    self.open, self.links, self.text, self.tags = [], [], [], collections.Counter()

  def handle_starttag(self, tag, attributes):
    self.tags[tag] += 1
    self.links += [value for name, value in attributes if name in ('src', 'href', 'srcset', 'data', 'action')]
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attributes):
    self.tags[tag] += 1

  def handle_endtag(self, tag):
    if tag not in VOID:
      assert self.open.pop() == tag

  def handle_data(self, data):
    self.text.append(data)


def parse(page: str) -> Parser:
  parser = Parser()
  parser.feed(page)
  assert parser.open == []
  return parser


def test_the_page_holds_everything_and_fetches_nothing():
  run = run_of()
  page = run_page.render(run)
  found = parse(page)
  pictures = [base64.b64decode(link.removeprefix('data:image/png;base64,')) for link in found.links]
  shown = [np.asarray(Image.open(io.BytesIO(picture))) for picture in pictures]
  assert [image.tolist() for image in shown] == [image.tolist() for image in (*run.drawings, *run.scenes)]
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
  assert found.tags['svg'] == 1


def test_right_and_wrong_are_told_apart():
  page = run_page.render(run_of())
  assert re.search(r'<figure class="right"><img [^>]*alt="the digit one"', page)
  assert re.search(r'<figure><img [^>]*alt="draw the digit two"', page)
  assert '<b class="right">red</b>' in page
  assert '<b class="wrong">pink</b>' in page


def test_a_run_without_scores_or_curves_still_has_a_page():
  found = parse(run_page.render(run_of(scores={}, metrics=[], config={}, model={})))
  assert found.tags['svg'] == found.tags['img'] == found.tags['h2'] == 0


def test_scores_that_were_written_without_intervals_still_have_a_page():
  run = run_of()
  old = {key: [{**item} for item in run.scores[key]] for key in ('goals', 'questions', 'drawings')}
  for item in (*old['goals'], *old['questions'], *old['drawings']):
    del item['interval'], item['units']
  text = ' '.join(parse(run_page.render(run_of(scores={**run.scores, **old}))).text)
  assert '86.7 %' in text
  assert '[69, 95]' not in text


def test_stages_follow_each_other():
  lines = [{'step': step, 'stage': name} for step, name in ((5, 'a'), (10, 'a'), (20, 'b'), (30, 'b'), (40, 'a'))]
  assert run_page.stages(lines) == [Span('a', 0, 10), Span('b', 10, 30), Span('a', 30, 40)]


def test_goals_count_what_training_never_had():
  found = {goal.name: (goal.right, goal.total, goal.control, goal.met) for goal in scores.goals(QUESTIONS, DRAWINGS)}
  assert found == {
    'questions about one object': (26, 30, 9, False),
    'questions about one object: colour': (9, 10, 2, True),
    'questions about one object: shape': (10, 10, 2, True),
    'questions about one object: size': (7, 10, 5, False),
    'questions about one object, new combinations': (4, 10, 1, None),
    'questions about digits': (19, 20, 2, True),
    'drawings of one object, new wordings': (27, 30, 3, True),
    'drawings of one object, new combinations': (1, 10, 0, None),
    'drawings of digits, new wordings': (8, 10, 1, False),
  }


def test_nothing_measured_is_no_goal_met():
  assert {goal.met for goal in scores.goals([], [])} == {False, None}


def test_tables_give_every_figure():
  printed = scores.tables(scores.goals(QUESTIONS, DRAWINGS), QUESTIONS, DRAWINGS)
  lines = [' '.join(line.split()) for line in printed.splitlines()]
  for expected in (
    'goals measured [95 %] control goal',
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
  keys = [('x', 'g'), ('y', 'g'), ('x', 'g'), ('x', 'h'), ('x', 'g')]
  found = scores.count(
    keys, ['p', 'p', 'q', 'p', 'p'], [True, False, True, False, False], [False, True, True, True, False]
  )
  assert found == [
    Score(name=('x',), group='g', units={'p': (1, 2), 'q': (1, 1)}, control=1),
    Score(name=('y',), group='g', units={'p': (0, 1)}, control=1),
    Score(name=('x',), group='h', units={'p': (0, 1)}, control=1),
  ]
  assert [(item.right, item.total) for item in found] == [(2, 3), (0, 1), (0, 1)]
  together = scores.combine(found)
  assert (together.units, together.control) == ({'p': (1, 4), 'q': (1, 1)}, 3)


def test_prompts_and_images_are_the_units():
  drawings = [
    DrawingCase('digit', 'seen', prompt, 1) for prompt in ('the digit one', 'draw the digit one', 'the digit one')
  ]
  (found,) = scores.count_drawings(drawings, [True, False, False], [False] * 3)
  assert found.units == {'the digit one': (1, 2), 'draw the digit one': (0, 1)}
  images = [np.full((2, 2, 3), value, np.uint8) for value in (0, 1, 0)]
  cases = [
    QuestionCase('one', kind, 'new_scene', image, '?', ('red',)) for image in images for kind in ('colour', 'size')
  ]
  together = scores.combine(scores.count_questions(cases, [True] * 5 + [False], [False] * 6))
  assert sorted(together.units.values()) == [(2, 2), (3, 4)]


def test_a_score_as_json():
  found = scores.score_dict(score(('digit',), 'new_wording', 19, 20, 2))
  low, high = found.pop('interval')
  assert found == {
    'name': ('digit',), 'group': 'new_wording', 'right': 19, 'total': 20, 'control': 2, 'percent': 95.0,
    'control_percent': 10.0, 'units': 20,
  }  # fmt: skip
  assert (low, high) == pytest.approx((74.6, 99.2), abs=0.1)
  assert scores.score_dict(scores.goals([], [])[0])['interval'] is None


@pytest.mark.parametrize(
  ('low', 'high', 'expected'),
  [(0, 10, [0, 2, 4, 6, 8, 10]), (0.1, 0.52, [0.1, 0.2, 0.3, 0.4, 0.5]), (-3, 2490, [0, 500, 1000, 1500, 2000])],
)
def test_ticks_are_round_and_inside(low, high, expected):
  np.testing.assert_allclose(charts.ticks(low, high), expected)


def test_log_ticks():
  np.testing.assert_allclose(charts.log_ticks(0.4, 6), [0.5, 1, 2, 5])
  np.testing.assert_allclose(charts.log_ticks(0.002, 50), [0.01, 0.1, 1, 10])


def curve_points(svg: str) -> list[np.ndarray]:
  found = re.findall(r'<polyline points="([^"]*)"', svg)
  return [np.array([pair.split(',') for pair in text.split()], float) for text in found]


def test_a_curve_is_drawn_to_scale():
  points = ((0, 1.0), (10, 10.0), (20, 100.0), (40, None), (50, float('nan')))
  (linear,) = curve_points(charts.line_chart('t', [Series('s', points, '#000')]))
  (log,) = curve_points(charts.line_chart('t', [Series('s', (*points, (15, 0.0)), '#000')], log=True))
  for found in (linear, log):
    assert found.shape == (3, 2)
    np.testing.assert_allclose(np.diff(found[:, 0]), found[1, 0] - found[0, 0], atol=0.2)
  # Larger is higher up: 1, 10, 100 are evenly spaced on a log axis and as 1 : 10 on a linear one.
  steps = -np.diff(log[:, 1])
  np.testing.assert_allclose(steps[0], steps[1], atol=0.2)
  assert steps[0] > 0
  steps = -np.diff(linear[:, 1])
  np.testing.assert_allclose(steps[1] / steps[0], 10, rtol=0.05)


def test_odd_curves():
  assert charts.line_chart('t', []) == ''
  assert charts.line_chart('t', [Series('s', ((1, None), (2, float('inf'))), '#000')]) == ''
  assert '<circle' in charts.line_chart('t', [Series('s', ((5, 3.0),), '#000')])
  flat = charts.line_chart('<t>', [Series('s', ((1, 0.0), (2, 0.0)), '#000')], [Span('a', 0, 2)])
  parse(flat)
  assert len(curve_points(flat)) == 1
