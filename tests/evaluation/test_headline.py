"""The figure beside the report's, and its interval."""

import math
import random

import pytest

from janus_jax.evaluation.benchmarks import BENCHMARKS
from janus_jax.evaluation.headline import OWN_FIGURES, PATHS, headline, headline_interval, metric_intervals
from janus_jax.evaluation.reference import COLUMNS, TABLE_3, report_figures
from janus_jax.evaluation.scoreboard import HEAD, table_rows
from janus_jax.evaluation.scores import side_by_side


def interval(rule, rows):
  return headline_interval('gqa', rule(rows)[1], metric_intervals('gqa', rule, rows))


def answers(count, right, per_image=1, seed=0):
  """Rows of GQA, right with a probability; those about one image are right or wrong together."""
  rng, rows = random.Random(seed), []
  for image in range(count // per_image):
    text = 'red' if rng.random() < right else 'blue'
    row = {'answer': 'red', 'prediction': text, 'image_path': str(image)}
    rows += [{**row, 'index': image * per_image + i} for i in range(per_image)]
  return rows


@pytest.mark.parametrize('per_image', [1, 8])
def test_an_interval_is_as_wide_as_independent_images_make_it(per_image):
  rule, halves = BENCHMARKS['gqa'].rules['official'], []
  for seed in range(20):
    low, high = interval(rule, answers(1600, 0.7, per_image, seed))
    halves.append((high - low) / 2)
  expected = 100 * 2.093 * math.sqrt(0.7 * 0.3 / (1600 / per_image))  # Student's t of 19 degrees.
  assert sum(halves) / len(halves) == pytest.approx(expected, rel=0.15)


def test_an_interval_holds_the_true_figure():
  rule = BENCHMARKS['gqa'].rules['official']
  found = [interval(rule, answers(400, 0.6, 2, seed)) for seed in range(60)]
  assert sum(low < 60 < high for low, high in found) >= 52


def test_where_nothing_varies_there_is_no_interval():
  assert interval(BENCHMARKS['gqa'].rules['official'], answers(50, 1.1)) is None


def test_every_rule_has_a_headline_or_is_named_as_without():
  assert set(PATHS) == {*COLUMNS, *OWN_FIGURES} == set(BENCHMARKS)
  assert headline('mmbench', {'vanilla_0_dev': {'Overall': 0.792}, 'dev': {'Overall': 0.6}}) == pytest.approx(79.2)
  assert headline('pope', {'Overall': {'Overall': 85.5}, 'random': {'Overall': 87.1}}) == 87.1
  assert headline('pope', {'all': {'f1': None}}) is None
  assert headline('mmmu', {'Overall-Science': {'acc': 0.1}, 'Overall': {'num': 9, 'acc': 0.41}}) == pytest.approx(41)


def test_rows_of_the_report():
  assert report_figures('pope')['Janus-Pro-7B'] == '87.4'
  assert report_figures('geneval')['Janus-Pro-1B'] == '0.73'
  assert report_figures('dpg')['SD3-Medium'] == '84.08'
  assert 'MetaMorph' not in report_figures('pope')
  assert all(len(row) == 7 for row in TABLE_3.values())


def test_a_partial_score_is_named_so():
  score = {
    'benchmark': 'gqa',
    'rule': 'official',
    'headline': 50.0,
    'interval': (40.0, 60.0),
    'rows': 4,
    'missing_rows': 6,
    'dataset': 'GQA_TestDev_Balanced.tsv (official)',
    'metrics': {'accuracy': 50.0},
  }
  line = dict(zip(HEAD, table_rows([score])[0]))
  assert (line['figure'], line['95 %'], line['rows']) == ('50.0 (partial)', '40.0 to 60.0', '4 of 10')
  assert line['dataset'] == 'GQA_TestDev_Balanced.tsv (official)'
  assert side_by_side([score]).splitlines()[0].split() == ['partial:', '4', 'of', '10', 'official', '95', '%']
