"""Scores a model on the toy world: has it generate images, asks it questions, judges both exactly."""

import dataclasses
import functools
import itertools
import json
import logging
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from janus_jax.data.images import save_png
from janus_jax.inference.answering import answer
from janus_jax.inference.generation import generate_images
from janus_jax.inference.requests import ImageSettings, LoadedJanus
from janus_jax.reporting.image_grid import JudgedImage, image_grid
from janus_jax.toy import scores, test_set
from janus_jax.toy.digit_judge import DigitJudge
from janus_jax.toy.image_statistics import image_statistics, statistics_tables
from janus_jax.toy.scores import Score
from janus_jax.toy.shape_judge import Seen, Verdict
from janus_jax.toy.shapes import World
from janus_jax.toy.test_set import GenerationCase, QuestionCase

# The longest right answer, 'a small orange triangle right of a large purple square', has ten words of a token each.
ANSWER_TOKENS = 24
BATCH_SIZE = 64
SHEET_COLUMNS = 10  # Right images of a skill and group, and as many wrong ones.
# What fits models as small as the toy world's, where the run's config says nothing.
SAMPLING = {'cfg_weight': 1.5, 'temperature': 0.8, 'top_k': 0}


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
  """A model's test. Lists have one entry per question, or one per prompt.

  Attributes:
    world: the toy world.
    questions: in the order asked.
    answers: texts.
    answer_controls: True where the answer to another question of the same key is right for this one.
    prompts: in the order generated.
    images: uint8[n, size, size, 3].
    verdicts: on the images.
    controls: verdicts on the image of another prompt of the same key.
    objects: those in the images of prompts for shapes that are alike; None of others.
    seconds: wall time of generating, answering and judging.
  """

  world: World
  questions: list[QuestionCase]
  answers: list[str]
  answer_controls: list[bool]
  prompts: list[GenerationCase]
  images: np.ndarray
  verdicts: list[Verdict]
  controls: list[Verdict]
  objects: list[list[Seen] | None]
  seconds: dict[str, float]

  @property
  def question_scores(self) -> list[Score]:
    right = [case.is_right(text) for case, text in zip(self.questions, self.answers)]
    return scores.count_questions(self.questions, right, self.answer_controls)

  @property
  def generation_scores(self) -> list[Score]:
    right, control = ([verdict.right for verdict in found] for found in (self.verdicts, self.controls))
    return scores.count(self.prompts, right, control)

  @functools.cached_property
  def statistics(self) -> dict[str, dict[str, Any]]:
    """Counting by number, and the distribution of what prompts leave open (`image_statistics`)."""
    return image_statistics(self.world, self.prompts, self.objects)

  def tables(self) -> str:
    """The scores as text."""
    return scores.tables(self.question_scores, self.generation_scores, statistics_tables(self.statistics))


def score(janus: LoadedJanus, world: World, questions_per_kind: int, images_per_group: int, **settings: Any) -> Scored:
  """Generates images, asks (greedily) and judges.

  Args:
    janus: of float32: what its parameters are stored in is computed in.
    world: the toy world (`dataset.world_for`).
    questions_per_kind: `test_set.build_questions`.
    images_per_group: `test_set.build_prompts`.
    **settings: fields of `ImageSettings`: how images are generated, one for each prompt. The seed also decides the
      choice of cases, and answers are decoded with the same weights.

  Raises:
    InputError: a tokenizer of another checkpoint, scikit-learn is not installed.
  """
  how = ImageSettings(num_images=1, batch_size=BATCH_SIZE, **settings)
  judge = DigitJudge.fit(world.size)
  questions = test_set.build_questions(world, questions_per_kind, how.seed)
  prompts = test_set.build_prompts(world, images_per_group, how.seed)
  start = time.perf_counter()
  generated = generate_images(janus, [case.prompt for case in prompts], how)
  images, after_images = np.stack([found[0].pixels for found in generated]), time.perf_counter()
  logging.info('%d images in %.0f s; asking %d questions', len(images), after_images - start, len(questions))
  found = answer(
    janus,
    [[Image.fromarray(case.image)] for case in questions],
    [case.question for case in questions],
    max_new_tokens=ANSWER_TOKENS,
    batch_size=BATCH_SIZE,
    weights=how.weights,
    cache_dtype=how.cache_dtype,
  )
  answers, after_answers = [item.text.strip() for item in found], time.perf_counter()
  others, other_prompts = (scores.swap_within([case.key for case in cases], how.seed) for cases in (questions, prompts))
  return Scored(
    world=world,
    questions=questions,
    answers=answers,
    answer_controls=[case.is_right(answers[other]) for case, other in zip(questions, others)],
    prompts=prompts,
    images=images,
    verdicts=test_set.judge_images(world, judge, prompts, images),
    controls=test_set.judge_images(world, judge, prompts, images[other_prompts]),
    objects=test_set.find_objects(world, prompts, images),
    seconds={
      'generating': after_images - start,
      'answering': after_answers - after_images,
      'judging': time.perf_counter() - after_answers,
    },
  )


def scores_to_dict(scored: Scored) -> dict[str, Any]:
  """JSON-ready: target scores, scores, seconds, and every case. Images are numbered as in `question_images`."""
  found = {'questions': scored.question_scores, 'generations': scored.generation_scores}
  found['target_scores'] = scores.target_scores(**found)
  _, numbers = question_images(scored.questions)
  asked = zip(scored.questions, scored.answers, numbers)
  return {
    **{name: list(map(scores.score_dict, items)) for name, items in found.items()},
    **scored.statistics,
    'seconds': scored.seconds,
    'question_cases': [
      {**vars(case), 'image': number, 'answer': text, 'right': case.is_right(text)} for case, text, number in asked
    ],
    'generation_cases': [
      {'skill': case.skill, 'group': case.group, 'prompt': case.prompt, **vars(verdict)}
      for case, verdict in zip(scored.prompts, scored.verdicts)
    ],
  }


def question_images(questions: Sequence[QuestionCase]) -> tuple[np.ndarray, list[int]]:
  """The different images that are asked about, uint8[n, size, size, 3], and the number of each question's."""
  images = {case.unit: case.image for case in questions}
  number_of = {unit: number for number, unit in enumerate(images)}
  return np.stack(list(images.values())), [number_of[case.unit] for case in questions]


def generation_sheet(scored: Scored) -> np.ndarray:
  """Generated images, uint8[rows, columns, 3]: a row per skill and group, which says how many are right, with the first
  right ones beside the first wrong ones.
  """
  rows = []
  judged = zip(scored.prompts, map(JudgedImage, scored.images, [verdict.right for verdict in scored.verdicts]))
  for key, pairs in itertools.groupby(judged, lambda pair: pair[0].key):
    row = [image for _, image in pairs]
    right, wrong = ([image for image in row if image.right == which] for which in (True, False))
    label = ' - '.join(key).replace('_', ' ')
    rows.append((f'{label}\n{len(right)} of {len(row)} right', [right[:SHEET_COLUMNS], wrong[:SHEET_COLUMNS]]))
  return image_grid(rows, ('right', 'wrong'))


def write_scores(directory: str, found: dict, scored: Scored) -> None:
  """scores.txt, generations.png, images.npz, and last scores.json: where it is there, the rest is too.

  Args:
    directory: existing.
    found: content of scores.json.
    scored: what it was made of.
  """
  save_png(os.path.join(directory, 'generations.png'), generation_sheet(scored), {})
  with open(os.path.join(directory, 'scores.txt'), 'w', encoding='utf-8') as file:
    file.write(f'{scored.tables()}\n')
  images, _ = question_images(scored.questions)
  np.savez_compressed(os.path.join(directory, scores.IMAGES_FILE), generations=scored.images, questions=images)
  with open(os.path.join(directory, 'scores.json'), 'w', encoding='utf-8') as file:
    json.dump(found, file, indent=1)
