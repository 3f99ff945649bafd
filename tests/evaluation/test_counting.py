"""Counting: errors by number, and GenEval's own rule on the same detections."""

import json
import random

import numpy as np
import pytest

from janus_jax.errors import InputError
from janus_jax.evaluation.benchmarks import BENCHMARKS
from janus_jax.evaluation.counting import count_errors, prepare_counting, score_counting
from janus_jax.evaluation.geneval import geneval_official
from janus_jax.evaluation.headline import metric_intervals


def detections(seed, images=60):
  """Images of GenEval's counting prompts and some others, with boxes on both sides of the threshold of 0.9."""
  rng, rows = random.Random(seed), []
  counts = [rng.randint(2, 4) for _ in range(images // 4)]
  for number in range(images):
    count, prompt = counts[number // 4], f'a photo of {counts[number // 4]} cats, {number // 4}'
    metadata = {'tag': 'counting', 'include': [{'class': 'cat', 'count': count}], 'prompt': prompt}
    metadata['exclude'] = [{'class': 'cat', 'count': count + 1}]
    boxes = [[0, 0, 9, 9, rng.choice([0.5, 0.9, 0.91, 0.99])] for _ in range(rng.randint(0, 8))]
    rows.append(
      {'filename': f'{number}.png', 'metadata': metadata, 'detections': {'cat': boxes, 'dog': [[0, 0, 1, 1, 1]]}}
    )
  other = {'tag': 'single_object', 'include': [{'class': 'dog', 'count': 1}], 'prompt': 'a photo of a dog'}
  return [*rows, {'filename': 'dog.png', 'metadata': other, 'detections': {}}]


def official_results(rows):
  """The rows as the official scorer's results.jsonl has them: the boxes that it kept, and all as strings."""
  kept = [{n: [box for box in boxes if box[4] > 0.9] for n, boxes in row['detections'].items()} for row in rows]
  strings = [(json.dumps(row['metadata']), json.dumps(boxes)) for row, boxes in zip(rows, kept)]
  return [{'filename': r['filename'], 'correct': True, 'metadata': m, 'details': d} for r, (m, d) in zip(rows, strings)]


@pytest.mark.parametrize('form', [list, official_results])
def test_the_accuracy_is_that_of_geneval(form):
  rows = detections(0)
  counted, missing = prepare_counting(form(rows), None, False)
  assert (len(counted), missing) == (60, 0)
  _, expected = geneval_official(rows)
  readings, metrics = score_counting(counted)
  assert metrics['Accuracy'] == pytest.approx(expected['Task breakdown']['counting'])
  assert 0 < metrics['Accuracy'] < 100
  assert [reading.score for reading in readings] == [reading.score for reading in geneval_official(rows[:-1])[0]]


def test_errors_have_a_sign_in_the_bias_alone():
  rng = np.random.default_rng(1)
  asked = rng.integers(1, 7, 300)
  seen = np.maximum(asked + rng.choice([0, 0, 1, 2, -1], 300), 0)
  found = count_errors(asked.tolist(), seen.tolist())
  assert found['Accuracy'] == pytest.approx(100 * np.mean(asked == seen))
  assert found['Mean absolute error'] == pytest.approx(np.mean(abs(asked - seen)))
  assert found['Bias'] == pytest.approx(np.mean(seen) - np.mean(asked))
  assert 0.1 < found['Bias'] < found['Mean absolute error']


def test_numbers_stand_apart_in_their_order_and_too_few_is_below_zero():
  pairs = [(4, 2), (4, 4), (2, 2), (10, 11)]
  rows = [{'prompt': str(number), 'asked': str(a), 'seen': str(s)} for number, (a, s) in enumerate(pairs)]
  _, metrics = score_counting(prepare_counting(rows, None, False)[0])
  assert list(metrics['By number']) == ['2', '4', '10']
  assert metrics['By number']['4'] == {'Images': 2, 'Accuracy': 50, 'Bias': -1, 'Mean absolute error': 1}
  assert (metrics['Bias'], metrics['Mean absolute error']) == (-0.25, 0.75)


def test_images_of_one_prompt_are_one_unit_of_the_intervals():
  """Prompts that are right or wrong as a whole leave an interval as wide as if each had one image."""
  rng = random.Random(2)
  right = [rng.random() < 0.5 for _ in range(210)]  # In groups of ten and eleven.
  rule, halves = BENCHMARKS['counting'].rules['janus_jax'], []
  for images in (1, 8):
    rows = [{'prompt': str(i), 'asked': 3, 'seen': 3 if ok else 4} for i, ok in enumerate(right) for _ in range(images)]
    found = metric_intervals('counting', rule, rows)
    halves.append(found['Accuracy'][1] - found['Accuracy'][0])
    assert found['By number']['3']['Bias'] == pytest.approx(found['Bias'])
    assert 'Images' not in found
  assert halves[0] == pytest.approx(halves[1])


@pytest.mark.parametrize(
  ('rows', 'data', 'message'),
  [
    ([{'prompt': 'p', 'asked': 2}], None, 'row 1 has no column seen'),
    ([{'prompt': 'p', 'asked': 2, 'seen': 'many'}], None, "row 1: seen is 'many': expected a whole number"),
    ([{'prompt': 'p', 'asked': 2.5, 'seen': 2}], None, 'row 1: asked is 2.5: expected a whole number'),
    ([{'prompt': 'p', 'asked': 2, 'seen': -1}], None, 'row 1: seen is -1'),
    ([], None, 'no rows'),
    ([{'prompt': 'p', 'asked': 2, 'seen': 2}], [{'prompt': 'p'}], 'need no --data'),
    (detections(0)[-1:], None, 'no image of a prompt with the tag counting'),
    (
      detections(0)[:7],
      [row['metadata'] for row in detections(0)],
      r'\(14 in all\) has fewer than 4 images',
    ),
    ([{**official_results(detections(0))[0], 'details': '{'}], None, "0.png: details are '{': expected JSON of boxes"),
    ([{'metadata': {'tag': 'counting', 'prompt': 'x'}}], None, r'row 1: metadata include \[\]: expected one class'),
    ([{k: v for k, v in detections(0)[0].items() if k != 'detections'}], None, '0.png: neither detections nor details'),
  ],
)
def test_wrong_rows_are_refused(rows, data, message):
  with pytest.raises(InputError, match=message):
    prepare_counting(rows, data, False)


def test_missing_images_are_counted_among_the_counting_prompts_alone():
  rows = detections(0)
  prompts = [row['metadata'] for row in rows[::4]]
  assert prompts[-1]['tag'] == 'single_object'
  found, missing = prepare_counting(rows[6:], prompts, allow_partial=True)
  assert (len(found), missing) == (54, 6)
