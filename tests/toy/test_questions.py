import re

import numpy as np
import pytest

from janus_jax.toy import captions, questions, scenes
from janus_jax.toy.shapes import World

WORLD = World()
NUMBERS = {1: 'one', 2: 'two', 3: 'three', 4: 'four'}


def _find(scene, words):
  """The objects that 'the red object', 'each object' or 'the circle' may mean."""
  words = set(words.split()) - {'the', 'each', 'object'}
  return [item for item in scene.objects if words <= {item.shape, item.colour, item.size}]


def _truth(scene, text):
  """All answers that the scene gives, worked out without the module under test."""
  if text == 'How many objects are there?':
    return {NUMBERS[len(scene.objects)]}
  if match := re.fullmatch(r'What (colour|shape|size) is (.*)\?', text):
    return {getattr(item, match[1]) for item in _find(scene, match[2])}
  if match := re.fullmatch(r'Where is (.*)\?', text):
    return {_side(item, other) for item in _find(scene, match[1]) for other in scene.objects if other != item}
  if match := re.fullmatch(r'What is (left|right|above|below)(?: of)? (.*)\?', text):
    return {
      f'{other.colour} {other.shape}'
      for item in _find(scene, match[2])
      for other in scene.objects
      if other != item and _side(other, item) == match[1]
    }
  raise AssertionError(text)


def _side(item, other):
  dx, dy = item.x - other.x, item.y - other.y
  return ('left' if dx < 0 else 'right') if abs(dx) > abs(dy) else ('above' if dy < 0 else 'below')


def test_every_question_has_one_answer_and_it_is_true():
  kinds = set()
  for index in range(400):
    scene = scenes.sample_scene(WORLD, np.random.default_rng(index))
    asked = questions.ask(scene)
    assert len({question.text for question in asked}) == len(asked)
    for question in asked:
      kinds.add(question.kind)
      if question.kind == 'describe':
        assert set(question.answers) == {item.text for item in captions.scene_descriptions(scene)}
      else:
        assert _truth(scene, question.text) == set(question.answers), (question, scene)
  assert kinds == set(questions.KINDS) - {'digit'}


def test_digit_questions():
  digit, describe = questions.ask_digit(7)
  assert (digit.text, digit.answers) == ('What digit is this?', ('seven',))
  assert describe.answers == ('the digit seven',)


def test_turns_are_different_questions_in_random_order():
  asked = questions.ask(scenes.scene_at(WORLD, 'train', 0, 'two'))
  known = {question.text: question.answers for question in asked}
  rng = np.random.default_rng(0)
  orders = set()
  for _ in range(50):
    turns = questions.sample_turns(asked, rng, 3)
    assert len(set(turns[::2])) == 3
    assert all(answer in known[question] for question, answer in zip(turns[::2], turns[1::2], strict=True))
    orders.add(tuple(turns[::2]))
  assert len(orders) > 40
  assert len(questions.sample_turns(questions.ask_digit(3), rng, 3)) == 4


@pytest.mark.parametrize('answer', ['red', ' Red', 'red.', 'RED\n'])
def test_right(answer):
  assert questions.is_right(answer, ['red'])


@pytest.mark.parametrize('answer', ['', 'dark red', 'red red', 'crimson', 'r e d', 'reds'])
def test_wrong(answer):
  assert not questions.is_right(answer, ['red'])


def test_any_of_several():
  assert questions.is_right('a red  circle', ['a circle', 'a red circle'])
  assert not questions.is_right('a blue circle', ['a circle', 'a red circle'])
