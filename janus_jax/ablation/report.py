"""The report of an ablation on all that is finished: report.html, results.csv, table.md, plots/*.png."""

import functools
import logging
import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from janus_jax.ablation import page, tables
from janus_jax.ablation.preparing import SweepPaths
from janus_jax.ablation.settings import Ablation
from janus_jax.ablation.sheets import Sheet, read_sheet, to_image
from janus_jax.ablation.tables import Summary
from janus_jax.ablation.variants import PlannedRun
from janus_jax.data.examples import TASKS
from janus_jax.data.images import save_png
from janus_jax.data.whole_files import write_text
from janus_jax.reporting.charts import Axis, Boundary, Figure, Row, Series, interval_chart, line_chart, save_chart
from janus_jax.training.metrics import METRICS_FILE, read_metrics

SMOOTHED = 5  # Lines of metrics over which a loss is averaged: each is that of one batch.


def write_report(
  ablation: Ablation,
  paths: SweepPaths,
  runs: Sequence[PlannedRun],
  results: Mapping[str, Mapping[str, Any]],
  directory: str,
) -> None:
  """Replaces the report on all runs of an ablation, by their records, in a directory, which is made if missing."""
  os.makedirs(directory, exist_ok=True)
  path = functools.partial(os.path.join, directory)
  summaries = tables.summarise(runs, results, ablation.baseline)
  metrics = tables.chosen_metrics(summaries, ablation.metrics)
  done = {run.name: results[run.name] for run in runs if results.get(run.name, {}).get('status') == 'done'}
  found = page.Findings(os.path.basename(os.path.abspath(directory)), ablation, runs, done, summaries, metrics)
  charts = {metric: chart for metric in metrics if (chart := metric_chart(summaries, metric))}
  curves = {name: chart for name, chart in loss_charts(paths, runs, done).items() if chart}
  sheet = read_sheet(paths, [run for run in runs if run.name in done])
  write_text(path('results.csv'), tables.to_csv(summaries))
  write_text(path('table.md'), tables.to_markdown(summaries, metrics))
  _write_plots(path('plots'), {**charts, **curves}, sheet)
  write_text(path('report.html'), page.render(found, list(charts.values()), list(curves.values()), sheet))
  logging.info('wrote %s, results.csv, table.md, plots/', path('report.html'))


def metric_chart(summaries: Sequence[Summary], metric: str) -> Figure | None:
  """The chart of a metric; None where all values are 0."""
  rows, limits = [], tables.limits(metric)
  for item in summaries:
    estimate, label = item.estimate(metric), item.variant + tables.left_out_text(item, metric)
    mean, interval = (estimate.mean, estimate.interval(limits)) if estimate else (None, None)
    rows.append(Row(label, mean, interval, list(item.finite(metric).values()), item.baseline is None))
  return interval_chart(metric, rows, Axis(tables.unit(metric), limits=limits))


def loss_charts(
  paths: SweepPaths, runs: Sequence[PlannedRun], done: Mapping[str, Mapping[str, Any]]
) -> dict[str, Figure | None]:
  """Charts of the loss of each task while training, and on held-out data at the ends of stages; means over seeds."""
  variants = list(dict.fromkeys(run.variant for run in runs))
  finished = {name: [run for run in runs if run.variant == name and run.name in done] for name in variants}
  metrics = {name: read_metrics(paths.of('runs', name, METRICS_FILE)) for name in done}
  boundaries = stage_boundaries(finished)
  axes = Axis('steps'), Axis('nats per target', log=True)
  charts = {}
  for task in TASKS:
    trained, held_out = [], []
    for name, group in finished.items():
      losses = mean_losses([metrics[run.name] for run in group], f'loss/{task}')
      measured = held_out_losses([done[run.name]['stages'] for run in group], task)
      for curves, points in ((trained, losses), (held_out, measured)):
        mean, band = [(x, y) for x, y, *_ in points], [(x, low, high) for x, _, low, high in points]
        curves.append(Series(name, mean, band if len(group) > 1 else ()))
    charts[f'loss {task}'] = line_chart(f'{task}: loss while training', trained, *axes, boundaries)
    title = f'{task}: loss on held-out data at the end of each stage'
    charts[f'held-out loss {task}'] = line_chart(title, held_out, *axes, boundaries)
  return charts


def stage_boundaries(finished: Mapping[str, Sequence[PlannedRun]]) -> list[Boundary]:
  """Ends of stages, each with the numbers of the variants (name -> finished runs) whose stage ends there."""
  ends: dict[tuple[str, int], tuple[int, ...]] = {}
  for number, runs in enumerate(finished.values()):
    for end in zip(runs[0].config.run, runs[0].ends) if runs else ():
      ends[end] = (*ends.get(end, ()), number)
  return [Boundary(*end, numbers) for end, numbers in ends.items()]


def mean_losses(runs: Sequence[Sequence[Mapping[str, Any]]], key: str) -> tuple[tuple[float, ...], ...]:
  """(step, mean, least, greatest) over runs of the mean over the last SMOOTHED lines of the stage, at the steps where
  all runs have one that is finite.
  """
  found = [_smoothed([line for line in lines if line.get(key) is not None], key) for lines in runs]
  steps = [step for step in found[0] if all(step in other for other in found)] if found else []
  return _over_runs((step, [losses[step] for losses in found]) for step in steps)


def _smoothed(lines: Sequence[Mapping[str, Any]], key: str) -> dict[int, float]:
  smooth = {}
  for number, line in enumerate(lines):
    last = lines[max(number + 1 - SMOOTHED, 0) : number + 1]
    smooth[line['step']] = statistics.fmean(other[key] for other in last if other['stage'] == line['stage'])
  return smooth


def held_out_losses(runs: Sequence[Sequence[Mapping[str, Any]]], task: str) -> tuple[tuple[float, ...], ...]:
  """Points as of `mean_losses`, at the ends of stages. The runs are of one variant, so their stages end alike."""
  return _over_runs(
    (stages[0]['end'], [stage['held_out'][task] for stage in stages])
    for stages in zip(*runs)
    if all(task in stage['held_out'] for stage in stages)
  )


def _over_runs(found: Iterable[tuple[int, Sequence[float]]]) -> tuple[tuple[float, ...], ...]:
  points = ((step, statistics.fmean(values), min(values), max(values)) for step, values in found)
  return tuple(point for point in points if math.isfinite(point[1]))


def _write_plots(directory: str, charts: Mapping[str, Figure], sheet: Sheet | None) -> None:
  os.makedirs(directory, exist_ok=True)
  for name, chart in charts.items():
    file = ''.join(letter if letter.isalnum() or letter == '-' else '_' for letter in name)
    save_chart(chart, os.path.join(directory, f'{file}.png'))
  if sheet:
    save_png(os.path.join(directory, 'generations.png'), to_image(sheet), {})
