"""The one figure of a benchmark that the report's table has a column for, on its scale, with a 95 % interval."""

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
}


def headline(benchmark: str, metrics: Metrics) -> float | None:
  """The figure; None where its original divides by zero, or the metrics have none."""
  for path, scale in PATHS[benchmark]:
    value: Any = metrics
    for name in path:
      value = value.get(name) if isinstance(value, Mapping) else None
    if isinstance(value, int | float):
      return scale * value if math.isfinite(value) else None
  return None


def independent_unit(benchmark: str, row: Row) -> Hashable:
  """The image, rotated question or prompt that a row shares with others, which are not independent of it."""
  if benchmark == 'mmbench':
    return int(row['index']) % ROTATIONS
  if benchmark == 'geneval':
    metadata = row['metadata']
    return metadata if isinstance(metadata, str) else metadata['prompt']
  return next(
    (row[name] for name in ('image_path', 'image_source', 'imageId', 'data_id') if row.get(name)), row['index']
  )


def interval(benchmark: str, rule: Rule, rows: Sequence[Row]) -> tuple[float, float] | None:
  """95 % interval of the headline by the delete-a-group jackknife over units; None where a group has no figure,
  and where all have the same, which says nothing.

  Units are dealt to GROUPS groups. With the figure x of all rows and x_g without group g, its variance is
  (G - 1) / G sum_g (x_g - mean x_g)^2 (Kott 2001, "The delete-a-group jackknife", Journal of Official Statistics 17).
  """
  groups: dict[Hashable, int] = {}
  for row in rows:
    groups.setdefault(independent_unit(benchmark, row), len(groups) % GROUPS)
  count = min(GROUPS, len(groups))
  if count < 2:
    return None
  try:
    whole = headline(benchmark, rule(rows)[1])
    parts = [
      headline(benchmark, rule([row for row in rows if groups[independent_unit(benchmark, row)] != group])[1])
      for group in range(count)
    ]
  except ValueError:  # A rule that needs every category refuses rows without one.
    return None
  if whole is None or None in parts:
    return None
  mean = sum(parts) / count
  error = math.sqrt((count - 1) / count * sum((part - mean) ** 2 for part in parts))
  half = t_quantile(count - 1) * error
  return (whole - half, whole + half) if half else None


def digits(benchmark: str) -> int:
  """Decimals with which the report writes a figure: GenEval is from 0 to 1, all others have one."""
  return 2 if benchmark in ('geneval', 'dpg') else 1
