"""The results of an ablation as numbers: per variant and metric the mean over seeds, its interval, the difference."""

import csv
import dataclasses
import fnmatch
import io
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from janus_jax.ablation.statistics import Estimate, estimate, paired_difference
from janus_jax.ablation.variants import PlannedRun

PERCENTAGES = ('questions/', 'drawings/', 'goals/')
COSTS = ('cost/teraflops', 'cost/tokens', 'cost/seconds', 'cost/compile_seconds', 'cost/tokens_per_second')
FAILED, MISSING, NOTHING = 'failed', 'not run yet', 'no finite value'


@dataclasses.dataclass(frozen=True, eq=False)
class Summary:
  """What is known of a variant.

  Attributes:
    variant: its name.
    is_baseline: whether it is what the others are compared with.
    values: metric -> {seed: number} of the runs that are done, where it is finite.
    baseline: the same of the baseline.
    failed: {seed: reason}.
    missing: seeds that have not run yet.
  """

  variant: str
  is_baseline: bool
  values: Mapping[str, Mapping[int, float]]
  baseline: Mapping[str, Mapping[int, float]]
  failed: Mapping[int, str]
  missing: tuple[int, ...]

  def estimate(self, metric: str) -> Estimate | None:
    """None where there is no value."""
    return estimate(list(self.values.get(metric, {}).values()))

  def difference(self, metric: str) -> Estimate | None:
    """To the baseline, over the seeds that both have; None for the baseline itself."""
    if self.is_baseline:
      return None
    return paired_difference(self.values.get(metric, {}), self.baseline.get(metric, {}))


def summarise(runs: Sequence[PlannedRun], results: Mapping[str, Mapping[str, Any]], baseline: str) -> list[Summary]:
  """A summary per variant, in the order in which they first occur.

  Args:
    runs: all of the ablation.
    results: run name -> its record; those without one are missing.
    baseline: a variant.
  """
  values = {name: _values(runs, results, name) for name in dict.fromkeys(run.variant for run in runs)}
  summaries = []
  for name in values:
    of = {run.seed: results.get(run.name, {}) for run in runs if run.variant == name}
    failed = {seed: result['reason'] for seed, result in of.items() if result.get('status') == 'failed'}
    missing = tuple(seed for seed, result in of.items() if result.get('status') not in ('done', 'failed'))
    summaries.append(Summary(name, name == baseline, values[name], values[baseline], failed, missing))
  return summaries


def _values(
  runs: Sequence[PlannedRun], results: Mapping[str, Mapping[str, Any]], variant: str
) -> dict[str, dict[int, float]]:
  found: dict[str, dict[int, float]] = {}
  for run in runs:
    if run.variant == variant and results.get(run.name, {}).get('status') == 'done':
      for metric, value in results[run.name]['metrics'].items():
        if math.isfinite(value):
          found.setdefault(metric, {})[run.seed] = value
  return found


def all_metrics(summaries: Sequence[Summary]) -> list[str]:
  return list(dict.fromkeys(metric for summary in summaries for metric in summary.values))


def chosen_metrics(summaries: Sequence[Summary], patterns: Sequence[str]) -> list[str]:
  """Names that match, in the order of the patterns. Costs have a table of their own, unless they are asked for."""
  names, found = all_metrics(summaries), []
  for pattern in patterns:
    matches = fnmatch.filter(names, pattern)
    if names and not matches:
      logging.warning('metrics: %r matches none of %s', pattern, ', '.join(names))
    found += matches
  return list(dict.fromkeys(found))


def decimals(metric: str, found: Estimate) -> int:
  """How many a person needs: one of percentages, else two digits of half the interval, or four of the mean."""
  if metric.startswith(PERCENTAGES):
    return 1
  size, digits = (abs(found.half), 2) if found.half else (abs(found.mean), 4)
  return min(max(digits - 1 - math.floor(math.log10(size)), 0), 6) if size else 0


def mean_text(summary: Summary, metric: str) -> str:
  """'93.1 ± 2.0', or why there is none."""
  found = summary.estimate(metric)
  if found is None:
    return FAILED if summary.failed else MISSING if summary.missing else NOTHING
  return _with_half(metric, found)


def difference_text(summary: Summary, metric: str) -> str:
  """'+1.2 ± 0.8 *', the star saying that the interval leaves out 0; '' where there is nothing to compare."""
  found = summary.difference(metric)
  if found is None:
    return ''
  return _with_half(metric, found, sign=True) + (' *' if found.leaves_out_zero else '')


def _with_half(metric: str, found: Estimate, sign: bool = False) -> str:
  places = decimals(metric, found)
  text = f'{found.mean:{"+" if sign else ""},.{places}f}'
  return text if found.half is None else f'{text} ± {found.half:,.{places}f}'


def to_csv(summaries: Sequence[Summary]) -> str:
  """A line per variant and metric: the mean, its interval, the difference, its interval, and each seed's value."""
  seeds = sorted({seed for summary in summaries for values in summary.values.values() for seed in values})
  buffer = io.StringIO()
  writer = csv.writer(buffer, lineterminator='\n')
  ends = ('mean', 'low', 'high', 'difference', 'difference_low', 'difference_high')
  writer.writerow(['variant', 'status', 'metric', 'seeds', *ends, *(f'seed {seed}' for seed in seeds)])
  for summary in summaries:
    if not summary.values:
      writer.writerow([summary.variant, status(summary), *[''] * (len(ends) + len(seeds) + 2)])
    for metric, values in summary.values.items():
      cells = (*_interval(summary.estimate(metric)), *_interval(summary.difference(metric)))
      own = [values.get(seed, '') for seed in seeds]
      writer.writerow([summary.variant, status(summary), metric, len(values), *cells, *own])
  return buffer.getvalue()


def _interval(found: Estimate | None) -> tuple[float | str, ...]:
  if found is None:
    return '', '', ''
  return (found.mean, '', '') if found.half is None else (found.mean, found.mean - found.half, found.mean + found.half)


def status(summary: Summary) -> str:
  """'done', or what is wrong with which seeds."""
  parts = [f'{FAILED}: seed {seed}: {reason}' for seed, reason in summary.failed.items()]
  parts += [f'{MISSING}: seed {", ".join(map(str, summary.missing))}'] if summary.missing else []
  return '; '.join(parts) or 'done'


def to_markdown(summaries: Sequence[Summary], metrics: Sequence[str]) -> str:
  """A line per metric, a column per variant: mean ± interval, and below it the difference to the baseline."""
  names = [f'{summary.variant} (baseline)' if summary.is_baseline else summary.variant for summary in summaries]
  lines = [f'| | {" | ".join(names)} |', f'|---|{"---|" * len(summaries)}']
  for metric in (*metrics, *(cost for cost in COSTS if cost in all_metrics(summaries))):
    lines.append(f'| {metric} | {" | ".join(_cell(summary, metric) for summary in summaries)} |')
  notes = [f'- {summary.variant}: {status(summary)}' for summary in summaries if summary.failed or summary.missing]
  return '\n'.join([*lines, '', LEGEND, *notes, ''])


def _cell(summary: Summary, metric: str) -> str:
  difference = difference_text(summary, metric).replace('*', r'\*')
  return mean_text(summary, metric) + (f' ({difference})' if difference else '')


LEGEND = (
  'Mean over seeds ± half of its 95 % interval (Student t); then the difference to the baseline, paired by seed. '
  r'\*: the interval of the difference leaves out 0. Not corrected for the number of comparisons. ± 0: all seeds gave '
  'the same, which says little of how they vary. Intervals cover seeds only, not the choice of questions and '
  "prompts, which all runs share: for that see the intervals in each run's scores.json."
)
