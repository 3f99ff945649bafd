import collections

import numpy as np
import pytest

from janus_jax.toy import captions, digits, scenes, shapes, test_set
from janus_jax.toy.captions import Description
from janus_jax.toy.digit_judge import DigitJudge
from janus_jax.toy.shapes import World

pytest.importorskip('sklearn')
WORLD = World()


@pytest.fixture(scope='module')
def asked():
  return test_set.build_questions(WORLD, 30)


@pytest.fixture(scope='module')
def prompts():
  return test_set.build_prompts(WORLD, 20)


def test_same_seed_same_test(asked, prompts):
  again = test_set.build_questions(WORLD, 30)
  assert [(case.question, case.expected, case.image.tobytes()) for case in asked] == [
    (case.question, case.expected, case.image.tobytes()) for case in again
  ]
  assert test_set.build_prompts(WORLD, 20) == prompts
  assert test_set.build_prompts(WORLD, 20, seed=1) != prompts


def test_questions_cover_every_kind_once_per_scene(asked):
  counts = collections.Counter((case.content, case.kind, case.group) for case in asked)
  assert set(counts.values()) == {30}
  kinds = {content: {kind for c, kind, _ in counts if c == content} for content in (*scenes.LAYOUTS, 'digit')}
  plain = {'colour', 'shape', 'size', 'count', 'describe'}
  assert kinds == {'one': plain, 'alike': plain, 'two': plain | {'where', 'beside'}, 'digit': {'digit', 'describe'}}
  for key in counts:
    images = {case.image.tobytes() for case in asked if (case.content, case.kind, case.group) == key}
    assert len(images) == 30


def test_questions_are_about_images_that_training_never_shows(asked):
  train = {
    image.tobytes() for image in shapes.render_scene(WORLD, [scenes.scene_at(WORLD, 'train', i) for i in range(6000)])
  }
  train |= {image.tobytes() for image in digits.load_digits(24, 'train')[0]}
  assert not train & {case.image.tobytes() for case in asked}


def test_prompts_of_each_group(prompts):
  trained = {
    item.text for index in range(6000) for item in captions.scene_descriptions(scenes.scene_at(WORLD, 'train', index))
  }
  phrases = trained | {digits.phrase(digit) for digit in range(10)}
  said = {
    template.format(phrase)
    for phrase in phrases
    for template in captions.PROMPT_TEMPLATES
    if template not in captions.held_out_templates(phrase)
  }
  counts = collections.Counter((case.skill, case.group) for case in prompts)
  assert set(counts.values()) == {20}
  assert {skill for skill, _ in counts} == set(test_set.SKILLS)
  assert {skill for skill, group in counts if group == 'new_combination'} == {
    'attributes',
    'counting',
    'position',
    'colour_binding',
  }
  unseen = [case.prompt for case in prompts if case.group != 'seen']
  assert not said & set(unseen)
  seen = [case.prompt for case in prompts if case.group == 'seen' and case.skill != 'colour_binding']
  assert set(seen) <= said


def _scene_showing(description, group):
  """A scene of the right split for which the description is true."""
  split = 'held_out' if group == 'new_combination' else 'train'
  many = 'alike' if description.parts[0].count > 1 else 'one'
  layout = 'two' if len(description.parts) == 2 else many
  for index in range(20000):
    scene = scenes.scene_at(WORLD, split, index, layout)
    if description in captions.scene_descriptions(scene):
      return scene
  raise AssertionError(description)


def test_right_images_pass_and_shuffled_ones_fail():
  cases = [case for case in test_set.build_prompts(WORLD, 3) if case.skill != 'colour_binding']
  test_images, test_labels = digits.load_digits(24, 'test')
  judge = DigitJudge.fit(24)
  read = judge.predict(test_images)
  images = np.stack(
    [
      shapes.render_scene(WORLD, [_scene_showing(case.expected, case.group)])[0]
      if isinstance(case.expected, Description)
      else test_images[(test_labels == case.expected) & (read == case.expected)][0]
      for case in cases
    ]
  )
  verdicts = test_set.judge_images(WORLD, judge, cases, images)
  assert all(verdict.right for verdict in verdicts)
  shuffled = test_set.judge_images(WORLD, judge, cases, np.roll(images, 7, axis=0))
  assert sum(verdict.right for verdict in shuffled) < 0.1 * len(cases)
  assert all(verdict.right == (verdict.reason == '') for verdict in shuffled)
