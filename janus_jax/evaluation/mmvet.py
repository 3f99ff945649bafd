"""MM-Vet: what a judge replied about each answer, read as three scorers read it. No score is made up.

Official: `mm-vet_evaluator.py` of yuweihao/MM-Vet. VLMEvalKit: `dataset/utils/mmvet.py`. lmms-eval 0.7.3:
`tasks/mmvet/utils.py`. Rows have `judge_replies`, a list of texts in the order of tries.
"""

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from janus_jax.errors import InputError
from janus_jax.evaluation.rows import Row, require
from janus_jax.evaluation.rules import Metrics, ReadAnswer, grouped, mean

CAPABILITIES = ('rec', 'ocr', 'know', 'gen', 'spat', 'math')
TRIES = 5
# lmms-eval asks three times for a reply that is not empty. One that is no number raises the temperature by 0.5 (to 2).
PATIENCE, WARMEST = 3, 2.0


def _number(text: str) -> float | None:
  try:
    return float(text)
  except ValueError:
    return None


def _is_grade(value: float | None) -> bool:
  return value is not None and not (value < 0 or value > 1)  # NaN is a grade, as in both originals.


def vlmevalkit_grade(replies: Iterator[str]) -> float:
  """The first of five replies that is a number as a whole."""
  for _ in range(TRIES):
    value = _number(next(replies))
    if _is_grade(value):
      return value
  return 0.0


def official_grade(replies: Iterator[str]) -> float:
  """The first of five replies whose first word is a number."""
  return vlmevalkit_grade(reply.split(' ')[0].strip() for reply in replies)


def lmms_grade(replies: Iterator[str]) -> float:
  """The first reply whose first word is a grade. After one that is no number, the reply after it is thrown away."""

  def ask() -> str:
    return next((reply.strip() for reply in (next(replies) for _ in range(PATIENCE)) if reply.strip()), '')

  temperature = 0.0
  while reply := ask():
    value = _number(reply.split(' ')[0].strip())
    if value is not None and 0 <= value <= 1:
      return value
    if value is None:
      temperature += 0.5
      ask()
      if temperature >= WARMEST:
        return 0.0
  return 0.0


def _graded(rows: Sequence[Row], grade: Callable[[Iterator[str]], float]) -> list[ReadAnswer]:
  require(rows, ('category', 'judge_replies'))
  readings = []
  for number, row in enumerate(rows, 1):
    replies = row['judge_replies']
    try:
      replies = json.loads(replies) if isinstance(replies, str) else replies
    except ValueError:
      replies = None
    if not isinstance(replies, list) or not all(isinstance(reply, str) for reply in replies):
      raise InputError(f'row {number}: judge_replies is {row["judge_replies"]!r}: expected a list of texts')
    try:
      readings.append(ReadAnswer(replies[0] if replies else None, grade(iter(replies))))
    except (StopIteration, RuntimeError):  # Inside a generator the one becomes the other.
      raise InputError(
        f'row {number}: none of its {len(replies)} replies is a grade: expected more, as the scorer would ask again'
      ) from None
  return readings


def _percent(readings: Sequence[ReadAnswer], indices: Sequence[int]) -> float | None:
  value = mean([readings[index].score for index in indices])
  return None if value is None else 100 * value


def _capabilities(row: Row) -> tuple[str, ...]:
  names = row['category']
  return tuple(map(str, names)) if isinstance(names, list) else tuple(str(names).split(','))


def mmvet_vlmevalkit(rows: Sequence[Row]) -> tuple[list[ReadAnswer], Metrics]:
  """One counter holds both tables, so that a question of one capability alone counts twice for it."""
  readings = _graded(rows, vlmevalkit_grade)
  joined = [','.join(_capabilities(row)) for row in rows]
  together = grouped([{'name': names.replace(',', '_')} for names in joined], 'name')
  single = {name: [index for index, names in enumerate(joined) if name in names] for name in CAPABILITIES}
  counted = {**together, **{name: indices + together.get(name, []) for name, indices in single.items()}}

  def table(names: Iterable[str]) -> dict[str, Any]:
    members = {**{name: counted[name] for name in names}, 'Overall': range(len(rows))}
    return {name: {'tot': len(some), 'acc': _percent(readings, some)} for name, some in members.items()}

  return readings, {'score': table(CAPABILITIES), 'score_fine': table(together)}


def mmvet_by_capability(
  rows: Sequence[Row], grade: Callable[[Iterator[str]], float], total: str
) -> tuple[list[ReadAnswer], Metrics]:
  """Means over all (named `total`), by capability, and by what stands together in one question."""
  readings = _graded(rows, grade)
  names = [_capabilities(row) for row in rows]
  single = {name: [index for index, found in enumerate(names) if name in found] for name in CAPABILITIES}
  together = grouped([{'names': '_'.join(sorted(set(found)))} for found in names], 'names')
  return readings, {
    total: _percent(readings, range(len(rows))),
    'capabilities': {name: _percent(readings, indices) for name, indices in single.items()},
    'integrations': {name: _percent(readings, indices) for name, indices in together.items()},
  }


RULES = {
  'mmvet': {
    **{f'vlmevalkit-{version}': mmvet_vlmevalkit for version in ('2026', '2025')},
    'lmms-eval': functools.partial(mmvet_by_capability, grade=lmms_grade, total='gpt_eval_score'),
    'official': functools.partial(mmvet_by_capability, grade=official_grade, total='total'),
  }
}
