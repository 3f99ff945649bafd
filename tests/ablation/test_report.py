"""The tables and the page of an ablation, from made-up results."""

import csv
import html.parser
import io

import numpy as np
import pytest
from recipes import recipe

from janus_jax.ablation import page, report, tables
from janus_jax.ablation.plots import interval_chart
from janus_jax.ablation.sheets import Picture, Sheet, to_image
from janus_jax.ablation.variants import planned
from janus_jax.reporting.drawing import style_of
from janus_jax.runs.config import parse
from janus_jax.toy.scoring import RIGHT, WRONG


def runs():
  config = recipe('tiny')
  config.init_from = 'x'
  for stage in config.stages.values():
    stage.steps, stage.warmup_steps = 5, 0
  config = parse(config)
  return [planned(name, seed, config) for seed in (0, 1, 2) for name in ('base', 'better', 'broken', 'late')]


VALUES = {'base': (80.0, 90.0, 85.0), 'better': (82.0, 92.5, 88.0)}


def results(all_runs) -> dict:
  found = {}
  for run in all_runs:
    if run.variant == 'broken':
      found[run.name] = {'status': 'failed', 'reason': 'a <b> reason'}
    elif run.variant == 'late':
      found[run.name] = {'status': 'started'}
    else:
      value = VALUES[run.variant][run.seed]
      metrics = {'questions/all': value, 'held_out/text': value / 100, 'cost/tokens': 1000}
      found[run.name] = {'status': 'done', 'metrics': metrics}
  return found


@pytest.fixture
def summaries():
  return tables.summarise(runs(), results(runs()), 'base')


def test_the_table(summaries):
  lines = tables.to_markdown(summaries, tables.chosen_metrics(summaries, ('questions/*', 'held_out/*'))).splitlines()
  assert lines[0] == '| | base (baseline) | better | broken | late |'
  # t(2) = 4.303; sd of base is 5; of the differences 2, 2.5, 3 it is 0.5.
  assert lines[2] == r'| questions/all | 85.0 ± 12.4 | 87.5 ± 13.1 (+2.5 ± 1.2 \*) | failed | not run yet |'
  assert lines[3].startswith(r'| held_out/text | 0.85 ± 0.12 | 0.88 ± 0.13 (+0.025 ± 0.012 \*) |')
  assert lines[4].startswith('| cost/tokens | 1,000 ± 0 | 1,000 ± 0 (+0 ± 0) |')
  assert '- broken: failed: seed 0: a <b> reason; failed: seed 1' in lines[-2]
  assert lines[-1] == '- late: not run yet: seed 0, 1, 2'


def test_the_csv_has_every_number(summaries):
  rows = list(csv.DictReader(io.StringIO(tables.to_csv(summaries))))
  row = next(row for row in rows if (row['variant'], row['metric']) == ('better', 'questions/all'))
  assert [float(row[f'seed {seed}']) for seed in (0, 1, 2)] == list(VALUES['better'])
  assert float(row['difference_low']) == pytest.approx(2.5 - 4.303 * 0.5 / 3**0.5, abs=1e-3)
  assert (row['seeds'], row['status']) == ('3', 'done')
  assert next(row for row in rows if row['variant'] == 'broken')['status'].startswith('failed: seed 0: a <b> reason')


def test_what_is_not_finite_is_no_number():
  found = results(runs())
  for result in found.values():
    if result['status'] == 'done':
      result['metrics']['held_out/text'] = float('nan')
  base = tables.summarise(runs(), found, 'base')[0]
  assert tables.mean_text(base, 'held_out/text') == 'no finite value'


def diverged(metric='questions/all', variant='better', value=float('nan')) -> dict:
  found = results(runs())
  next(found[run.name] for run in runs() if (run.variant, run.seed) == (variant, 1))['metrics'][metric] = value
  return found


@pytest.mark.parametrize('value', [float('nan'), float('inf'), float('-inf')])
def test_a_seed_that_is_not_finite_is_counted_wherever_its_variant_is_shown(value):
  summaries = tables.summarise(runs(), diverged(value=value), 'base')
  text = '85.0 ± 38.1 (1 of 3 not finite)'
  lines = tables.to_markdown(summaries, ['questions/all']).splitlines()
  assert f'| {text} (+2.5 ± 6.4) |' in lines[2]
  assert '- better: not finite: seed 1: questions/all' in lines
  row = next(row for row in csv.DictReader(io.StringIO(tables.to_csv(summaries))) if row['variant'] == 'better')
  assert (row['metric'], row['seeds'], row['not finite'], row['seed 1']) == ('questions/all', '2', '1', str(value))
  assert row['status'] == 'not finite: seed 1: questions/all'
  (_, better, *_) = report.rows(summaries, 'questions/all')
  assert better.label == 'better (1 of 3 not finite)'
  shown = page.render(page.Content('t', summaries, ['questions/all'], [], [], None, [], {}, {}, (0, 1, 2), 12, 6, 0))
  assert text in shown
  assert '<li><b>better</b>: not finite: seed 1: questions/all</li>' in shown


@pytest.mark.parametrize('variant', ['base', 'better'])
def test_no_star_where_a_seed_of_either_is_lost(variant, summaries):
  assert tables.difference_text(summaries[1], 'held_out/text').endswith(' *')
  found = diverged('held_out/text', variant)
  for run in runs():  # The difference of the seeds that are left is as clear as can be.
    if run.variant == 'better' and run.seed != 1:
      found[run.name]['metrics']['held_out/text'] = VALUES['base'][run.seed] / 100 + 5 + run.seed / 1e6
  better = tables.summarise(runs(), found, 'base')[1]
  assert better.difference('held_out/text').leaves_out_zero
  assert '*' not in tables.difference_text(better, 'held_out/text')
  failed = next(run.name for run in runs() if (run.variant, run.seed) == (variant, 1))
  found[failed] = {'status': 'failed', 'reason': 'loss is not finite'}
  base, better, *_ = tables.summarise(runs(), found, 'base')
  assert better.difference('held_out/text').leaves_out_zero
  assert '*' not in tables.difference_text(better, 'held_out/text')
  assert tables.mean_text({'base': base, 'better': better}[variant], 'held_out/text').endswith(' (1 of 3 failed)')


@pytest.mark.parametrize('metric', ['cost/seconds', 'cost/tokens_per_second', 'cost/compile_seconds'])
def test_no_difference_is_claimed_of_wall_time(metric):
  found = results(runs())
  for run in runs():
    if run.variant in VALUES:
      found[run.name]['metrics'] |= {
        metric: 10.0 + 5 * (run.variant == 'better') + run.seed / 100,
        'cost/teraflops': 10.0 + 5 * (run.variant == 'better') + run.seed**2 / 100,
      }
  summaries = tables.summarise(runs(), found, 'base')
  assert tables.mean_text(summaries[1], metric).startswith('15.0')
  assert tables.difference_text(summaries[1], metric) == ''
  rows = [row for row in csv.DictReader(io.StringIO(tables.to_csv(summaries))) if row['metric'] == metric]
  assert {row['difference'] for row in rows} == {''}
  assert tables.difference_text(summaries[1], 'cost/teraflops') == '+5.000 ± 0.000'


def test_one_seed_has_no_interval():
  chosen = [run for run in runs() if run.seed == 0 and run.variant in VALUES]
  one = tables.summarise(chosen, results(chosen), 'base')
  assert tables.mean_text(one[0], 'questions/all') == '80.0'
  assert tables.difference_text(one[1], 'questions/all') == '+2.0'


def test_only_seeds_that_both_have_are_compared():
  found = results(runs())
  found = {run.name: found[run.name] for run in runs() if (run.variant, run.seed) != ('base', 2)}
  better = next(item for item in tables.summarise(runs(), found, 'base') if item.variant == 'better')
  assert better.difference('questions/all').count == 2
  assert better.estimate('questions/all').count == 3


def test_metrics_are_chosen_by_patterns_in_their_order(summaries):
  assert tables.chosen_metrics(summaries, ('held_out/*', '*')) == ['held_out/text', 'questions/all', 'cost/tokens']


class Checker(html.parser.HTMLParser):
  """Every element is closed by its own end, void ones excepted."""

  VOID = ('meta', 'img', 'br')

  def __init__(self):
    super().__init__()
    self.open, self.texts = [], []

  def handle_starttag(self, tag, attrs):
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    """Lines and marks."""

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.texts.append(data)


def sheet() -> Sheet:
  pixels = np.full((24, 24, 3), 128, np.uint8)
  right, wrong = Picture(pixels, True, '', 0), Picture(pixels, False, 'reads as "7"', 1)
  return Sheet(('base', 'better'), (('digit', 'the digit <one>', {'base': (right, wrong), 'better': (wrong,)}),))


def test_the_page_is_well_formed_and_escapes_what_it_shows(summaries):
  metrics = tables.chosen_metrics(summaries, ('questions/*',))
  charts = [interval_chart(metric, report.rows(summaries, metric), 'base') for metric in metrics]
  common = {'stages': [('base', 'stage1', '5', '100', '0.1', '1.0', '100')], 'base': {'seed': 1}, 'seeds': (0, 1, 2)}
  text = page.render(
    page.Content(
      'A & B',
      summaries,
      metrics,
      charts,
      [],
      sheet(),
      changes={'better': ['x: 1 -> 2']},
      **common,
      total=12,
      done=6,
      forked=2,
    )
  )
  checker = Checker()
  checker.feed(text)
  assert checker.open == []
  assert {'failed', 'not run yet', '87.5 ± 13.1', '+2.5 ± 1.2 *', 'x: 1 -> 2'} <= set(checker.texts)
  assert '<b> reason' not in text
  assert 'the digit &lt;one&gt;' in text
  assert 'reads as &quot;7&quot;' in text


def test_wrong_pictures_have_gaps_in_their_frames():
  image = to_image(sheet())
  found = {colour: int((image == colour).all(-1).sum()) for colour in (RIGHT, WRONG)}
  # Two wrong ones have fewer red points between them than twice the green ones of the right one.
  assert 0 < found[WRONG] < 1.5 * found[RIGHT]


def test_learning_curves_are_means_over_seeds_smoothed_within_a_stage():
  one = [{'step': step, 'stage': 'a' if step < 3 else 'b', 'loss/text': float(step)} for step in (1, 2, 3, 4)]
  two = [{**line, 'loss/text': line['loss/text'] + 2} for line in one] + [{'step': 5, 'stage': 'b', 'loss/text': None}]
  assert report.mean_losses([one, two], 'loss/text') == ((1, 2.0), (2, 2.5), (3, 4.0), (4, 4.5))


def test_curves_end_where_a_seed_is_not_finite():
  lines = [{'step': step, 'stage': 'a', 'x': 1.0} for step in (1, 2, 3)]
  lost = [{**line, 'x': float('nan')} if line['step'] == 3 else line for line in lines]
  assert report.mean_losses([lines, lost], 'x') == ((1, 1.0), (2, 1.0))


def test_styles_of_up_to_two_hundred_variants_differ():
  styles = [style_of(number) for number in range(200)]
  assert len({(style.colour, style.dash, style.mark) for style in styles}) == 200
  # Without colour, thirty of them.
  assert len({(style.dash, style.mark) for style in styles[:30]}) == 30
