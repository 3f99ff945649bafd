"""Scores a model on the toy world: has it draw all prompts, asks it all questions, judges both exactly."""

import dataclasses
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
from janus_jax.toy.scores import Score
from janus_jax.toy.shape_judge import Verdict
from janus_jax.toy.shapes import World
from janus_jax.toy.test_set import DrawingCase, QuestionCase

# The longest right answer, 'a small orange triangle right of a large purple square', has ten words of a token each.
ANSWER_TOKENS = 24
BATCH_SIZE = 64
# What fits models as small as the toy world's, where the run's config says nothing.
SAMPLING = {'cfg_weight': 1.5, 'temperature': 0.8, 'top_k': 0}


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
  """What a model was asked and what it made of it.

  Attributes:
    questions: in the order asked.
    answers: one per question.
    answer_control: one per question: whether the answer to another one of its subject, kind and group is right for it.
    drawings: in the order drawn.
    pictures: uint8[n, size, size, 3], one per drawing.
    verdicts: one per drawing.
    controls: one per drawing: the verdict on the picture of another prompt of its skill and group.
    seconds: how long drawing, answering and judging took.
  """

  questions: list[QuestionCase]
  answers: list[str]
  answer_control: list[bool]
  drawings: list[DrawingCase]
  pictures: np.ndarray
  verdicts: list[Verdict]
  controls: list[Verdict]
  seconds: dict[str, float]

  @property
  def question_scores(self) -> list[Score]:
    right = [case.is_right(text) for case, text in zip(self.questions, self.answers)]
    return scores.count_questions(self.questions, right, self.answer_control)

  @property
  def drawing_scores(self) -> list[Score]:
    passed, control = ([verdict.passed for verdict in found] for found in (self.verdicts, self.controls))
    return scores.count_drawings(self.drawings, passed, control)

  def tables(self) -> str:
    """What a person reads."""
    questions, drawings = self.question_scores, self.drawing_scores
    return scores.tables(scores.goals(questions, drawings), questions, drawings)


def score(
  janus: LoadedJanus, world: World, questions_per_kind: int, drawings_per_group: int, **settings: Any
) -> Scored:
  """Generates images, asks (greedily) and judges.

  Args:
    janus: of float32: what its parameters are stored in is computed in.
    world: how the toy world looks (`dataset.world_for`).
    questions_per_kind: `test_set.build_questions`.
    drawings_per_group: `test_set.build_drawings`.
    **settings: fields of `ImageSettings`: how images are generated, one for each prompt. The seed is also that of the
      choice of cases, and answers are decoded with the same weights.

  Raises:
    InputError: a tokenizer of another checkpoint, scikit-learn is not installed.
  """
  how = ImageSettings(num_images=1, batch_size=BATCH_SIZE, **settings)
  seed = how.seed
  judge = DigitJudge.fit(world.size)
  questions = test_set.build_questions(world, questions_per_kind, seed)
  drawings = test_set.build_drawings(drawings_per_group, seed)
  start = time.perf_counter()
  images = generate_images(janus, [case.prompt for case in drawings], how)
  drawn = time.perf_counter()
  logging.info('%d prompts drawn in %.0f s; asking %d questions', len(drawings), drawn - start, len(questions))
  answers = answer(
    janus,
    [[Image.fromarray(case.image)] for case in questions],
    [case.text for case in questions],
    max_new_tokens=ANSWER_TOKENS,
    batch_size=BATCH_SIZE,
    weights=how.weights,
    cache_dtype=how.cache_dtype,
  )
  asked = time.perf_counter()
  texts, pictures = [found.text.strip() for found in answers], np.stack([found[0].pixels for found in images])
  verdicts, controls = judge_with_control(world, judge, drawings, pictures, seed)
  others = scores.swap_within([scores.question_key(case) for case in questions], seed)
  return Scored(
    questions,
    texts,
    [case.is_right(texts[other]) for case, other in zip(questions, others)],
    drawings,
    pictures,
    verdicts,
    controls,
    {'drawing': drawn - start, 'answering': asked - drawn, 'judging': time.perf_counter() - asked},
  )


def judge_with_control(
  world: World, judge: DigitJudge, cases: Sequence[DrawingCase], pictures: np.ndarray, seed: int
) -> tuple[list[Verdict], list[Verdict]]:
  """Verdicts on the pictures (uint8[n, size, size, 3], one per case), and with the pictures of each skill and group
  swapped among its prompts.
  """
  others = scores.swap_within([scores.drawing_key(case) for case in cases], seed)
  verdicts = test_set.judge_drawings(world, judge, cases, pictures)
  return verdicts, test_set.judge_drawings(world, judge, cases, pictures[others])


def scores_to_dict(scored: Scored) -> dict[str, Any]:
  """JSON-ready: goals, scores, seconds, and every case. Images are numbered as in `question_images`."""
  question_scores, drawing_scores = scored.question_scores, scored.drawing_scores
  _, numbers = question_images(scored.questions)
  return {
    'goals': [scores.score_dict(goal) for goal in scores.goals(question_scores, drawing_scores)],
    'questions': [scores.score_dict(item) for item in question_scores],
    'drawings': [scores.score_dict(item) for item in drawing_scores],
    'seconds': scored.seconds,
    'question_cases': list(map(scores.question_dict, scored.questions, scored.answers, numbers)),
    'drawing_cases': list(map(scores.drawing_dict, scored.drawings, scored.verdicts)),
  }


def question_images(questions: Sequence[QuestionCase]) -> tuple[np.ndarray, list[int]]:
  """The different images that are asked about, uint8[n, size, size, 3], and per question which one."""
  found: dict[bytes, int] = {}
  numbers = [found.setdefault(case.image.tobytes(), len(found)) for case in questions]
  return np.stack([questions[numbers.index(number)].image for number in range(len(found))]), numbers


def drawing_sheet(cases: Sequence[DrawingCase], pictures: np.ndarray, verdicts: Sequence[Verdict]) -> np.ndarray:
  """All generated images, a row per skill and group with how many are right (`image_grid`).

  Args:
    cases: n of them, those of one skill and group together.
    pictures: uint8[n, size, size, 3].
    verdicts: one per case.

  Returns:
    uint8[rows, columns, 3].
  """
  rows: dict[tuple[str, str], list[JudgedImage]] = {}
  for case, pixels, verdict in zip(cases, pictures, verdicts, strict=True):
    rows.setdefault(scores.drawing_key(case), []).append(JudgedImage(pixels, verdict.passed))
  labels = (' - '.join(key).replace('_', ' ') for key in rows)
  counts = (f'{sum(image.right for image in row)} of {len(row)} right' for row in rows.values())
  return image_grid([(f'{label}\n{count}', [row]) for label, count, row in zip(labels, counts, rows.values())])


def write_scores(directory: str, found: dict, scored: Scored) -> None:
  """scores.txt, drawings.png, pictures.npz, and last scores.json: where it is there, the rest is too.

  Args:
    directory: existing.
    found: what scores.json holds.
    scored: what it was made of.
  """
  sheet = drawing_sheet(scored.drawings, scored.pictures, scored.verdicts)
  save_png(os.path.join(directory, 'drawings.png'), sheet, {})
  with open(os.path.join(directory, 'scores.txt'), 'w', encoding='utf-8') as file:
    file.write(f'{scored.tables()}\n')
  images, _ = question_images(scored.questions)
  np.savez_compressed(os.path.join(directory, 'pictures.npz'), drawings=scored.pictures, questions=images)
  with open(os.path.join(directory, 'scores.json'), 'w', encoding='utf-8') as file:
    json.dump(found, file, indent=1)
