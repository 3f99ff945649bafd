"""The toy world as a teacher: prompts and questions to learn on, and the judge of `evaluate` as a reward."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from janus_jax.errors import InputError
from janus_jax.toy import questions, scenes, shapes, test_set
from janus_jax.toy.digit_judge import DigitJudge
from janus_jax.toy.shapes import World

PROMPTS_PER_SKILL = 400
QUESTIONS_PER_KIND = 400


def training_prompts(world: World, skills: Sequence[str], seed: int) -> list[dict[str, Any]]:
  """Records of prompts {'prompt', 'case'} of these skills, () being all of `test_set.SKILLS`, equally many of each.

  All are as training says them: none is of a new combination, and none in a template that it never uses for a phrase.

  Raises:
    InputError: no such skill.
  """
  if unknown := sorted(set(skills) - set(test_set.SKILLS)):
    raise InputError(f'skills: {unknown[0]!r} is unknown: expected some of {", ".join(test_set.SKILLS)}')
  cases = test_set.build_prompts(world, PROMPTS_PER_SKILL, seed)
  wanted = [case for case in cases if case.group == 'seen' and case.skill in (skills or test_set.SKILLS)]
  return [{'prompt': case.prompt, 'case': case} for case in wanted]


def training_questions(world: World, kinds: Sequence[str], seed: int) -> list[dict[str, Any]]:
  """Records of questions {'prompt', 'images', 'answer'} about scenes of training, equally many of each of these kinds,
  () being all about shapes. An image is uint8[size, size, 3], an 'answer' a tuple of the right ones.

  Raises:
    InputError: no such kind.
  """
  about_shapes = [kind for kind in questions.KINDS if kind != 'digit']
  if unknown := sorted(set(kinds) - set(about_shapes)):
    raise InputError(f'skills: {unknown[0]!r} is unknown: expected some of {", ".join(about_shapes)}')
  rng, records = np.random.default_rng(seed), []
  missing = dict.fromkeys(kinds or about_shapes, QUESTIONS_PER_KIND)
  for number in itertools.count():
    index, layout = divmod(number, len(scenes.LAYOUTS))
    scene = scenes.scene_at(world, 'train', index, scenes.LAYOUTS[layout])
    asked = questions.ask(scene)
    one_of_each_kind = {asked[i].kind: asked[i] for i in rng.permutation(len(asked))}
    images = shapes.render_scene(world, [scene])
    for kind, item in one_of_each_kind.items():
      if missing.get(kind):
        records.append({'prompt': item.text, 'images': images, 'answer': item.answers})
        missing[kind] -= 1
    if not any(missing.values()):
      return records


def exact_judge(world: World) -> Callable[[Sequence[Mapping[str, Any]], np.ndarray], list[float]]:
  """A reward of records of `training_prompts` and their images uint8[N, size, size, 3]: 1 where an image shows what its
  prompt says, else 0.

  Raises:
    InputError: scikit-learn is not installed.
  """
  judge = DigitJudge.fit(world.size)

  def reward(records: Sequence[Mapping[str, Any]], images: np.ndarray) -> list[float]:
    verdicts = test_set.judge_images(world, judge, [record['case'] for record in records], images)
    return [float(verdict.right) for verdict in verdicts]

  return reward
