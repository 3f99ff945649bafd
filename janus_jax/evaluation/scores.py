"""Scores of the embedded world: rows to count, the goals, a control by chance, and how they are printed."""

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from janus_jax.data.worlds.questions import TYPES
from janus_jax.evaluation.embedded import DRAWING_GROUPS, QUESTION_GROUPS, DrawingCase, QuestionCase, tally
from janus_jax.evaluation.shapes import Verdict

# Prompts that ask for one object, by how much they say of it.
ONE_OBJECT_SKILLS = ('single_object', 'colours', 'attributes')
SUBJECTS = {'one': 'one object', 'alike': 'several alike', 'two': 'two objects', 'digit': 'digit'}


@dataclasses.dataclass(frozen=True)
class Score:
  """How many of one sort of cases were right.

  Attributes:
    name: of the sort: ('one', 'colour') for questions, ('counting',) for drawings.
    group: one of QUESTION_GROUPS or DRAWING_GROUPS.
    right: cases.
    total: cases.
    control: how many would be right had each case been given the answer or the drawing of another case of its sort.
  """

  name: tuple[str, ...]
  group: str
  right: int
  total: int
  control: int


@dataclasses.dataclass(frozen=True)
class Goal:
  """A figure that the project promises, or (goal None) one that stands beside these for comparison."""

  name: str
  goal: float | None
  right: int
  total: int
  control: int

  @property
  def met(self) -> bool | None:
    return None if self.goal is None else bool(self.total) and percent(self.right, self.total) >= self.goal

  @property
  def verdict(self) -> str:
    if self.goal is None:
      return ''
    return 'met' if self.met else f'missed by {self.goal - percent(self.right, self.total):.1f}'


def percent(right: int, total: int) -> float:
  """0 where there is nothing to count."""
  return 100 * right / total if total else 0.0


def swap_within(keys: Sequence[Hashable], seed: int) -> list[int]:
  """For each position another one of the same key, as one random cycle per key; its own where the key is alone."""
  rng = np.random.default_rng(seed)
  positions: dict[Hashable, list[int]] = {}
  for position, key in enumerate(keys):
    positions.setdefault(key, []).append(position)
  swapped = [0] * len(keys)
  for members in positions.values():
    order = rng.permutation(members).tolist()
    for position, other in zip(order, order[1:] + order[:1]):
      swapped[position] = other
  return swapped


def question_key(case: QuestionCase) -> tuple[str, str, str]:
  return case.subject, case.kind, case.group


def drawing_key(case: DrawingCase) -> tuple[str, str]:
  return case.skill, case.group


def line_name(name: tuple[str, ...]) -> str:
  """('one', 'colour') -> 'one object: colour'; ('two_objects',) -> 'two objects'."""
  return ': '.join(SUBJECTS.get(part, part).replace('_', ' ') if i == 0 else part for i, part in enumerate(name))


def count(keys: Sequence[tuple[str, ...]], right: Sequence[bool], control: Sequence[bool]) -> list[Score]:
  """One score per key; the last part of a key is its group."""
  chance = tally(keys, control)
  return [Score(key[:-1], key[-1], *found, chance[key][0]) for key, found in tally(keys, right).items()]


def count_questions(cases: Sequence[QuestionCase], right: Sequence[bool], control: Sequence[bool]) -> list[Score]:
  """One score per subject, kind and group, in the order of SUBJECTS and TYPES."""
  found = count([question_key(case) for case in cases], right, control)
  return sorted(found, key=lambda item: (list(SUBJECTS).index(item.name[0]), TYPES.index(item.name[1])))


def count_drawings(cases: Sequence[DrawingCase], right: Sequence[bool], control: Sequence[bool]) -> list[Score]:
  """One score per skill and group, in the order of the cases."""
  return count([drawing_key(case) for case in cases], right, control)


def goals(questions: Sequence[Score], drawings: Sequence[Score]) -> list[Goal]:
  """The goal figures. Their images were never shown and their prompts never said in training; what they show or say
  was, in other images and other words. Rows without a goal are for combinations that training never shows at all.
  """

  def add(name: str, goal: float | None, scores: Sequence[Score], names: list[tuple[str, ...]], group: str) -> Goal:
    chosen = [score for score in scores if score.name in names and score.group == group]
    return Goal(name, goal, *(sum(getattr(score, part) for score in chosen) for part in ('right', 'total', 'control')))

  attributes = [('one', kind) for kind in ('colour', 'shape', 'size')]
  one_object = [(skill,) for skill in ONE_OBJECT_SKILLS]
  return [
    add('questions about one object', 90, questions, attributes, 'new_scene'),
    *(add(f'questions about one object: {name[1]}', 90, questions, [name], 'new_scene') for name in attributes),
    add('questions about one object, new combinations', None, questions, attributes, 'new_combination'),
    add('questions about digits', 95, questions, [('digit', 'digit')], 'new_scene'),
    add('drawings of one object, new wordings', 90, drawings, one_object, 'new_wording'),
    add('drawings of one object, new combinations', None, drawings, one_object, 'new_combination'),
    add('drawings of digits, new wordings', 90, drawings, [('digit',)], 'new_wording'),
  ]


def tables(found: Sequence[Goal], questions: Sequence[Score], drawings: Sequence[Score]) -> str:
  """What the command prints."""
  return '\n\n'.join(
    (
      goal_table(found),
      score_table('questions', questions, QUESTION_GROUPS),
      score_table('drawings', drawings, DRAWING_GROUPS),
      'control: the same answers and drawings, each judged as that of another question or prompt of its line',
    )
  )


def goal_table(found: Sequence[Goal]) -> str:
  rows = [('goals', 'measured', 'control', 'goal', '')]
  for item in found:
    goal = '' if item.goal is None else f'{item.goal:.0f} %'
    rows.append((item.name, cell(item.right, item.total), share(item.control, item.total), goal, item.verdict))
  return align(rows)


def score_table(title: str, scores: Sequence[Score], groups: Sequence[str]) -> str:
  """A line per sort, a column per group, and the control over all groups."""
  by_key = {(score.name, score.group): score for score in scores}
  rows = [(title, *(group.replace('_', ' ') for group in groups), 'control')]
  for name in dict.fromkeys(score.name for score in scores):
    line = [by_key.get((name, group)) for group in groups]
    cells = [cell(score.right, score.total) if score else '' for score in line]
    present = [score for score in line if score]
    control = share(sum(score.control for score in present), sum(score.total for score in present))
    rows.append((line_name(name), *cells, control))
  totals = [[score for score in scores if score.group == group] for group in groups]
  sums = [cell(sum(s.right for s in column), sum(s.total for s in column)) for column in totals]
  rows.append(('all', *sums, share(sum(s.control for s in scores), sum(s.total for s in scores))))
  return align(rows)


def cell(right: int, total: int) -> str:
  return f'{right}/{total}  {percent(right, total):5.1f} %' if total else ''


def share(right: int, total: int) -> str:
  return f'{percent(right, total):.1f} %' if total else ''


def align(rows: Sequence[Sequence[str]]) -> str:
  """The first column to the left, the others to the right, under a line."""
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = [
    '  '.join([row[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(row[1:], widths[1:]))]).rstrip()
    for row in rows
  ]
  return '\n'.join([lines[0], '-' * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]])


def score_dict(score: Score | Goal) -> dict[str, Any]:
  """JSON-ready, with the percentages."""
  extra = {'percent': percent(score.right, score.total), 'control_percent': percent(score.control, score.total)}
  if isinstance(score, Goal):
    extra['met'] = score.met
  return {**dataclasses.asdict(score), **extra}


def question_dict(case: QuestionCase, answer: str, image: int) -> dict[str, Any]:
  """JSON-ready. `image` is the number of the picture that was asked about."""
  return {
    'subject': case.subject,
    'kind': case.kind,
    'group': case.group,
    'image': image,
    'question': case.text,
    'answer': answer,
    'expected': list(case.answers),
    'right': case.is_right(answer),
  }


def drawing_dict(case: DrawingCase, verdict: Verdict) -> dict[str, Any]:
  """JSON-ready."""
  return {
    'skill': case.skill,
    'group': case.group,
    'prompt': case.prompt,
    'right': verdict.passed,
    'reason': verdict.reason,
  }
