"""DPG-Bench: mean of answers to questions about each image, some of which count only if those they depend on do.

Rule 'official': `dpg_bench/compute_dpg_bench.py` of TencentQQGYLab/ELLA (3c228f1) in one process, with its quirks: the
first row of the questions is skipped, rows of one prompt must stand together (of several blocks the last counts), a
question that depends on a later one is not zeroed through it, images that fail are left out, and categories are those
of the last crop. Rule 'clean' has none of these.
"""

import functools
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from janus_jax.errors import InputError, shown
from janus_jax.evaluation.rows import Row, require, require_text
from janus_jax.evaluation.rules import Metrics, ReadAnswer, mean


def prepare_dpg(
  predictions: Sequence[Row], data: Sequence[Row] | None, allow_partial: bool
) -> tuple[list[dict[str, Any]], int]:
  """One row for each image: its answers, crop by crop, and the questions of its prompt.

  Args:
    predictions: {'file', 'crop': [x0, y0, x1, y1], 'question', 'answer'} each.
    data: rows of dpg_bench.csv.
    allow_partial: whether prompts may have no image.

  Returns:
    Rows, and the number of prompts without an image.
  """
  if data is None:
    raise InputError("DPG-Bench has no data: expected --data=dpg_bench.csv, the questions' file")
  require(data, ('item_id', 'proposition_id', 'dependency', 'tuple', 'question_natural_language'))
  require(predictions, ('file', 'crop', 'question', 'answer'))
  require_text(data, ('item_id', 'tuple', 'question_natural_language'), ' of the data')
  require_text(predictions, ('file', 'question', 'answer'))
  answers: dict[str, dict[tuple[float, ...], dict[str, list[str]]]] = {}
  for number, row in enumerate(predictions, 1):
    crop = row['crop']
    if not isinstance(crop, list) or len(crop) != 4 or not all(isinstance(side, int | float) for side in crop):
      raise InputError(f'row {number}: crop is {shown(crop)}: expected [x0, y0, x1, y1]')
    by_question = answers.setdefault(row['file'], {}).setdefault(tuple(crop), {})
    by_question.setdefault(row['question'], []).append(row['answer'])
  questions: dict[str, list[dict[str, Any]]] = {}
  block, previous = 0, None
  for number, row in enumerate(data):
    # The official scorer does not see the first row.
    block += number > 0 and row['item_id'] != previous
    previous = row['item_id'] if number else None
    question = {
      'id': _numbers(row, 'proposition_id', number)[0],
      'parents': _numbers(row, 'dependency', number),
      'category': row['tuple'].split('(')[0].strip(),
      'text': row['question_natural_language'],
      'prompt': row.get('text', ''),
      'is_first': number == 0,
      'block': block,
    }
    questions.setdefault(str(row['item_id']), []).append(question)
  rows = []
  for file, crops in answers.items():
    # In the order of the original: left before right, top before bottom.
    boxes = sorted(crops, key=lambda crop: (crop[1], crop[0]))
    prompt, ordered = os.path.basename(file).split('.')[0], [crops[crop] for crop in boxes]
    row = {'index': file, 'prompt': prompt, 'crops': ordered, 'boxes': boxes, 'questions': questions.get(prompt)}
    rows.append(row)
  most = max(len(row['crops']) for row in rows)
  short = [row['index'] for row in rows if len(row['crops']) < most]
  missing = [prompt for prompt in questions if prompt not in {row['prompt'] for row in rows}]
  if short and not allow_partial:
    raise InputError(f'{short[0]} ({len(short)} in all) has fewer than {most} crops: expected as many of each image')
  if missing and not allow_partial:
    raise InputError(f'prompt {missing[0]} ({len(missing)} of {len(questions)}) has no image: expected one each')
  return rows, len(missing)


def _numbers(row: Row, column: str, number: int) -> list[int]:
  try:
    return [int(text) for text in str(row[column]).split(',')]
  except ValueError:
    expected = 'expected a whole number, or several with commas'
    raise InputError(f'row {number + 1} of the data: {column} is {shown(row[column])}: {expected}') from None


def questions_of(row: Row, is_official: bool) -> dict[int, dict[str, Any]] | None:
  """Questions of an image by their number; None if its prompt has none."""
  found = row['questions'] or []
  if is_official:
    found = [question for question in found if not question['is_first']]
    found = [question for question in found if question['block'] == max(q['block'] for q in found)]
  return {question['id']: question for question in found} or None


def answers_by_number(
  questions: Mapping[int, Mapping[str, Any]], answers: Mapping[str, Sequence[str]], file: str
) -> dict[int, str]:
  """Number of a question -> its answer. Raises InputError for a question without one."""
  left = {text: list(given) for text, given in answers.items()}
  found = {}
  for number, question in questions.items():
    given = left.get(question['text'])
    if not given:
      raise InputError(f'{file}: no answer to {question["text"]!r}: expected one for each crop')
    found[number] = given.pop(0) if len(given) > 1 else given[0]
  return found


def _answered(
  questions: Mapping[int, Mapping[str, Any]], answers: Mapping[str, Sequence[str]], file: str
) -> dict[int, float]:
  """Number of a question -> 1 if its answer is yes."""
  return {number: float(answer == 'yes') for number, answer in answers_by_number(questions, answers, file).items()}


def _dependent(
  questions: Mapping[int, Mapping[str, Any]], scores: Mapping[int, float], is_official: bool
) -> dict[int, float]:
  """Scores, 0 where a question that one depends on has none. KeyError for a parent that does not exist."""
  found = dict(scores)
  passes = 1 if is_official else len(questions)  # So often at most does a zero go on to a question that stands earlier.
  for _ in range(passes):
    for number, question in questions.items():
      if any(parent and found[parent] == 0 for parent in question['parents']):
        found[number] = 0.0
  return found


def score_dpg(rows: Sequence[Row], is_official: bool) -> tuple[list[ReadAnswer], Metrics]:
  readings, by_category, images = [], {}, []
  for row in rows:
    questions = questions_of(row, is_official)
    if questions is None:
      if not is_official:
        raise InputError(f'{row["index"]}: no question is about {row["prompt"]!r}')
      readings.append(ReadAnswer('failed', 0.0))
      continue
    answered = [_answered(questions, answers, row['index']) for answers in row['crops']]
    try:
      crops = [mean(list(_dependent(questions, scores, is_official).values())) for scores in answered]
    except KeyError as error:
      if not is_official:
        raise InputError(f'{row["index"]}: a question depends on {error}, which does not exist') from None
      readings.append(ReadAnswer('failed', 0.0))
      continue
    images.append(mean(crops))
    readings.append(ReadAnswer(crops, images[-1]))
    for number, question in questions.items():
      scores = [crop[number] for crop in (answered[-1:] if is_official else answered)]
      by_category.setdefault(question['category'], []).extend(scores)
  by_broad: dict[str, list[float]] = {}
  for category, scores in by_category.items():
    by_broad.setdefault(category.split('-')[0].strip(), []).extend(scores)
  return readings, {
    'L1 category scores': {name: 100 * mean(scores) for name, scores in by_broad.items()},
    'L2 category scores': {name: 100 * mean(by_category[name]) for name in sorted(by_category)},
    'DPG-Bench score': float(np.mean(images) * 100) if images else math.nan,
  }


RULES = {'dpg': {rule: functools.partial(score_dpg, is_official=rule == 'official') for rule in ('official', 'clean')}}
