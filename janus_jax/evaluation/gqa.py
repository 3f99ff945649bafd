"""GQA. Official: `eval.py` of the dataset's authors over raw answers, and over those that LLaVA's converter makes.

VLMEvalKit: `dataset/image_vqa.py`, `utils/vqa_eval.py`. lmms-eval 0.7.3: the metric exact_match of `api/metrics.py`.
"""

import functools
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from janus_jax.evaluation.rows import Row, as_vlmevalkit_reads, require
from janus_jax.evaluation.rules import Metrics, ReadAnswer, mean

DETAILS = ('accuracyPerStructuralType', 'accuracyPerSemanticType', 'accuracyPerSteps', 'accuracyPerLength')
# Steps of a question's program that its length does not count.
FREE_STEPS = ('exist', 'query: name', 'choose name')


def _same(rows: Sequence[Row], clean: Callable[[str], str], clean_gold: Callable[[str], str]) -> list[ReadAnswer]:
  found = [clean(str(row['prediction'])) for row in rows]
  return [ReadAnswer(read, float(read == clean_gold(str(row['answer'])))) for read, row in zip(found, rows)]


def gqa_vlmevalkit(rows: Sequence[Row]) -> tuple[list[ReadAnswer], Metrics]:
  require(rows, ('answer', 'prediction'))
  rows = as_vlmevalkit_reads(rows)
  readings = _same(rows, lambda text: text.strip().lower(), lambda text: text.strip().lower())
  return readings, {'Overall': 100 * mean([reading.score for reading in readings])}


def gqa_lmms_eval(rows: Sequence[Row]) -> tuple[list[ReadAnswer], Metrics]:
  """Both without punctuation and in lower case: 1.5 is 15."""
  require(rows, ('answer', 'prediction'))
  table = str.maketrans('', '', string.punctuation)
  readings = _same(rows, lambda text: text.strip().lower().translate(table), lambda text: text.lower().translate(table))
  return readings, {'exact_match': mean([reading.score for reading in readings])}


def gqa_official(rows: Sequence[Row], converted: bool) -> tuple[list[ReadAnswer], Metrics]:
  """Equal to the letter, over the balanced questions; `converted`: after LLaVA's rstrip('.') and lower().

  With the annotations of the questions' file (types, semantic, groups), accuracy by type, steps and words, and the
  distribution of answers (chi square over groups of questions, lower is better).
  """
  require(rows, ('answer', 'prediction'))
  clean = (lambda text: text.rstrip('.').lower()) if converted else str
  readings = _same(rows, clean, str)
  balanced = [(row, reading) for row, reading in zip(rows, readings) if str(row.get('isBalanced', True)) != 'False']
  metrics: dict[str, Any] = {'accuracy': _percent([reading.score for _, reading in balanced])}
  annotated = {'types': dict, 'semantic': list, 'groups': dict, 'question': str}  # In a table they are strings.
  if not all(isinstance(row.get(name), kind) for row, _ in balanced for name, kind in annotated.items()):
    return readings, metrics
  by_detail: dict[str, dict[Any, list[float]]] = {name: {} for name in ('answerType', *DETAILS)}
  gold, predicted = Counter(), Counter()
  for row, reading in balanced:
    steps = [f'{step["operation"]}: {step["argument"]}' for step in row['semantic']]
    structural = row['types']['structural']
    values = (
      'open' if structural == 'query' else 'binary',
      structural,
      row['types']['semantic'],
      sum(not any(free in step for free in FREE_STEPS) for step in steps),
      len(row['question'].split()),
    )
    for name, value in zip(by_detail, values):
      by_detail[name].setdefault(value, []).append(reading.score)
    if row['groups']['global'] is not None:
      gold[row['groups']['global'], row['answer']] += 1
      predicted[row['groups']['global'], reading.read] += 1
  kinds = by_detail.pop('answerType')
  metrics |= {name: _percent(kinds.get(name, [])) for name in ('binary', 'open')}
  metrics['distribution'] = _chi_square(gold, predicted)
  for name, found in by_detail.items():
    metrics[name] = {str(value): _percent(found[value]) for value in sorted(found)}
  return readings, metrics


def _percent(scores: Sequence[float]) -> float:
  return 100 * (mean(scores) or 0)


def _chi_square(gold: Counter, predicted: Counter) -> float | None:
  """Mean over groups, each as often as it has questions, of the chi square of its answers, over 100; None of none."""
  sizes: Counter = Counter()
  for (group, _), count in gold.items():
    sizes[group] += count
  total = sum(sizes[key[0]] * (predicted[key] - count) ** 2 / count for key, count in gold.items())
  return total / sizes.total() / 100 if sizes else None


RULES = {
  'gqa': {
    **{f'vlmevalkit-{version}': gqa_vlmevalkit for version in ('2026', '2025')},
    'lmms-eval': gqa_lmms_eval,
    'official': functools.partial(gqa_official, converted=False),
    'official-llava': functools.partial(gqa_official, converted=True),
  }
}
