"""MMMU: questions with options, and open ones whose answer is looked for in the text.

Official: `mmmu/utils/eval_utils.py` of MMMU-Benchmark/MMMU (bb0b95a). lmms-eval 0.7.3: `tasks/mmmu/utils.py` and
`tasks/_task_utils/mmmu_mcq_utils.py`. VLMEvalKit: `dataset/utils/multiple_choice.py`. Where no option is found, the
first two sample one, with a seed and in the order of rows: both are part of the rule.
"""

import ast
import functools
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from janus_jax.errors import InputError, shown
from janus_jax.evaluation.multiple_choice import options, seed_vlmevalkit
from janus_jax.evaluation.rows import Row, as_vlmevalkit_reads, is_missing, require
from janus_jax.evaluation.rules import Metrics, ReadAnswer, grouped, mean, ratio

DOMAINS = {
  'Art and Design': ('Art', 'Art_Theory', 'Design', 'Music'),
  'Business': ('Accounting', 'Economics', 'Finance', 'Manage', 'Marketing'),
  'Science': ('Biology', 'Chemistry', 'Geography', 'Math', 'Physics'),
  'Health and Medicine': (
    'Basic_Medical_Science', 'Clinical_Medicine', 'Diagnostics_and_Laboratory_Medicine', 'Pharmacy', 'Public_Health',
  ),
  'Humanities and Social Science': ('History', 'Literature', 'Sociology', 'Psychology'),
  'Tech and Engineering': (
    'Agriculture', 'Architecture_and_Engineering', 'Computer_Science', 'Electronics', 'Energy_and_Power', 'Materials',
    'Mechanical_Engineering',
  ),
}  # fmt: skip
SEEDS = {'official': 42, 'lmms-eval': 0}
# Forms of a letter, tried in this order until one finds any.
FORMS = {'official': ('({})', ' {} '), 'lmms-eval': ('({})', '{} ', '{}.')}
INDICATORS = ('could be ', 'so ', 'is ', 'thus ', 'therefore ', 'final ', 'answer ', 'result ')
NUMBERS = (
  r'-?\b\d{1,3}(?:,\d{3})+\b',
  r'-?\d+(?:\.\d+)?[eE][+-]?\d+',
  r'-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])',
)
FEW_WORDS = 5  # A text of no more is not searched for the text of an option.


def find_option(text: str, choices: Mapping[str, str], rule: str) -> str | None:
  """Letter of the option that a text names last; None if it names none."""
  for mark in ",.!?;:'":
    text = text.strip(mark)
  text = f' {text} '
  for form in FORMS[rule]:
    if found := [letter for letter in choices if form.format(letter) in text]:
      # Positions are those between blanks, whichever form found the letters without brackets.
      position = form if form == '({})' else ' {} '
      return max(found, key=lambda letter: text.rfind(position.format(letter)))
  if len(text.split()) <= FEW_WORDS:
    return None
  lowered = text.lower()
  found = [letter for letter, option in choices.items() if option.lower() in lowered]
  return max(found, key=lambda letter: lowered.rfind(choices[letter].lower())) if found else None


def normalized_answers(text: str) -> list[str | float]:
  """A number, rounded to 2 digits; else the text in lower case, in two forms where it is a single character."""
  text = text.strip()
  try:
    return [round(float(text.replace(',', '')), 2)]
  except ValueError:
    text = text.lower()
    return [f' {text}', f'{text} '] if len(text) == 1 else [text]


def open_answers(text: str) -> list[str | float]:
  """Candidates for the answer in a text: the ends of its sentences, and the numbers in them."""
  text = text.strip().strip('.').lower()
  # Nothing is upper case any more, so that only lines are split.
  parts, tails = re.split(r'\.\s(?=[A-Z])|\n', text), []
  for number, part in enumerate(parts):
    indicators = (*INDICATORS, '=') if number == len(parts) - 1 else INDICATORS
    shortest = ''
    for indicator in indicators:
      tail = part.split(indicator)[-1].strip() if indicator in part else None
      if tail is not None and (not shortest or len(tail) < len(shortest)):
        shortest = tail
    if shortest and shortest not in (':', ',', '.', '!', '?', ';', "'"):
      tails.append(shortest)
  tails = tails or [text]
  numbers = [number for tail in tails for pattern in NUMBERS for number in re.findall(pattern, tail)]
  return [answer for found in (*tails, *numbers) for answer in normalized_answers(found)]


def is_open_right(gold: str | Sequence[str], answers: Sequence[str | float]) -> bool:
  """True if a gold answer is part of a candidate, or is the same number."""
  wanted = [answer for text in ([gold] if isinstance(gold, str) else gold) for answer in normalized_answers(str(text))]
  texts = [answer for answer in wanted if isinstance(answer, str)]
  return any(
    any(text in answer for text in texts) if isinstance(answer, str) else answer in wanted for answer in answers
  )


def choices_of(row: Row) -> dict[str, str]:
  """Options by letter: columns A, B ..., or a list that the hub's datasets write as a string."""
  if is_missing(row.get('options')) or row['options'] == '':
    return {letter: str(option) for letter, option in options(row).items() if option != ''}
  found = row['options']
  if isinstance(found, str):
    try:
      found = ast.literal_eval(found)
    except (SyntaxError, ValueError):
      found = None
  if not isinstance(found, list | tuple):
    raise InputError(f'{row.get("id")}: options are {shown(row["options"])}: expected a list')
  return {chr(ord('A') + number): str(option) for number, option in enumerate(found)}


def is_open(row: Row) -> bool:
  """True for a question without options."""
  return row['question_type'] != 'multiple-choice' if row.get('question_type') else not choices_of(row)


def _gold(row: Row, rule: str) -> Any:
  """The gold answer; a list that stands in a string is one by the official rule alone."""
  answer = row['answer']
  if isinstance(answer, list):
    return answer
  if rule == 'official' and is_open(row) and str(answer).startswith('['):
    try:
      return [str(text) for text in ast.literal_eval(answer)]
    except (SyntaxError, ValueError):
      pass
  return str(answer)


def score_mmmu(rows: Sequence[Row], rule: str) -> tuple[list[ReadAnswer], Metrics]:
  """Accuracy over all, of the six domains and of subjects; 'lmms-eval' names the first mmmu_acc."""
  require(rows, ('id', 'answer', 'prediction'))
  generator, readings = random.Random(SEEDS[rule]), []
  for row in rows:
    text, gold = str(row['prediction']), _gold(row, rule)
    text = text.strip() if rule == 'lmms-eval' else text
    if is_open(row):
      found = open_answers(text)
      readings.append(ReadAnswer(found, float(is_open_right(gold, found))))
    else:
      choices = choices_of(row)
      found = find_option(text, choices, rule)
      read = found or generator.choice(list(choices))
      is_right = read in gold if isinstance(gold, list) else read == gold
      readings.append(ReadAnswer(read, float(is_right), is_random=found is None))
  metrics = _by_domain(rows, readings)
  # What a scorer that samples nothing would give: those rows are wrong.
  metrics['without_random'] = mean([0.0 if reading.is_random else reading.score for reading in readings])
  return readings, {'mmmu_acc': metrics['Overall']['acc'], **metrics} if rule == 'lmms-eval' else metrics


def subject_of(row: Row) -> str:
  """'Basic_Medical_Science' for the id validation_Basic_Medical_Science_10."""
  return '_'.join(str(row['id']).split('_')[1:-1])


def _by_domain(rows: Sequence[Row], readings: Sequence[ReadAnswer]) -> dict[str, Any]:
  subjects = grouped([{'subject': subject_of(row)} for row in rows], 'subject')
  found: dict[str, Any] = {}

  def add(name: str, indices: Sequence[int]) -> None:
    accuracy = ratio(sum(readings[index].score for index in indices), len(indices)) or 0
    found[name] = {'num': len(indices), 'acc': accuracy}

  for domain, names in DOMAINS.items():
    present = [name for name in names if name in subjects]
    add(f'Overall-{domain}', [index for name in present for index in subjects[name]])
    for name in present:
      add(name, subjects[name])
  known = [name for names in DOMAINS.values() for name in names if name in subjects]
  if unknown := [name for name in subjects if name not in known]:
    raise InputError(f'MMMU has no subject {unknown[0]!r}: expected ids such as validation_Accounting_1')
  add('Overall', range(len(rows)))
  return found


def mmmu_vlmevalkit(rows: Sequence[Row], version: str) -> tuple[list[ReadAnswer], Metrics]:
  """An open question becomes one between its answer (A) and 'Other Answers' (B).

  Its gold letter is A, unless the answer itself is a capital letter.
  """
  require(rows, ('index', 'answer', 'prediction'))
  changed = []
  for row in as_vlmevalkit_reads([{**dict.fromkeys('AB', ''), **choices_of(row), **row} for row in rows]):
    answer = row['answer']
    is_letter = isinstance(answer, str) and len(answer) == 1 and 'A' <= answer <= 'Z'
    opened = {'A': answer, 'B': 'Other Answers'} if is_missing(row['A']) else {}
    changed.append({**row, **opened, 'answer': answer if is_letter else 'A'})
  return seed_vlmevalkit(changed, version)


RULES = {
  'mmmu': {
    **{f'vlmevalkit-{v}': functools.partial(mmmu_vlmevalkit, version=v) for v in ('2026', '2025')},
    **{rule: functools.partial(score_mmmu, rule=rule) for rule in ('lmms-eval', 'official')},
  }
}
