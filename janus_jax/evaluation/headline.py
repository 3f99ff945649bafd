"""The one figure of a benchmark that a table has a column for, on the report's scale; and 95 % intervals."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from janus_jax.evaluation.multiple_choice import ROTATIONS
from janus_jax.evaluation.rows import Row
from janus_jax.evaluation.rules import Metrics, Rule
from janus_jax.reporting.statistics import t_quantile

GROUPS = 20  # Parts of the data, each of which is left out once.
# Benchmark -> paths in the metrics, of which the first that is there counts, and what it is multiplied by. By notes of
# the report's authors POPE is the F1 of its random subset, MMBench is not circular, and MMMU is the validation set.
PATHS: Mapping[str, tuple[tuple[tuple[str, ...], float], ...]] = {
  'pope': (
    (('random', 'Overall'), 1),
    (('Overall', 'Overall'), 1),
    (('random', 'pope_f1_score'), 100),
    (('all', 'pope_f1_score'), 100),
    (('random', 'f1'), 100),
    (('all', 'f1'), 100),
  ),
  'mme': ((('perception',), 1), (('mme_perception_score',), 1), (('Perception',), 1)),
  'mmbench': (
    (('vanilla_0_dev', 'Overall'), 100),
    (('vanilla_0_none', 'Overall'), 100),
    (('overall_acc_x100',), 1),
  ),
  'seedbench': ((('Overall',), 100), (('none', 'Overall'), 100), (('seed_image',), 100), (('image_accuracy',), 1)),
  'gqa': ((('Overall',), 1), (('exact_match',), 100), (('accuracy',), 1)),
  'mmmu': (
    (('validation', 'Overall'), 100),
    (('mmmu_acc',), 100),
    (('Overall', 'acc'), 100),
    (('Overall',), 100),
    (('none', 'Overall'), 100),
  ),
  'mmvet': ((('score', 'Overall', 'acc'), 1), (('gpt_eval_score',), 1), (('total',), 1)),
  'geneval': ((('Overall score (avg. over tasks)',), 1),),
  'dpg': ((('DPG-Bench score',), 1),),
  'counting': ((('Accuracy',), 1),),
  'bias': ((('Total variation',), 1), (('Mean absolute deviation',), 1)),
}
# What the figure is where the report has no column for it.
OWN_FIGURES: Mapping[str, str] = {'counting': 'accuracy in %', 'bias': 'distance from 0 to 1'}


def headline(benchmark: str, metrics: Metrics) -> float | None:
  """The figure; None where its original divides by zero, or the metrics have none."""
  for path, scale in PATHS[benchmark]:
    value = value_at(metrics, path)
    if isinstance(value, int | float):
      return scale * value if math.isfinite(value) else None
  return None


def headline_interval(benchmark: str, metrics: Metrics, intervals: Metrics) -> tuple[float, float] | None:
  """The figure's interval, of those of all metrics (`metric_intervals`)."""
  for path, scale in PATHS[benchmark]:
    if isinstance(value_at(metrics, path), int | float):
      ends = value_at(intervals, path)
      return None if ends is None else (scale * ends[0], scale * ends[1])
  return None


def value_at(metrics: Any, path: Sequence[str]) -> Any:
  """The value at a path of nested metrics; None where there is none."""
  for name in path:
    metrics = metrics.get(name) if isinstance(metrics, Mapping) else None
  return metrics


def independent_unit(benchmark: str, row: Row) -> Hashable:
  """The image, rotated question or prompt that a row shares with others, which are not independent of it."""
  if benchmark == 'mmbench':
    return int(row['index']) % ROTATIONS
  if benchmark == 'counting':
    return row['prompt']
  if benchmark == 'bias':  # Prompts are given; their images are sampled. Attributes of one image count together.
    return row['prompt'], row.get('filename', row['index'])
  if benchmark == 'geneval':
    metadata = row['metadata']
    return metadata if isinstance(metadata, str) else metadata['prompt']
  return next(
    (row[name] for name in ('image_path', 'image_source', 'imageId', 'data_id') if row.get(name)), row['index']
  )


def metric_intervals(benchmark: str, rule: Rule, rows: Sequence[Row]) -> dict[str, Any]:
  """95 % intervals (low, high) of metrics, nested as these are, by the delete-a-group jackknife over units.

  Units are dealt to GROUPS groups. With the metric x of all rows and x_g without group g, its variance is
  (G - 1) / G sum_g (x_g - mean x_g)^2 (Kott 2001, "The delete-a-group jackknife", Journal of Official Statistics 17).
  Left out are integers, which are counts; metrics that some rows alone do not have; and those that all groups agree
  on, which says nothing.
  """
  groups: dict[Hashable, int] = {}
  for row in rows:
    groups.setdefault(independent_unit(benchmark, row), len(groups) % GROUPS)
  count = min(GROUPS, len(groups))
  if count < 2:
    return {}
  try:
    whole = rule(rows)[1]
    parts = [
      rule([row for row in rows if groups[independent_unit(benchmark, row)] != group])[1] for group in range(count)
    ]
  except ValueError:  # A rule that needs every category refuses rows without one.
    return {}
  return _jackknife(whole, parts)


def _jackknife(whole: Metrics, parts: Sequence[Metrics]) -> dict[str, Any]:
  found: dict[str, Any] = {}
  for name, value in whole.items():
    without = [value_at(part, (name,)) for part in parts]
    if isinstance(value, Mapping):
      found[name] = _jackknife(value, without)
    elif isinstance(value, float) and all(isinstance(x, int | float) and math.isfinite(x) for x in (value, *without)):
      mean = sum(without) / len(without)
      error = math.sqrt((len(without) - 1) / len(without) * sum((x - mean) ** 2 for x in without))
      half = t_quantile(len(without) - 1) * error
      found[name] = (value - half, value + half) if half else None
  return {name: value for name, value in found.items() if value}


def digits(benchmark: str) -> int:
  """Decimals with which a figure is written: of the report's, GenEval is from 0 to 1, DPG-Bench has two, others one."""
  return 2 if benchmark in ('geneval', 'dpg', 'bias') else 1
