"""Questions with options: MMBench and SEED-Bench, under the rules of VLMEvalKit, lmms-eval and others.

VLMEvalKit: `vlmeval/utils/matching_util.py` and `vlmeval/dataset/utils/multiple_choice.py` without a judge (fbf0418
and e8e78f0). lmms-eval 0.7.3: `tasks/mmbench/mmbench_evals.py`, `tasks/_task_utils/mcq_extract.py`,
`tasks/seedbench/utils.py`. Their quirks are kept.
"""

import functools
import math
import random
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from janus_jax.errors import InputError
from janus_jax.evaluation.rows import Row, as_vlmevalkit_reads, is_missing, require
from janus_jax.evaluation.rules import Metrics, ReadAnswer, grouped, mean

Choices = Mapping[str, Any]  # Letter -> text of the option.
REFUSALS = (
  "Sorry, I can't help with images of people yet.",
  "I can't process this file.",
  "I'm sorry, but without the image provided",
  'Cannot determine the answer',
)
FAILED = 'Failed to obtain answer via API'
# MMBench's abilities as VLMEvalKit shortens them.
ABILITIES = {
  'coarse_perception': 'CP',
  'finegrained_perception (instance-level)': 'FP-S',
  'finegrained_perception (cross-instance)': 'FP-C',
  'logic_reasoning': 'LR',
  'relation_reasoning': 'RR',
  'attribute_reasoning': 'AR',
}
ROTATIONS = 1_000_000  # A rotation of the options of question i has the index i + k * ROTATIONS.
JUDGE_SEED = 2680  # lmms-eval's, for a choice at random where its judge fails.
# What may stand around a letter, in the order in which lmms-eval looks for it.
AROUND = (
  ('', '.'), ('', ','), ('', ':'), ('', ')'), ('', ').'), ('(', ')'), ('(', ').'),
  (':', ''), (':', ','), (':', '.'), (':', ')'), (':', ').'),
)  # fmt: skip
PHRASES = (
  'the answer is', 'answer is', 'the correct answer is', 'correct answer is', 'the best answer is', 'best answer is',
  'the correct option is', 'correct option is', 'the best option is', 'best option is', 'the choice is', 'choice is',
  'the correct choice is', 'correct choice is', 'i choose', 'i select', 'i pick', 'my answer is', 'my choice is',
  '옵션', '정답은', '답은', '답:', '答案是', '答案为', '选', '答えは',
)  # fmt: skip


def options(row: Row, letters: str = string.ascii_uppercase) -> dict[str, Any]:
  """Options of a question that are not missing."""
  return {letter: row[letter] for letter in letters if letter in row and not is_missing(row[letter])}


def vlmevalkit_letter(text: str, choices: Choices, version: str) -> str | None:
  """The one letter of an option that is a word of a text; 'Z' for a refusal; None."""
  if FAILED in text:
    return None
  if any(refusal in text for refusal in REFUSALS):
    return 'Z'
  words = text.translate(str.maketrans(dict.fromkeys('.()[],:;!*#{}', ' '))).split()
  found = [letter for letter in choices if letter in words]
  if len(found) == 1 and (version == '2025' or words.index(found[0]) > len(words) - 5):
    return found[0]
  if not found and 'Z' in words:
    return 'Z'
  # No word boundary: 'The answer is a bird' is A.
  said = re.search(r'(?i)(?:correct\s+)?answer\s+is\s+\**([ABCD])\**', text) if version == '2026' else None
  return said.group(1).upper() if said and said.group(1).upper() in choices else None


def vlmevalkit_option(text: str, choices: Choices, version: str) -> str | None:
  """The letter that a text names, else that of the one option whose text it holds."""
  if found := vlmevalkit_letter(text, choices, version):
    return found
  if version == '2026' and len(text.lower()) > 2 * sum(len(str(option)) for option in choices.values()):
    return None
  return _option_inside(text, choices)


def _option_inside(text: str, choices: Choices) -> str | None:
  inside = [letter for letter, option in choices.items() if str(option).lower() in text.lower()]
  return inside[0] if len(inside) == 1 else None


def lmms_option(text: str, choices: Choices) -> str | None:
  """lmms-eval's `can_infer`: a letter among the words, with or without marks around it, else the option's text."""
  letters = 'ABCDE'
  words = text.split()
  if FAILED not in text:
    alone = [letter for letter in letters if letter in words]
    if len(alone) == 1 and not ('A' in words and len(words) > 3):
      return alone[0]
    for before, after in AROUND:
      found = [letter for letter in letters if f'{before}{letter}{after}' in words]
      if len(found) == 1:
        return found[0]
  return _option_inside(text, choices)


def lmms_extracted(text: str, letters: Sequence[str]) -> str | None:
  """lmms-eval's `extract_mcq_answer`: the letter in the strongest position; of equal ones the last."""
  if not text.strip():
    return None
  stripped = text.strip()
  for mark in ',.!?;:\'"':
    stripped = stripped.strip(mark)
  padded, stripped = f' {stripped} ', stripped.strip()
  found: list[tuple[int, int, str]] = []  # (priority, position, letter)
  for priority, form in ((6, '({})'), (5, '{}.'), (4, '{}:'), (3, '{})'), (2, '{} ')):
    texts = [(letter, form.format(letter)) for letter in letters]
    found += [(priority, padded.rfind(part), letter) for letter, part in texts if part in padded]
  for phrase in PHRASES:
    start = padded.lower().find(phrase)
    if start >= 0:
      positions = [(letter, padded.find(letter, start + len(phrase))) for letter in letters]
      found += [(7, position, letter) for letter, position in positions if position >= 0]
  for letter in letters:
    if stripped.startswith(letter) and not stripped[1:2].isalpha():
      found.append((10, 0, letter))
  for letter in letters:
    if stripped.endswith(letter) and (len(stripped) == 1 or not stripped[-2].isalpha()):
      found.append((9, len(padded) - 1, letter))
  if not found:
    found = [(0, padded.rfind(letter), letter) for letter in letters if letter in padded]
  # A stable sort: of equal ones the one that was found first.
  return max(found, key=lambda item: item[:2])[2] if found else None


def _accuracy(rows: Sequence[Row], scores: Sequence[float]) -> dict[str, dict[str, float | None]]:
  """Split -> means over all, over abilities and over categories; None where a split has none."""
  splits = grouped(rows, 'split') if rows and 'split' in rows[0] else {'none': list(range(len(rows)))}
  found: dict[str, dict[str, float | None]] = {}
  for split, members in splits.items():
    indices = set(members)
    found[str(split)] = {'Overall': mean([scores[index] for index in indices])}
    for column in ('l2-category', 'category'):
      groups = grouped(rows, column) if rows and column in rows[0] else {}
      for name in sorted(name for name in groups if not is_missing(name)):
        some = [scores[index] for index in groups[name] if index in indices]
        found[str(split)][ABILITIES.get(name, name)] = mean(some)
  return found


def _vanilla(rows: Sequence[Row], version: str) -> list[ReadAnswer]:
  found = [vlmevalkit_option(str(row['prediction']), options(row), version) or 'Z' for row in rows]
  return [ReadAnswer(None if read == 'Z' else read, float(read == row['answer'])) for read, row in zip(found, rows)]


def _in_order(rows: Sequence[Row]) -> tuple[list[Row], list[int]]:
  """Rows sorted by index, as VLMEvalKit and lmms-eval sort them, and where each comes from."""
  try:
    order = sorted(range(len(rows)), key=lambda number: int(rows[number]['index']))
  except (TypeError, ValueError):
    raise InputError('an index is no integer: expected those of the dataset') from None
  return [{**rows[number], 'index': int(rows[number]['index'])} for number in order], order


def _restored(readings: Sequence[ReadAnswer], order: Sequence[int]) -> list[ReadAnswer]:
  found = dict(zip(order, readings))
  return [found[number] for number in range(len(order))]


def mmbench_vlmevalkit(rows: Sequence[Row], version: str) -> tuple[list[ReadAnswer], Metrics]:
  """A question is right if all its rotations are. vanilla_0 counts the unrotated alone, vanilla_all each rotation."""
  require(rows, ('index', 'answer', 'prediction', 'A', 'B'))
  rows, order = _in_order(as_vlmevalkit_reads(rows))
  readings = _vanilla(rows, version)
  by_question: dict[int, list[int]] = {}
  for number, row in enumerate(rows):
    by_question.setdefault(row['index'] % ROTATIONS, []).append(number)
  main = [number for number, row in enumerate(rows) if row['index'] < ROTATIONS]
  main_rows = [rows[number] for number in main]
  hits = [min(readings[i].score for i in by_question[rows[number]['index']]) for number in main]
  metrics = _accuracy(main_rows, hits)
  for name, last in (('vanilla_0', ROTATIONS), ('vanilla_all', math.inf)):  # A rotation of question 0 is in the first.
    some = [number for number, row in enumerate(rows) if row['index'] <= last]
    found = _accuracy([rows[number] for number in some], [readings[number].score for number in some])
    metrics |= {f'{name}_{split}': values for split, values in found.items()}
  return _restored(readings, order), metrics


def seed_vlmevalkit(rows: Sequence[Row], version: str) -> tuple[list[ReadAnswer], Metrics]:
  require(rows, ('index', 'answer', 'prediction', 'A', 'B'))
  rows, order = _in_order(as_vlmevalkit_reads(rows))
  readings = _vanilla(rows, version)
  metrics = _accuracy(rows, [reading.score for reading in readings])
  return _restored(readings, order), metrics['none'] if list(metrics) == ['none'] else metrics


def mmbench_lmms_eval(rows: Sequence[Row], static: bool) -> tuple[list[ReadAnswer], Metrics]:
  """`static`: the task mmbench_en_dev_static; else mmbench_en_dev, whose judge is out of reach and samples letters."""
  require(rows, ('index', 'answer', 'prediction', 'A', 'B'))
  rows, order = _in_order(rows)
  generator = random.Random(JUDGE_SEED)
  by_question: dict[int, list[int]] = {}
  for number, row in enumerate(rows):
    by_question.setdefault(row['index'] % ROTATIONS, []).append(number)
  found = [lmms_option(str(row['prediction']), options(row, 'ABCD')) for row in rows]
  sampled: set[int] = set()
  main = [number for number, row in enumerate(rows) if row['index'] < ROTATIONS]
  hits = []
  for number in main:
    rotations = by_question[rows[number]['index']]
    is_right = all(found[i] in (None, rows[i]['answer']) for i in rotations)
    for i in rotations if is_right else ():
      if found[i] is not None:
        continue
      row = rows[i]
      if static:
        found[i] = lmms_extracted(str(row['prediction']), sorted(options(row, 'ABCD')))
      else:
        letters = string.ascii_uppercase[: sum(letter in row for letter in 'ABCD')] + 'E'
        found[i] = letters[generator.randint(0, len(letters) - 1)]
        sampled.add(i)
      if found[i] != row['answer']:
        is_right = False
        break
    hits.append(float(is_right))
  main_rows = [rows[number] for number in main]
  metrics: dict[str, Any] = {'overall_acc_x100': 100 * mean(hits) if hits else None}
  for column, name in (('category', 'category'), ('l2-category', 'l2_category')):
    groups = grouped(main_rows, column) if main_rows and column in main_rows[0] else {}
    metrics[name] = {key: mean([hits[index] for index in groups[key]]) for key in sorted(groups, key=str)}
  readings = [
    ReadAnswer(read, float(read == row['answer']), i in sampled) for i, (read, row) in enumerate(zip(found, rows))
  ]
  return _restored(readings, order), metrics


def _first_character(rows: Sequence[Row], answer: Callable[[str], str]) -> list[ReadAnswer]:
  found = [answer(str(row['prediction'])) for row in rows]
  same = [read.lower().strip() == str(row['answer']).lower().strip() for read, row in zip(found, rows)]
  return [ReadAnswer(read, float(right)) for read, right in zip(found, same)]


def seed_lmms_eval(rows: Sequence[Row]) -> tuple[list[ReadAnswer], Metrics]:
  """The first character of the answer, in either case."""
  require(rows, ('answer', 'prediction'))
  readings = _first_character(rows, lambda text: text.strip()[:1])
  kinds = grouped([{'data_type': row.get('data_type', 'image')} for row in rows], 'data_type')
  metrics = {f'seed_{kind}': mean([readings[index].score for index in indices]) for kind, indices in kinds.items()}
  return readings, metrics | {'seed_all': mean([reading.score for reading in readings])}


def seed_official(rows: Sequence[Row]) -> tuple[list[ReadAnswer], Metrics]:
  """The first character of the answer as it is, by InternVL's script; the authors' own ranks losses of the options.

  An empty answer, for which that script fails, is wrong.
  """
  require(rows, ('answer', 'prediction'))
  found = [str(row['prediction'])[:1] for row in rows]
  readings = [ReadAnswer(read, float(read == row['answer'])) for read, row in zip(found, rows)]
  kinds = grouped([{'data_type': row.get('data_type', 'image')} for row in rows], 'data_type')
  metrics: dict[str, Any] = {}
  for kind, indices in kinds.items():
    correct = sum(int(readings[index].score) for index in indices)
    metrics |= {
      f'{kind}_accuracy': 100 * correct / len(indices),
      f'{kind}_correct': correct,
      f'{kind}_count': len(indices),
    }
  metrics['total_accuracy'] = 100 * mean([reading.score for reading in readings])
  if all('category' in row for row in rows):
    groups = grouped(rows, 'category')
    metrics['per_type'] = {name: 100 * mean([readings[i].score for i in some]) for name, some in groups.items()}
  return readings, metrics


RULES = {
  'mmbench': {
    **{f'vlmevalkit-{v}': functools.partial(mmbench_vlmevalkit, version=v) for v in ('2026', '2025')},
    'lmms-eval': functools.partial(mmbench_lmms_eval, static=False),
    'lmms-eval-static': functools.partial(mmbench_lmms_eval, static=True),
  },
  'seedbench': {
    **{f'vlmevalkit-{v}': functools.partial(seed_vlmevalkit, version=v) for v in ('2026', '2025')},
    'lmms-eval': seed_lmms_eval,
    'official': seed_official,
  },
}
