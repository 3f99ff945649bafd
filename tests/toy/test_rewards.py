"""The toy world as a teacher: what it asks for, and that it rewards what the test's judge accepts."""

import numpy as np
import pytest

pytest.importorskip('sklearn')

from janus_jax.errors import InputError
from janus_jax.toy import captions, scenes, shapes
from janus_jax.toy.rewards import QUESTIONS_PER_KIND, exact_judge, training_prompts, training_questions
from janus_jax.toy.shapes import World
from janus_jax.toy.test_set import SKILLS, build_prompts, build_questions

WORLD = World()


def test_prompts_are_said_as_training_says_them_and_never_what_it_holds_out():
  records = training_prompts(WORLD, (), seed=1)
  assert {record['case'].skill for record in records} == set(SKILLS)
  tested = {case.prompt for case in build_prompts(WORLD, 400, 2) if case.group != 'seen'}
  assert not tested & {record['prompt'] for record in records}
  for record in records:
    expected = record['case'].expected
    if not isinstance(expected, int):
      assert not captions.says_held_out(WORLD, expected)
  only = training_prompts(WORLD, ('counting', 'position'), seed=1)
  assert {record['case'].skill for record in only} == {'counting', 'position'}
  with pytest.raises(InputError, match="skills: 'drawing' is unknown: expected some of single_object"):
    training_prompts(WORLD, ('drawing',), seed=1)


def test_the_judge_rewards_the_scene_that_was_asked_for_and_no_other():
  chosen = [scenes.scene_at(WORLD, 'train', index, 'two') for index in range(20)]
  images = shapes.render_scene(WORLD, chosen)
  texts = {record['case'].expected: record for record in training_prompts(WORLD, ('position',), seed=0)}
  records, shown, others = [], [], []
  for index, scene in enumerate(chosen):
    for description in captions.scene_descriptions(scene):
      if description in texts:
        records.append(texts[description])
        shown.append(images[index])
        others.append(images[index][:, ::-1] if 'of' in description.relation else images[index][::-1])
  assert len(records) > 10
  reward = exact_judge(WORLD)
  assert reward(records, np.stack(shown)) == [1.0] * len(records)
  assert reward(records, np.stack(others)) == [0.0] * len(records)


def test_questions_are_about_scenes_of_training_and_equally_many_of_each_kind():
  records = training_questions(WORLD, ('where', 'count'), seed=3)
  assert len(records) == 2 * QUESTIONS_PER_KIND
  assert sum(record['prompt'].startswith('Where is') for record in records) == QUESTIONS_PER_KIND
  tested = {case.image.tobytes() for case in build_questions(WORLD, 200)}
  assert not tested & {image.tobytes() for record in records for image in record['images']}
  for record in records[:50]:
    scene_answers = (
      {'left', 'right', 'above', 'below'} if record['prompt'].startswith('Where') else set(captions.NUMBERS)
    )
    assert set(record['answer']) <= scene_answers
  with pytest.raises(InputError, match="skills: 'digit' is unknown: expected some of colour"):
    training_questions(WORLD, ('digit',), seed=3)
