"""The tables and the page of an ablation, from made-up results."""

import csv
import dataclasses
import io
import types

import numpy as np
import pytest
from html_pages import parse
from recipes import recipe

from janus_jax.ablation import page, report, tables
from janus_jax.ablation.sheets import Sheet, to_image
from janus_jax.ablation.variants import planned
from janus_jax.reporting.charts import Boundary
from janus_jax.reporting.image_grid import RIGHT, WRONG, JudgedImage
from janus_jax.runs import config as run_config


def runs():
  config = recipe('tiny')
  config.init_from = 'x'
  for stage in config.stages.values():
    stage.steps, stage.warmup_steps = 5, 0
  config = run_config.parse_config(config)
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
  means, difference = ('85.0 [72.6, 97.4]', '87.5 [74.4, 100.0]'), r'+2.5 [+1.3, +3.7] \*'
  assert lines[2] == f'| questions/all | {means[0]} | {means[1]} ({difference}) | failed | not run yet |'
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
  text = '85.0 [46.9, 100.0] (1 of 3 not finite)'
  lines = tables.to_markdown(summaries, ['questions/all']).splitlines()
  assert f'| {text} (+2.5 [-3.9, +8.9]) |' in lines[2]
  assert '- better: not finite: seed 1: questions/all' in lines
  row = next(row for row in csv.DictReader(io.StringIO(tables.to_csv(summaries))) if row['variant'] == 'better')
  assert (row['metric'], row['seeds'], row['not finite'], row['seed 1']) == ('questions/all', '2', '1', str(value))
  assert row['status'] == 'not finite: seed 1: questions/all'
  labels = report.metric_chart(summaries, 'questions/all').axes[0].get_yticklabels()
  assert labels[1].get_text() == 'better (1 of 3 not finite)'
  shown = page.render(findings([summaries[0], *of_base(summaries[1:2])]), [], [], None)
  assert text in shown
  assert '<li><b>base</b>: not finite: seed 1: questions/all</li>' in shown


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


def sheet() -> Sheet:
  pixels = np.full((24, 24, 3), 128, np.uint8)
  right, wrong = JudgedImage(pixels, True, 'seed 0'), JudgedImage(pixels, False, 'seed 1: reads as "7"')
  return Sheet(('base', 'better'), (('digit', 'the digit <one>', [(right, wrong), (wrong,)]),))


def findings(summaries, seeds=(0, 1, 2), metrics=('questions/all',)) -> page.Findings:
  """Of the variants 'base' and 'better', which differ in a field; one stage of each of their runs is known."""
  ablation = types.SimpleNamespace(baseline='base', seeds=seeds, base=runs()[0].config)
  lengths = {'base': 32, 'better': 64}
  chosen = [
    dataclasses.replace(run, config=run_config.replaced(run.config, {'sequence_length': lengths[run.variant]}))
    for run in runs()
    if run.variant in VALUES
  ]
  stage = {'name': 'stage1', 'steps': 5, 'tokens': 1000, 'flops': 2e12, 'seconds': 2.5}
  done = {run.name: {'stages': [stage], 'forked': run.seed == 1} for run in chosen}
  return page.Findings('A & B', ablation, chosen, done, summaries, metrics)


def test_the_page_is_well_formed_and_escapes_what_it_shows(summaries):
  chart = report.metric_chart(summaries, 'questions/all')
  text = page.render(findings(summaries[:2]), [chart], [], sheet())
  found = parse(text)
  assert {'87.5 [74.4, 100.0]', '+2.5 [+1.3, +3.7] *', 'sequence_length: 32 -> 64', '400'} <= set(found.text)
  assert any('6 of 6 runs: 2 variants, seeds 0, 1, 2; baseline base. 2 runs began' in text for text in found.text)
  assert 'the digit &lt;one&gt;' in text
  assert 'reads as &quot;7&quot;' in text
  assert all(link.startswith('data:image/') for link in found.links)
  assert len(found.links) == 4


def test_the_page_says_what_is_missing(summaries):
  found = findings(summaries[:2])
  text = page.render(dataclasses.replace(found, summaries=[*summaries[:2], *of_base(summaries[2:])]), [], [], None)
  assert {'failed', 'not run yet'} <= set(parse(text).text)
  assert '<b> reason' not in text


def of_base(summaries) -> list[tables.Summary]:
  """The same results, of the variant 'base'."""
  return [dataclasses.replace(item, variant='base') for item in summaries]


def test_what_each_variant_changes_stands_first(summaries):
  text = page.render(findings(summaries[:2]), [], [], sheet())
  places = [text.index(f'<h2>{title}') for title in ('What each variant', 'What was', 'What it cost', 'Generated')]
  assert places == sorted(places)
  assert text.index('sequence_length: 32 -&gt; 64') < places[1]


def test_the_title_says_what_was_compared(summaries):
  assert page.title(findings(summaries)) == 'Ablation A & B: base, better, broken and late compared over 3 seeds'
  more = [*summaries, *(dataclasses.replace(summaries[1], variant=name) for name in 'xyz')]
  expected = 'Ablation A & B: base, better, broken and 4 more variants compared over 1 seed'
  assert page.title(findings(more, seeds=(5,))) == expected


def two_seeds(metric, values) -> tables.Summary:
  chosen = [run for run in runs() if run.variant == 'base' and run.seed < 2]
  found = {run.name: {'status': 'done', 'metrics': {metric: value}} for run, value in zip(chosen, values)}
  return tables.summarise(chosen, found, 'base')[0]


def test_intervals_of_percentages_end_at_0_and_100():
  base = two_seeds('generations/all', (22.5, 52.5))
  assert tables.mean_text(base, 'generations/all') == '37.5 [0.0, 100.0]'
  (row,) = csv.DictReader(io.StringIO(tables.to_csv([base])))
  assert (float(row['low']), float(row['high'])) == (0.0, 100.0)
  low, high = report.metric_chart([base], 'generations/all').axes[0].get_xlim()
  assert (low, high) == (0.0, 100.0)
  assert tables.mean_text(two_seeds('held_out/text', (2.0, 1.0)), 'held_out/text') == '1.5 ± 6.4'
  assert report.metric_chart([two_seeds('held_out/text', (2.0, 1.0))], 'held_out/text').axes[0].get_xlim()[0] == 0


def test_differences_of_percentages_end_at_100():
  chosen = [run for run in runs() if run.variant in VALUES and run.seed < 2]
  values = {'base': (10.0, 60.0), 'better': (90.0, 80.0)}
  found = {
    run.name: {'status': 'done', 'metrics': {'target_scores/x': values[run.variant][run.seed]}} for run in chosen
  }
  base, better = tables.summarise(chosen, found, 'base')
  assert tables.difference_text(better, 'target_scores/x') == '+50.0 [-100.0, +100.0]'
  assert tables.difference_text(base, 'target_scores/x') == ''


@pytest.mark.parametrize(
  ('metric', 'unit'), [('questions/all', '% right'), ('held_out/text', 'nats per target'), ('cost/teraflops', 'TFLOP')]
)
def test_metrics_have_units(metric, unit):
  base = two_seeds(metric, (2.0, 3.0))
  assert report.metric_chart([base], metric).axes[0].get_xlabel() == unit
  assert unit in parse(page.render(findings([base], metrics=[metric]), [], [], None)).text


def test_metrics_that_are_zero_have_no_chart():
  assert report.metric_chart([two_seeds('questions/all', (0.0, 0.0))], 'questions/all') is None


def test_wrong_images_have_gaps_in_their_frames():
  image = to_image(sheet())
  found = {colour: int((image == colour).all(-1).sum()) for colour in (RIGHT, WRONG)}
  # Two wrong ones have fewer red points between them than twice the green ones of the right one.
  assert 0 < found[WRONG] < 1.5 * found[RIGHT]


def test_learning_curves_are_means_and_ranges_over_seeds_smoothed_within_a_stage():
  one = [{'step': step, 'stage': 'a' if step < 3 else 'b', 'loss/text': float(step)} for step in (1, 2, 3, 4)]
  two = [{**line, 'loss/text': line['loss/text'] + 2} for line in one] + [{'step': 5, 'stage': 'b', 'loss/text': None}]
  assert report.mean_losses([one, two], 'loss/text') == (
    (1, 2.0, 1.0, 3.0),
    (2, 2.5, 1.5, 3.5),
    (3, 4.0, 3.0, 5.0),
    (4, 4.5, 3.5, 5.5),
  )
  assert report.mean_losses([], 'loss/text') == ()


def test_curves_end_where_a_seed_is_not_finite():
  lines = [{'step': step, 'stage': 'a', 'x': 1.0} for step in (1, 2, 3)]
  lost = [{**line, 'x': float('nan')} if line['step'] == 3 else line for line in lines]
  assert report.mean_losses([lines, lost], 'x') == ((1, 1.0, 1.0, 1.0), (2, 1.0, 1.0, 1.0))


def test_variants_that_end_a_stage_at_the_same_step_share_the_boundary():
  def run(*ends):
    return types.SimpleNamespace(config=types.SimpleNamespace(run=('stage1', 'stage2')), ends=ends)

  found = report.stage_boundaries({'one': [run(4, 10)], 'none': [], 'two': [run(8, 10), run(8, 10)]})
  assert found == [Boundary('stage1', 4, (0,)), Boundary('stage2', 10, (0, 2)), Boundary('stage1', 8, (2,))]
