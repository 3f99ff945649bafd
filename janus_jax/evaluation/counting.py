"""Counting: how many objects generated images show of the number that their prompts ask for, number by number.

Of GenEval's detections those of prompts with the tag counting take part. An image has as many objects as boxes above
GenEval's threshold for counting, so the accuracy is GenEval's; the bias says whether there are too many or too few.
"""

from collections.abc import Sequence
from typing import Any

from janus_jax.errors import InputError, shown
from janus_jax.evaluation.geneval import prepare_geneval, read_metadata, seen_boxes
from janus_jax.evaluation.rows import Row, require
from janus_jax.evaluation.rules import Metrics, ReadAnswer, grouped, mean


def count_errors(asked: Sequence[int], seen: Sequence[int]) -> dict[str, Any]:
  """Errors of counts: 'Images'; 'Accuracy', the percentage that is exact; 'Bias', the mean of seen - asked, above 0 for
  too many objects; 'Mean absolute error'.
  """
  errors = [found - wanted for wanted, found in zip(asked, seen, strict=True)]
  return {
    'Images': len(errors),
    'Accuracy': 100 * mean([float(error == 0) for error in errors]),
    'Bias': mean(list(map(float, errors))),
    'Mean absolute error': mean([float(abs(error)) for error in errors]),
  }


def score_counting(rows: Sequence[Row]) -> tuple[list[ReadAnswer], Metrics]:
  """Errors over all rows, and by the number that is asked for."""
  require(rows, ('prompt', 'asked', 'seen'))
  asked, seen = ([row[name] for row in rows] for name in ('asked', 'seen'))
  readings = [ReadAnswer(found, float(found == wanted)) for wanted, found in zip(asked, seen)]
  by_number = {
    str(number): count_errors([number] * len(some), [seen[index] for index in some])
    for number, some in sorted(grouped(rows, 'asked').items())
  }
  return readings, {**count_errors(asked, seen), 'By number': by_number}


def prepare_counting(
  predictions: Sequence[Row], data: Sequence[Row] | None, allow_partial: bool
) -> tuple[list[dict[str, Any]], int]:
  """One row for each image: {'index', 'prompt', 'asked', 'seen'}.

  Args:
    predictions: {'prompt', 'asked', 'seen'} each; or detections or results of GenEval ('metadata').
    data: evaluation_metadata.jsonl, for detections: each prompt must have the same number of images.
    allow_partial: whether some images may be missing.

  Returns:
    Rows, and the number of images that are missing.
  """
  if any('metadata' in row for row in predictions):
    tagged = [row for number, row in enumerate(predictions, 1) if read_metadata(row, number)['tag'] == 'counting']
    if not tagged:
      raise InputError('no image of a prompt with the tag counting: expected some of GenEval')
    data = None if data is None else [row for row in data if row.get('tag') == 'counting']
    rows, missing = prepare_geneval(tagged, data, allow_partial)
    return [_count_boxes(row, number) for number, row in enumerate(rows, 1)], missing
  if data is not None:
    raise InputError('numbers that were asked and seen need no --data: expected it with detections of GenEval')
  require(predictions, ('prompt', 'asked', 'seen'))
  found = []
  for number, row in enumerate(predictions, 1):
    counts = {name: _whole(row[name], f'row {number}: {name}') for name in ('asked', 'seen')}
    found.append({'index': row.get('filename', number - 1), 'prompt': row['prompt'], **counts})
  return found, 0


def _count_boxes(row: Row, number: int) -> dict[str, Any]:
  metadata = read_metadata(row, number)
  if len(clauses := metadata.get('include', [])) != 1 or not {'class', 'count'} <= set(clauses[0]):
    raise InputError(f'row {number}: metadata include {shown(clauses)}: expected one class with its count')
  seen = len(seen_boxes(row, metadata).get(clauses[0]['class'], []))
  return {'index': row['index'], 'prompt': metadata['prompt'], 'asked': clauses[0]['count'], 'seen': seen}


def _whole(value: Any, what: str) -> int:
  try:
    number = int(value)
  except (TypeError, ValueError, OverflowError):
    number = -1
  if number < 0 or (isinstance(value, float) and value != number):
    raise InputError(f'{what} is {shown(value)}: expected a whole number, 0 or more')
  return number


RULES = {'counting': {'janus_jax': score_counting}}
