"""Scores of the toy world: counts, target scores, a control by chance, and how they are printed."""

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from janus_jax.reporting.intervals import proportion_interval
from janus_jax.toy.questions import KINDS
from janus_jax.toy.test_set import GENERATION_GROUPS, QUESTION_GROUPS, GenerationCase, QuestionCase

# Prompts that ask for one object, by how much they say of it.
ONE_OBJECT_SKILLS = ('single_object', 'colours', 'attributes')
# Names of `QuestionCase.content`, in the order of the tables.
CONTENTS = {'one': 'one object', 'alike': 'several alike', 'two': 'two objects', 'digit': 'digit'}
IMAGES_FILE = 'images.npz'  # Beside scores.json: uint8[n, size, size, 3] of 'generations' and of 'questions'.
INTERVAL_NOTE = '[95 %]: 95 % interval; cases of one prompt, or about one image, do not count as independent'
CONTROL_NOTE = (
  "control: each answer or generated image scored against another item's question or prompt (of its line), as by chance"
)
STATISTICS_NOTE = (
  'bias: objects seen less objects asked for; by chance: mean distance of as many images sampled from training'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
  """A count of right cases.

  Attributes:
    units: (right cases, all cases) of each independent unit, a prompt or an image that is asked about.
    control: number that would be right had each case been given the answer or image of another case of its key.
    name: ('one', 'colour') for questions, ('counting',) for generations, a text for target scores.
    group: one of QUESTION_GROUPS or GENERATION_GROUPS; '' where several are counted together.
    target: percentage that the project promises; None: it stands beside the others for comparison.
  """

  units: Mapping[Hashable, tuple[int, int]]
  control: int
  name: tuple[str, ...] | str = ''
  group: str = ''
  target: float | None = None

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
  def control_percent(self) -> float:
    return percent(self.control, self.total)

  @property
  def interval(self) -> tuple[float, float] | None:
    """95 % interval in percent; None where there is nothing to count."""
    if not self.units:
      return None
    low, high = proportion_interval(*zip(*self.units.values()))
    return 100 * low, 100 * high

  @property
  def met(self) -> bool | None:
    """True where the percentage reaches the target, wherever the interval lies; None without a target."""
    return None if self.target is None else bool(self.units) and self.percent >= self.target

  @property
  def verdict(self) -> str:
    if self.target is None:
      return ''
    return 'met' if self.met else f'missed by {self.target - self.percent:.1f}'


def percent(right: int, total: int) -> float:
  """0 where there is nothing to count."""
  return 100 * right / total if total else 0.0


def combine(scores: Sequence[Score], **fields: Any) -> Score:
  """All cases together, with these other fields; a prompt or an image of several scores is one unit."""
  units: dict[Hashable, tuple[int, int]] = {}
  for item in scores:
    for unit, counted in item.units.items():
      units[unit] = tuple(map(sum, zip(units.get(unit, (0, 0)), counted)))
  return Score(units=units, control=sum(item.control for item in scores), **fields)


def swap_within(keys: Sequence[Hashable], seed: int) -> list[int]:
  """Another position of the same key for each, as one random cycle per key; its own where the key is alone."""
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


def count(
  cases: Sequence[QuestionCase] | Sequence[GenerationCase], right: Sequence[bool], control: Sequence[bool]
) -> list[Score]:
  """One score per key, in the order of the cases; all arguments have one entry per case."""
  found: dict[tuple[str, ...], list[Score]] = {}
  for case, is_right, by_chance in zip(cases, right, control, strict=True):
    single = Score(units={case.unit: (int(is_right), 1)}, control=int(by_chance))
    found.setdefault(case.key, []).append(single)
  return [combine(singles, name=key[:-1], group=key[-1]) for key, singles in found.items()]


def count_questions(cases: Sequence[QuestionCase], right: Sequence[bool], control: Sequence[bool]) -> list[Score]:
  """`count`, in the order of CONTENTS and KINDS."""
  found = count(cases, right, control)
  return sorted(found, key=lambda item: (list(CONTENTS).index(item.name[0]), KINDS.index(item.name[1])))


def target_scores(questions: Sequence[Score], generations: Sequence[Score]) -> list[Score]:
  """The promised figures. Their images were never shown and their prompts never said in training; what they show or say
  was, in other images and other words. Rows without a target are for combinations that training never shows at all.
  """

  def add(name: str, target: float | None, scores: Sequence[Score], names: list[tuple[str, ...]], group: str) -> Score:
    chosen = [score for score in scores if score.name in names and score.group == group]
    return combine(chosen, name=name, target=target)

  attributes = [('one', kind) for kind in ('colour', 'shape', 'size')]
  one_object = [(skill,) for skill in ONE_OBJECT_SKILLS]
  return [
    add('questions about one object', 90, questions, attributes, 'new_scene'),
    *(add(f'questions about one object: {name[1]}', 90, questions, [name], 'new_scene') for name in attributes),
    add('questions about one object, new combinations', None, questions, attributes, 'new_combination'),
    add('questions about digits', 95, questions, [('digit', 'digit')], 'new_scene'),
    add('generations of one object, new phrasings', 90, generations, one_object, 'new_phrasing'),
    add('generations of one object, new combinations', None, generations, one_object, 'new_combination'),
    add('generations of digits, new phrasings', 90, generations, [('digit',)], 'new_phrasing'),
  ]


def tables(
  questions: Sequence[Score], generations: Sequence[Score], more: Sequence[Sequence[Sequence[str]]] = ()
) -> str:
  """The text that the command prints; `more` tables are a head and lines each."""
  parts = (
    _target_table(target_scores(questions, generations)),
    _score_table('questions', questions, QUESTION_GROUPS),
    _score_table('generations', generations, GENERATION_GROUPS),
    *(align(lines) for lines in more if lines[1:]),
    '\n'.join((INTERVAL_NOTE, CONTROL_NOTE, *((STATISTICS_NOTE,) if more else ()))),
  )
  return '\n\n'.join(parts)


def _target_table(found: Sequence[Score]) -> str:
  rows = [('target scores', 'measured', '[95 %]', 'control', 'target', '')]
  for item in found:
    target = '' if item.target is None else f'{item.target:.0f} %'
    rows.append((item.name, *_measured(item), _control(item), target, item.verdict))
  return align(rows)


def _score_table(title: str, scores: Sequence[Score], groups: Sequence[str]) -> str:
  """A line per name, two columns per group, and the control over all groups."""
  nothing = Score(units={}, control=0)
  by_key = {(score.name, score.group): score for score in scores}
  lines = {line_name(score.name): [by_key.get((score.name, group), nothing) for group in groups] for score in scores}
  lines['all'] = [combine([score for score in scores if score.group == group]) for group in groups]
  rows = [(title, *(part for group in groups for part in (group.replace('_', ' '), '[95 %]')), 'control')]
  for name, line in lines.items():
    rows.append((name, *(text for item in line for text in _measured(item)), _control(combine(line))))
  return align(rows)


def line_name(name: Sequence[str]) -> str:
  """('one', 'colour') -> 'one object: colour'; ('two_objects',) -> 'two objects'."""
  return ': '.join((CONTENTS.get(name[0], name[0]).replace('_', ' '), *name[1:]))


def _measured(score: Score) -> tuple[str, str]:
  """Counts with percentage, and interval."""
  counts = f'{score.right}/{score.total}  {score.percent:5.1f} %' if score.total else ''
  return counts, interval_text(score.interval)


def _control(score: Score) -> str:
  return f'{score.control_percent:.1f} %' if score.total else ''


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


def score_dict(score: Score) -> dict[str, Any]:
  """JSON-ready: counts, percentages, the number of independent units, and the 95 % interval in percent."""
  own = {'group': score.group} if score.group else {'target': score.target, 'met': score.met}
  fields = ('name', 'right', 'total', 'control', 'percent', 'interval', 'control_percent')
  return {**{field: getattr(score, field) for field in fields}, 'units': len(score.units), **own}
