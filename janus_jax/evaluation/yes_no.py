"""Questions whose answer is yes or no: POPE and MME, under the rules of four scorers.

VLMEvalKit: `vlmeval/dataset/utils/yorn.py` without a judge (commits fbf0418 for the report's days, e8e78f0 for
2026; they differ in one expression). lmms-eval 0.7.3: `tasks/pope/utils.py`, `tasks/mme/utils.py`. Official:
POPE's `evaluate.py`, MME's `calculation.py`. Each has quirks, which are kept, as the numbers that people publish have
them.
"""

import functools
import re
from collections.abc import Callable, Sequence

from janus_jax.errors import InputError
from janus_jax.evaluation.rows import Row, as_vlmevalkit_reads, is_missing, require
from janus_jax.evaluation.rules import Metrics, ReadAnswer, grouped, mean, ratio

PERCEPTION = (
  'existence', 'count', 'position', 'color', 'posters', 'celebrity', 'scene', 'landmark', 'artwork', 'OCR',
)  # fmt: skip
COGNITION = ('commonsense_reasoning', 'numerical_calculation', 'text_translation', 'code_reasoning')
# VLMEvalKit deletes these where one of them stands next to a blank or a number has a comma, else they become blanks.
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# Full stops that are no part of a number are deleted. fbf0418 looks for digits before them with a typing error.
FULL_STOPS = {'2025': r'\.(?!\d)', '2026': r'(?<!\d)\.(?!\d)'}
MOST_STOPS = 32  # The flag re.UNICODE stands where a count belongs.


def vlmevalkit_answer(text: str, version: str) -> str:
  """'Yes' if the word yes is in a text and no is not, 'No' the other way round, else 'Unknown'."""
  text = cleaned = text.lower()
  has_number = re.search(r'\d,\d', text) is not None
  for mark in PUNCTUATION:
    cleaned = cleaned.replace(mark, '' if has_number or f'{mark} ' in text or f' {mark}' in text else ' ')
  words = re.sub(FULL_STOPS[version], '', cleaned, count=MOST_STOPS).split()
  if ('yes' in words) == ('no' in words):
    return 'Unknown'
  return 'Yes' if 'yes' in words else 'No'


def official_pope_answer(text: str) -> str:
  """'no' if no, No or not is a word of the first sentence, else 'yes'."""
  words = text.split('.')[0].replace(',', '').split(' ')
  return 'no' if {'No', 'not', 'no'} & set(words) else 'yes'


def official_mme_answer(text: str) -> str:
  """'yes' or 'no', whichever is in the first four characters, else 'other'."""
  return next((word for word in ('yes', 'no') if word in text.lower()[:4]), 'other')


def lmms_mme_answer(text: str) -> str:
  """`official_mme_answer` without full stops and blanks around the text; 'y' and 'n' alone are answers too."""
  text = text.strip().lower().strip().replace('.', '')
  return {'y': 'yes', 'n': 'no'}.get(text) or official_mme_answer(text)


def _gold(rows: Sequence[Row]) -> list[str]:
  """Gold answers as 'yes' and 'no'. Raises InputError for others."""
  gold = [str(row['answer']).strip().lower().rstrip('.') for row in rows]
  for number, answer in enumerate(gold, 1):
    if answer not in ('yes', 'no'):
      raise InputError(f'row {number}: the answer is {rows[number - 1]["answer"]!r}: expected Yes or No')
  return gold


def _read(rows: Sequence[Row], answer: Callable[[str], str], columns: Sequence[str]) -> list[ReadAnswer]:
  """Reads predictions by a rule whose result is compared with the gold answer, whatever the case of both."""
  require(rows, ('answer', 'prediction', *columns))
  found = [answer(str(row['prediction'])) for row in rows]
  return [ReadAnswer(read, float(read.lower() == gold)) for read, gold in zip(found, _gold(rows))]


def _counts(readings: Sequence[ReadAnswer], gold: Sequence[str]) -> tuple[int, int, int, int]:
  """True and false positives, true and false negatives. What is read as neither counts as no."""
  said = [reading.read.lower() == 'yes' for reading in readings]
  pairs = [(yes, answer == 'yes') for yes, answer in zip(said, gold)]
  return tuple(map(pairs.count, ((True, True), (True, False), (False, False), (False, True))))


def _f1(precision: float | None, recall: float | None) -> float | None:
  if precision is None or recall is None:
    return None
  return ratio(2 * precision * recall, precision + recall)


def pope_vlmevalkit(rows: Sequence[Row], version: str) -> tuple[list[ReadAnswer], Metrics]:
  """`Overall` counts a question once for each subset that its category names."""
  rows = as_vlmevalkit_reads(rows)
  readings = _read(rows, functools.partial(vlmevalkit_answer, version=version), ('category',))
  gold = _gold(rows)
  subsets = _subsets(rows)

  def percent(indices: Sequence[int]) -> dict[str, float]:
    some = [readings[index] for index in indices]
    true_yes, false_yes, _, false_no = _counts(some, [gold[index] for index in indices])
    precision, recall = ratio(true_yes, true_yes + false_yes) or 0, ratio(true_yes, true_yes + false_no) or 0
    found = {'Overall': _f1(precision, recall) or 0, 'acc': mean([reading.score for reading in some])}
    return {name: 100 * value for name, value in {**found, 'precision': precision, 'recall': recall}.items()}

  nowhere = [index for index, row in enumerate(rows) if is_missing(row['category'])]
  everything = [index for indices in (*subsets.values(), nowhere) for index in indices]
  return readings, {'Overall': percent(everything), **{name: percent(subsets[name]) for name in sorted(subsets)}}


def pope_lmms_eval(rows: Sequence[Row]) -> tuple[list[ReadAnswer], Metrics]:
  """The answer must be the word alone. Answers that are neither leave recall; the ratio of yes is that of the gold."""
  readings = _read(rows, lambda text: text.strip().lower(), ())
  gold = _gold(rows)

  def metrics(indices: Sequence[int]) -> dict[str, float]:
    pairs = [(readings[index].read, gold[index]) for index in indices]
    precision = ratio(pairs.count(('yes', 'yes')), pairs.count(('yes', 'yes')) + pairs.count(('yes', 'no'))) or 0
    recall = ratio(pairs.count(('yes', 'yes')), pairs.count(('yes', 'yes')) + pairs.count(('no', 'yes'))) or 0
    return {
      'pope_accuracy': mean([readings[index].score for index in indices]),
      'pope_precision': precision,
      'pope_recall': recall,
      'pope_f1_score': _f1(precision, recall) or 0,
      'pope_yes_ratio': mean([answer == 'yes' for _, answer in pairs]),
    }

  return readings, {'all': metrics(range(len(rows))), **{name: metrics(some) for name, some in _subsets(rows).items()}}


def pope_official(rows: Sequence[Row]) -> tuple[list[ReadAnswer], Metrics]:
  """Everything that is not no is yes. The mean F1 of the three subsets, x 100, is what LLaVA's and InternVL's print."""
  readings = _read(rows, official_pope_answer, ())
  gold = _gold(rows)

  def metrics(indices: Sequence[int]) -> dict[str, float | None]:
    counts = _counts([readings[index] for index in indices], [gold[index] for index in indices])
    true_yes, false_yes, true_no, false_no = counts
    precision, recall = ratio(true_yes, true_yes + false_yes), ratio(true_yes, true_yes + false_no)
    return {
      **dict(zip(('TP', 'FP', 'TN', 'FN'), counts)),
      'accuracy': (true_yes + true_no) / len(indices),
      'precision': precision,
      'recall': recall,
      'f1': _f1(precision, recall),
      'yes_ratio': (true_yes + false_yes) / len(indices),
    }

  subsets = {name: metrics(some) for name, some in _subsets(rows).items()}
  scores = [subset['f1'] for subset in subsets.values()]
  found = {'all': metrics(range(len(rows))), **subsets}
  return readings, found | {
    'mean_f1_of_three_subsets_x100': None if None in scores or not scores else 100 * mean(scores)
  }


def _subsets(rows: Sequence[Row]) -> dict[str, list[int]]:
  """POPE's subset -> indices of its rows; a question may stand in several, whose names a comma joins."""
  subsets: dict[str, list[int]] = {}
  for index, row in enumerate(rows):
    for name in [] if is_missing(row.get('category')) else str(row['category']).split(','):
      subsets.setdefault(name, []).append(index)
  return subsets


def mme_vlmevalkit(rows: Sequence[Row], version: str) -> tuple[list[ReadAnswer], Metrics]:
  rows = as_vlmevalkit_reads(rows)
  readings = _read(rows, functools.partial(vlmevalkit_answer, version=version), ('category', 'image_path'))
  scores = _mme_scores(rows, readings, 'image_path')
  if missing := [name for name in (*PERCEPTION, *COGNITION) if name not in scores]:
    raise InputError(f'MME has no question of the category {missing[0]}: expected all 14')
  sums = {'perception': sum(scores[name] for name in PERCEPTION), 'reasoning': sum(scores[name] for name in COGNITION)}
  return readings, {**sums, **scores}


def mme_lmms_eval(rows: Sequence[Row]) -> tuple[list[ReadAnswer], Metrics]:
  readings = _read(rows, lmms_mme_answer, ('category',))
  scores = _mme_scores(rows, readings, 'question_id')
  perception = sum(score for name, score in scores.items() if name in PERCEPTION)
  cognition = sum(score for name, score in scores.items() if name not in PERCEPTION)
  return readings, {'mme_perception_score': perception, 'mme_cognition_score': cognition, **scores}


def mme_official(rows: Sequence[Row]) -> tuple[list[ReadAnswer], Metrics]:
  readings = _read(rows, official_mme_answer, ('category',))
  scores = _mme_scores(rows, readings, 'image_path')
  found = {}
  for name, tasks in (('Perception', PERCEPTION), ('Cognition', COGNITION)):
    present = {task: scores[task] for task in tasks if task in scores}
    found |= {name: sum(present.values()), **present}
  return readings, found


def _mme_scores(rows: Sequence[Row], readings: Sequence[ReadAnswer], image: str) -> dict[str, float]:
  """Category -> 100 times (accuracy of questions, plus that of images, both of whose questions must be right).

  Images are told apart by the column `image`; by the other name where the rows come from another harness's file.
  """
  scores = {}
  image = image if all(image in row for row in rows) else {'question_id': 'image_path'}.get(image, 'question_id')
  require(rows, (image,))
  for category, indices in grouped(rows, 'category').items():
    pairs: dict[str, list[float]] = {}
    for index in indices:
      pairs.setdefault(str(rows[index][image]), []).append(readings[index].score)
    for name, pair in pairs.items():
      if len(pair) != 2:
        raise InputError(f'{category}: image {name} has {len(pair)} questions: expected 2')
    scores[category] = 100 * (
      mean([readings[index].score for index in indices]) + mean([min(p) for p in pairs.values()])
    )
  return scores


RULES = {
  'pope': {
    **{f'vlmevalkit-{v}': functools.partial(pope_vlmevalkit, version=v) for v in ('2026', '2025')},
    'lmms-eval': pope_lmms_eval,
    'official': pope_official,
  },
  'mme': {
    **{f'vlmevalkit-{v}': functools.partial(mme_vlmevalkit, version=v) for v in ('2026', '2025')},
    'lmms-eval': mme_lmms_eval,
    'official': mme_official,
  },
}
