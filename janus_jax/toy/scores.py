"""Scores of the toy world: rows to count, the goals, a control by chance, and how they are printed."""

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from janus_jax.reporting.intervals import proportion_interval
from janus_jax.toy.questions import TYPES
from janus_jax.toy.shape_judge import Verdict
from janus_jax.toy.test_set import DRAWING_GROUPS, QUESTION_GROUPS, DrawingCase, QuestionCase, tally

# Prompts that ask for one object, by how much they say of it.
ONE_OBJECT_SKILLS = ('single_object', 'colours', 'attributes')
SUBJECTS = {'one': 'one object', 'alike': 'several alike', 'two': 'two objects', 'digit': 'digit'}


INTERVAL_NOTE = '[95 %]: 95 % interval; cases of one prompt, or about one image, do not count as independent'
CONTROL_NOTE = (
  "control: each answer or generated image scored against another item's question or prompt (of its line), as by chance"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Count:
  """How many cases were right.

  Attributes:
    units: of each independent unit, a prompt or an image that is asked about, cases that were right, and all of them.
    control: how many would be right had each case been given the answer or the drawing of another case of its sort.
  """

  units: Mapping[Hashable, tuple[int, int]]
  control: int

  @property
  def right(self) -> int:
    return sum(right for right, _ in self.units.values())

  @property
  def total(self) -> int:
    return sum(total for _, total in self.units.values())

  @property
  def percent(self) -> float:
    return percent(self.right, self.total)

  @property
  def interval(self) -> tuple[float, float] | None:
    """In percent; None where there is nothing to count."""
    if not self.units:
      return None
    low, high = proportion_interval(*zip(*self.units.values()))
    return 100 * low, 100 * high


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score(Count):
  """How many of one sort of cases were right.

  Attributes:
    name: of the sort: ('one', 'colour') for questions, ('counting',) for drawings.
    group: one of QUESTION_GROUPS or DRAWING_GROUPS.
  """

  name: tuple[str, ...]
  group: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goal(Count):
  """A figure that the project promises, or (goal None) one that stands beside these for comparison."""

  name: str
  goal: float | None

  @property
  def met(self) -> bool | None:
    """By the percentage itself: whether the interval lies above the goal is for the reader to see."""
    return None if self.goal is None else bool(self.units) and self.percent >= self.goal

  @property
  def verdict(self) -> str:
    if self.goal is None:
      return ''
    return 'met' if self.met else f'missed by {self.goal - self.percent:.1f}'


def combine(counts: Sequence[Count]) -> Count:
  """Of all cases together; a prompt or an image of several counts is one unit."""
  units: dict[Hashable, tuple[int, int]] = {}
  for item in counts:
    for unit, (right, total) in item.units.items():
      before = units.get(unit, (0, 0))
      units[unit] = before[0] + right, before[1] + total
  return Count(units=units, control=sum(item.control for item in counts))


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


def count(
  keys: Sequence[tuple[str, ...]], units: Sequence[Hashable], right: Sequence[bool], control: Sequence[bool]
) -> list[Score]:
  """One score per key; the last part of a key is its group. All arguments have one entry per case."""
  chance, found = tally(keys, control), {key: {} for key in keys}
  for (key, unit), counted in tally(list(zip(keys, units, strict=True)), right).items():
    found[key][unit] = counted
  return [Score(name=key[:-1], group=key[-1], units=of, control=chance[key][0]) for key, of in found.items()]


def count_questions(cases: Sequence[QuestionCase], right: Sequence[bool], control: Sequence[bool]) -> list[Score]:
  """One score per subject, kind and group, in the order of SUBJECTS and TYPES; images are the units."""
  found = count([question_key(case) for case in cases], [case.image.tobytes() for case in cases], right, control)
  return sorted(found, key=lambda item: (list(SUBJECTS).index(item.name[0]), TYPES.index(item.name[1])))


def count_drawings(cases: Sequence[DrawingCase], right: Sequence[bool], control: Sequence[bool]) -> list[Score]:
  """One score per skill and group, in the order of the cases; prompts are the units."""
  return count([drawing_key(case) for case in cases], [case.prompt for case in cases], right, control)


def goals(questions: Sequence[Score], drawings: Sequence[Score]) -> list[Goal]:
  """The goal figures. Their images were never shown and their prompts never said in training; what they show or say
  was, in other images and other words. Rows without a goal are for combinations that training never shows at all.
  """

  def add(name: str, goal: float | None, scores: Sequence[Score], names: list[tuple[str, ...]], group: str) -> Goal:
    found = combine([score for score in scores if score.name in names and score.group == group])
    return Goal(name=name, goal=goal, units=found.units, control=found.control)

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
      f'{INTERVAL_NOTE}\n{CONTROL_NOTE}',
    )
  )


def goal_table(found: Sequence[Goal]) -> str:
  rows = [('goals', 'measured', '[95 %]', 'control', 'goal', '')]
  for item in found:
    goal = '' if item.goal is None else f'{item.goal:.0f} %'
    rows.append((item.name, cell(item), interval_text(item.interval), control(item), goal, item.verdict))
  return align(rows)


def score_table(title: str, scores: Sequence[Score], groups: Sequence[str]) -> str:
  """A line per sort, a column per group with its interval, and the control over all groups."""
  by_key = {(score.name, score.group): score for score in scores}
  rows = [(title, *(part for group in groups for part in (group.replace('_', ' '), '[95 %]')), 'control')]
  for name in dict.fromkeys(score.name for score in scores):
    rows.append((line_name(name), *_cells([by_key.get((name, group)) for group in groups])))
  columns = [[score for score in scores if score.group == group] for group in groups]
  rows.append(('all', *_cells([combine(column) for column in columns])))
  return align(rows)


def _cells(line: Sequence[Count | None]) -> list[str]:
  present = [item for item in line if item]
  texts = [text for item in line for text in ((cell(item), interval_text(item.interval)) if item else ('', ''))]
  return [*texts, control(combine(present))]


def cell(found: Count) -> str:
  return f'{found.right}/{found.total}  {found.percent:5.1f} %' if found.total else ''


def control(found: Count) -> str:
  return f'{percent(found.control, found.total):.1f} %' if found.total else ''


def interval_text(interval: Sequence[float] | None) -> str:
  """'[86, 97]', in percent and rounded outwards; '' for none."""
  return f'[{math.floor(interval[0])}, {math.ceil(interval[1])}]' if interval else ''


def align(rows: Sequence[Sequence[str]]) -> str:
  """The first column to the left, the others to the right, under a line."""
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = [
    '  '.join([row[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(row[1:], widths[1:]))]).rstrip()
    for row in rows
  ]
  return '\n'.join([lines[0], '-' * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]])


def score_dict(score: Score | Goal) -> dict[str, Any]:
  """JSON-ready: counts, percentages, the number of independent units, and the 95 % interval in percent."""
  own = (
    {'name': score.name, 'goal': score.goal} if isinstance(score, Goal) else {'name': score.name, 'group': score.group}
  )
  found = {
    **own,
    'right': score.right,
    'total': score.total,
    'control': score.control,
    'percent': score.percent,
    'units': len(score.units),
    'interval': score.interval,
    'control_percent': percent(score.control, score.total),
  }
  return {**found, 'met': score.met} if isinstance(score, Goal) else found


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
