"""The toy world as a teacher: prompts to learn on, and the judge of `evaluate` as a reward."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from janus_jax.errors import InputError
from janus_jax.toy import test_set
from janus_jax.toy.digit_judge import DigitJudge
from janus_jax.toy.shapes import World

PROMPTS_PER_SKILL = 400


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
