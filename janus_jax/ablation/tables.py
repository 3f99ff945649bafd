"""The results of an ablation as numbers: per variant and metric the mean over seeds, its interval, the difference."""

import csv
import dataclasses
import fnmatch
import io
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from janus_jax.ablation.variants import PlannedRun
from janus_jax.reporting.statistics import Estimate, estimate, paired_difference

PERCENTAGES = ('questions/', 'generations/', 'target_scores/')
COSTS = {
  'cost/teraflops': 'TFLOP',
  'cost/tokens': 'tokens',
  'cost/seconds': 's',
  'cost/compile_seconds': 's',
  'cost/tokens_per_second': 'tokens/s',
}
# Depend on what ran on the machine before: the runs that come later find programs compiled and files in memory.
CLOCKED = ('cost/seconds', 'cost/compile_seconds', 'cost/tokens_per_second')
FAILED, MISSING, NOTHING, NOT_FINITE = 'failed', 'not run yet', 'no finite value', 'not finite'
METRICS_NAMED = 3  # Metrics that are not finite, in the status of a seed.


@dataclasses.dataclass(frozen=True, eq=False)
class Summary:
  """Results of a variant.

  Attributes:
    values: metric -> {seed: number} of the runs that are done.
    failed: {seed: reason}.
    missing: seeds that have not run yet.
    baseline: None of the baseline itself.
  """

  variant: str
  values: Mapping[str, Mapping[int, float]]
  failed: Mapping[int, str]
  missing: tuple[int, ...]
  baseline: 'Summary | None'

  @property
  def is_whole(self) -> bool:
    """True where every seed has a finite value of everything."""
    return not (self.failed or self.missing or any(map(self.not_finite, self.values)))

  def finite(self, metric: str) -> dict[int, float]:
    """Values by seed that are finite."""
    return {seed: value for seed, value in self.values.get(metric, {}).items() if math.isfinite(value)}

  def not_finite(self, metric: str) -> list[int]:
    """Seeds whose value is not finite."""
    return [seed for seed, value in self.values.get(metric, {}).items() if not math.isfinite(value)]

  def left_out(self, metric: str) -> dict[str, int]:
    """Reasons for which seeds are no part of `estimate` -> number of seeds."""
    counts = {NOT_FINITE: len(self.not_finite(metric)), FAILED: len(self.failed), MISSING: len(self.missing)}
    return {reason: count for reason, count in counts.items() if count}

  def estimate(self, metric: str) -> Estimate | None:
    """None where there is no value."""
    return estimate(list(self.finite(metric).values()))

  def difference(self, metric: str) -> Estimate | None:
    """Difference to the baseline, over the seeds that both have; None for the baseline itself, and of wall time."""
    if self.baseline is None or metric in CLOCKED:
      return None
    return paired_difference(self.finite(metric), self.baseline.finite(metric))

  def is_clear(self, metric: str) -> bool:
    """True where the interval of the difference leaves out 0, and no seed of either failed or is not finite: of those
    that are left nothing follows for all.
    """
    found = self.difference(metric)
    lost = {*self.left_out(metric), *(self.baseline.left_out(metric) if self.baseline else ())} - {MISSING}
    return found is not None and found.leaves_out_zero and not lost


def summarise(runs: Sequence[PlannedRun], results: Mapping[str, Mapping[str, Any]], baseline: str) -> list[Summary]:
  """A summary per variant, in the order of the runs; those without a record in `results` (by name) are missing."""

  def summary(variant: str, compared: Summary | None) -> Summary:
    records = {run.seed: results.get(run.name, {}) for run in runs if run.variant == variant}
    failed = {seed: record['reason'] for seed, record in records.items() if record.get('status') == 'failed'}
    missing = tuple(seed for seed, record in records.items() if record.get('status') not in ('done', 'failed'))
    values: dict[str, dict[int, float]] = {}
    for seed, record in records.items():
      for metric, value in record['metrics'].items() if record.get('status') == 'done' else ():
        values.setdefault(metric, {})[seed] = value
    return Summary(variant, values, failed, missing, compared)

  own = summary(baseline, None)
  return [own if name == baseline else summary(name, own) for name in dict.fromkeys(run.variant for run in runs)]


def all_metrics(summaries: Sequence[Summary]) -> list[str]:
  return list(dict.fromkeys(metric for item in summaries for metric in item.values))


def chosen_metrics(summaries: Sequence[Summary], patterns: Sequence[str]) -> list[str]:
  """Names that match, in the order of the patterns. Costs have a table of their own, unless they are asked for."""
  names, found = all_metrics(summaries), []
  for pattern in patterns:
    matches = fnmatch.filter(names, pattern)
    if names and not matches:
      logging.warning('metrics: %r matches none of %s', pattern, ', '.join(names))
    found += matches
  return list(dict.fromkeys(found))


def unit(metric: str) -> str:
  if metric.startswith(PERCENTAGES):
    return '% right'
  return COSTS.get(metric, 'nats per target' if metric.startswith('held_out/') else '')


def limits(metric: str, difference: bool = False) -> tuple[float, float]:
  """Limits of the metric, or of the difference of two of its values. No metric is negative."""
  high = 100.0 if metric.startswith(PERCENTAGES) else math.inf
  return (-high if difference else 0.0), high


def decimals(metric: str, found: Estimate) -> int:
  """Decimals that a person needs: one of percentages, else two digits of half the interval, or four of the mean."""
  if metric.startswith(PERCENTAGES):
    return 1
  size, digits = (abs(found.half), 2) if found.half else (abs(found.mean), 4)
  return min(max(digits - 1 - math.floor(math.log10(size)), 0), 6) if size else 0


def mean_text(summary: Summary, metric: str) -> str:
  """'0.93 ± 0.02', of a percentage '93.1 [91.1, 95.1]', with '(1 of 3 not finite)', or why there is none."""
  found = summary.estimate(metric)
  if found is None:
    reason = next(iter(summary.left_out(metric)), NOT_FINITE)
    return NOTHING if reason == NOT_FINITE else reason
  return _with_interval(metric, found) + left_out_text(summary, metric)


def left_out_text(summary: Summary, metric: str) -> str:
  """' (1 of 3 not finite, 1 of 3 failed)': seeds that a mean does not hold; '' if it holds all."""
  reasons = summary.left_out(metric)
  total = sum(reasons.values()) + len(summary.finite(metric))
  return f' ({", ".join(f"{count} of {total} {reason}" for reason, count in reasons.items())})' if reasons else ''


def difference_text(summary: Summary, metric: str) -> str:
  """Text such as '+1.2 [+0.4, +2.0] *', with a star where the interval leaves out 0; '' where nothing is compared."""
  found = summary.difference(metric)
  if found is None:
    return ''
  return _with_interval(metric, found, difference=True) + (' *' if summary.is_clear(metric) else '')


def _with_interval(metric: str, found: Estimate, difference: bool = False) -> str:
  """Text of a mean and its interval: of percentages the ends, which are cut to 0 and 100, else half of it."""
  digits = decimals(metric, found)
  form = f'{"+" if difference else ""},.{digits}f'
  ends = found.interval(limits(metric, difference))
  if ends is None:
    return f'{found.mean:{form}}'
  if metric.startswith(PERCENTAGES):
    return f'{found.mean:{form}} [{ends[0]:{form}}, {ends[1]:{form}}]'
  return f'{found.mean:{form}} ± {found.half:,.{digits}f}'


def to_csv(summaries: Sequence[Summary]) -> str:
  """A line per variant and metric: the mean, its interval, the difference, its interval, and each seed's value. Seeds
  whose value is 'nan' or 'inf' are counted in a column of their own, and in nothing else.
  """
  seeds = sorted({seed for summary in summaries for values in summary.values.values() for seed in values})
  buffer = io.StringIO()
  writer = csv.writer(buffer, lineterminator='\n')
  ends = ('mean', 'low', 'high', 'difference', 'difference_low', 'difference_high')
  writer.writerow(['variant', 'status', 'metric', 'seeds', 'not finite', *ends, *(f'seed {seed}' for seed in seeds)])
  for summary in summaries:
    for metric, values in summary.values.items():
      counts = len(summary.finite(metric)), len(summary.not_finite(metric))
      mean = _interval(summary.estimate(metric), limits(metric))
      difference = _interval(summary.difference(metric), limits(metric, True))
      own = [values.get(seed, '') for seed in seeds]
      writer.writerow([summary.variant, status(summary), metric, *counts, *mean, *difference, *own])
    if not summary.values:
      writer.writerow([summary.variant, status(summary), *[''] * (len(ends) + len(seeds) + 3)])
  return buffer.getvalue()


def _interval(found: Estimate | None, limits: tuple[float, float]) -> tuple[float | str, ...]:
  return (found.mean, *(found.interval(limits) or ('', ''))) if found else ('', '', '')


def status(summary: Summary) -> str:
  """'done', or what is wrong with which seeds."""
  parts = [f'{FAILED}: seed {seed}: {reason}' for seed, reason in summary.failed.items()]
  parts += [f'{MISSING}: seed {", ".join(map(str, summary.missing))}'] if summary.missing else []
  for seed in sorted({seed for metric in summary.values for seed in summary.not_finite(metric)}):
    names = [metric for metric in summary.values if seed in summary.not_finite(metric)]
    more = [f'and {len(names) - METRICS_NAMED} more'] if len(names) > METRICS_NAMED else []
    parts.append(f'{NOT_FINITE}: seed {seed}: {", ".join([*names[:METRICS_NAMED], *more])}')
  return '; '.join(parts) or 'done'


def column_name(summary: Summary) -> str:
  """'base (baseline)', 'other'."""
  return f'{summary.variant} (baseline)' if summary.baseline is None else summary.variant


def to_markdown(summaries: Sequence[Summary], metrics: Sequence[str]) -> str:
  """A line per metric, a column per variant: mean ± interval, and below it the difference to the baseline."""
  lines = [f'| | {" | ".join(map(column_name, summaries))} |', f'|---|{"---|" * len(summaries)}']
  for metric in (*metrics, *(cost for cost in COSTS if cost in all_metrics(summaries))):
    lines.append(f'| {metric} | {" | ".join(_cell(summary, metric) for summary in summaries)} |')
  notes = [f'- {summary.variant}: {status(summary)}' for summary in summaries if not summary.is_whole]
  return '\n'.join([*lines, '', LEGEND, *notes, ''])


def _cell(summary: Summary, metric: str) -> str:
  difference = difference_text(summary, metric).replace('*', r'\*')
  return mean_text(summary, metric) + (f' ({difference})' if difference else '')


LEGEND = (
  'Mean over seeds ± half of its 95 % interval (Student t), of a percentage [the interval], which ends at 0 and 100; '
  r'then the difference to the baseline, paired by seed. \*: the interval of the difference leaves out 0. Not '
  'corrected for the number of comparisons. ± 0 or [x, x]: all seeds gave the same, which says little of how they '
  'vary. Seeds that failed or are not finite are no part of a mean and stand beside it; where there are any, of '
  'either variant, no difference has a star. Nothing is said of differences in wall time: runs that come later find '
  'programs compiled. Intervals cover seeds only, not the choice of questions and prompts, which all runs share: for '
  "that see the intervals in each run's scores.json."
)
