"""Runs an ablation: its missing runs, one after the other, and the report.

All runs share one process, and so the compiled step of whatever they have in common: five short runs of configs/tiny.py
took 83 s of CPU in one process, 210 s in a process each, 141 s in a process each with JAX's compilation cache on disk.

A run's record (results/NAME.json) says 'started', then 'done' or 'failed'. A sweep that is called again skips runs that
are done, goes on with those that are started, and tries failed ones again only if it is told to.
"""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from janus_jax.ablation import compute, measuring, preparing, report
from janus_jax.ablation.checks import check_sweep
from janus_jax.ablation.preparing import SweepPaths, runnable
from janus_jax.ablation.settings import Ablation
from janus_jax.ablation.variants import PlannedRun, in_order, of_shard, planned, steps_to_train
from janus_jax.errors import InputError, one_line
from janus_jax.models.files import CHECKPOINTS_DIRECTORY
from janus_jax.reporting import charts
from janus_jax.runs import setup
from janus_jax.runs.config import TrainConfig, replaced, to_json
from janus_jax.runs.workdirs import is_begun


class StoppedError(Exception):
  """SIGTERM came while a run was training; it is saved."""


def ablate(
  ablation: Ablation,
  workdir: str,
  shard: tuple[int, int] = (0, 1),
  retry_failed: bool = False,
  report_directory: str | None = None,
) -> bool:
  """Trains and measures the missing runs of an ablation and writes its report.

  Args:
    ablation: from `settings.read_ablation`.
    workdir: the sweep's (`preparing.SweepPaths`).
    shard: (i, n): this is process i of n, which share the directory and the runs.
    retry_failed: runs that failed go on where they stopped.
    report_directory: default: `workdir`.

  Returns:
    True if all runs of this process are over, failures included; False after SIGTERM.

  Raises:
    InputError: something in the ablation is wrong.
    OSError: the directory cannot be written.
  """
  charts.matplotlib()
  check_sweep(ablation)
  all_runs(ablation, ablation.configs)  # Raises before anything is written.
  paths = SweepPaths(workdir)
  os.makedirs(paths.root, exist_ok=True)
  if ablation.fresh_compilation:
    jax.config.update('jax_enable_compilation_cache', False)
  runs = all_runs(ablation, with_equal_compute(ablation, paths))
  sweep = _Sweep(ablation, paths, runs)
  finished = sweep.run(of_shard(in_order(runs), shard), retry_failed)
  report.write_report(ablation, paths, runs, sweep.current_results(), report_directory or paths.root)
  return finished


def with_equal_compute(ablation: Ablation, paths: SweepPaths) -> dict[str, TrainConfig]:
  """The configs with the steps that `ablation.equal_flops` asks for. Makes the parts, whose tokenizer it needs."""
  configs = dict(ablation.configs)
  if not ablation.equal_flops:
    return configs

  def prices(name: str) -> dict[str, float]:
    run = planned(name, ablation.seeds[0], configs[name], ablation.parts_per_seed)
    preparing.prepare_runs(paths, run)
    return compute.step_prices(runnable(paths, run), paths.of('data'))

  budget = compute.total_flops(configs[ablation.baseline], prices(ablation.baseline))
  for name, stages in ablation.equal_flops.items():
    steps = compute.matched_steps(configs[name], prices(name), budget, stages, f'equal_flops.{name}')
    counts = ', '.join(f'{count} steps of {stage}' for stage, count in steps.items())
    logging.info('%s costs what %s does with %s', name, ablation.baseline, counts)
    configs[name] = replaced(configs[name], {f'stages.{stage}.steps': n for stage, n in steps.items()})
  return configs


def all_runs(ablation: Ablation, configs: Mapping[str, TrainConfig]) -> list[PlannedRun]:
  """Variants x seeds."""
  return [
    planned(name, seed, config, ablation.parts_per_seed) for seed in ablation.seeds for name, config in configs.items()
  ]


class _Sweep:
  """The runs of an ablation in a directory, and the pace at which this call trains steps and measures runs."""

  def __init__(self, ablation: Ablation, paths: SweepPaths, runs: Sequence[PlannedRun]):
    self._ablation, self._paths, self._runs = ablation, paths, runs
    self._baselines = {run.seed: run.config for run in runs if run.variant == ablation.baseline}
    self._steps_trained = self._runs_measured = 0
    self._training_seconds = self._measuring_seconds = 0.0

  def run(self, runs: Sequence[PlannedRun], retry_failed: bool) -> bool:
    """Trains and measures what is missing of these runs; False after SIGTERM."""
    results = self._paths.read_results()
    left = [run for run in runs if not self._is_over(run, results, retry_failed)]
    done = len(runs) - len(left)
    logging.info('%d of %d runs are done, %d steps to train', done, len(runs), self._steps_left(left))
    for number, run in enumerate(left, start=1):
      with self._paths.alone(run.name):
        # Another process may have been here, and runs that this one has finished can be forked.
        results = self._paths.read_results()
        try:
          if not self._is_over(run, results, retry_failed):
            self._finish(run, results)
        except StoppedError:
          logging.info('stopped in %s, which is saved: the same command goes on', run.name)
          return False
      logging.info('%d of %d runs are done%s', done + number, len(runs), self._time_left(left[number:]))
    return True

  def _time_left(self, runs: Sequence[PlannedRun]) -> str:
    """Estimate of the time that runs take; '' as long as nothing is known."""
    if not runs or not self._steps_trained or not self._runs_measured:
      return ''
    seconds = self._steps_left(runs) * self._training_seconds / self._steps_trained
    seconds += len(runs) * self._measuring_seconds / self._runs_measured
    return f', about {seconds / 60:.0f} min left' if seconds >= 90 else f', about {seconds:.0f} s left'

  def current_results(self) -> dict[str, dict[str, Any]]:
    """Records of the ablation's runs, without those that were measured otherwise than is asked for now."""
    results = self._paths.read_results()
    return {run.name: results[run.name] for run in self._runs if self._is_over(run, results, retry_failed=False)}

  def _is_over(self, run: PlannedRun, results: Mapping[str, Mapping[str, Any]], retry_failed: bool) -> bool:
    result = results.get(run.name, {})
    if result.get('status') == 'failed':
      return not retry_failed
    # Records without a fingerprint have other names of metrics: they are measured anew.
    return result.get('status') == 'done' and result.get('eval_fingerprint') == self._eval_fingerprint(run)

  def _eval_fingerprint(self, run: PlannedRun) -> str:
    return measuring.eval_fingerprint(self._ablation.evaluation, self._baselines[run.seed])

  def _steps_left(self, runs: Sequence[PlannedRun]) -> int:
    """Steps of runs, as if none of them was begun."""
    trained = [run for run in self._runs if is_finished(self._paths, run)]
    return steps_to_train([*trained, *runs]) - steps_to_train(trained)

  def _finish(self, run: PlannedRun, results: dict[str, dict[str, Any]]) -> None:
    """Trains and measures a run, or records why it failed."""
    record = {
      'variant': run.variant,
      'seed': run.seed,
      'config': to_json(run.config),
      'prefixes': run.prefixes,
      'ends': run.ends,
      'eval_fingerprint': self._eval_fingerprint(run),
      'forked': results.get(run.name, {}).get('forked'),
    }
    try:
      self._train(run, record, results)
      began = time.perf_counter()
      baseline, alone = self._baselines[run.seed], self._ablation.fresh_compilation
      measured = measuring.measure_run(self._paths, run, self._ablation.evaluation, baseline, with_compiling=alone)
      self._measuring_seconds += time.perf_counter() - began
      self._runs_measured += 1
      self._paths.write_result(run.name, {**record, 'status': 'done', **measured})
    except (OSError, StoppedError):
      raise  # A full disk is no property of the variant.
    except Exception as error:
      reason = one_line(error)[:500]
      if not isinstance(error, InputError):
        logging.exception('%s', run.name)
        reason = f'{type(error).__name__}: {reason}'
      logging.warning('%s failed: %s', run.name, reason)
      self._paths.write_result(run.name, {**record, 'status': 'failed', 'reason': reason})

  def _train(self, run: PlannedRun, record: dict[str, Any], results: dict[str, dict[str, Any]]) -> None:
    """Trains a run to its end, and records from which run and step it was forked, if it was."""
    preparing.prepare_runs(self._paths, run)
    workdir, how = self._paths.of('runs', run.name), 'resumed'
    if not is_begun(workdir):
      record['forked'], how = None, 'from its first step'
      if source := preparing.find_shared_run(self._paths, run, results):
        preparing.fork(self._paths, run, *source)
        record['forked'] = {'run': source[0], 'step': source[1]}
        how = f'forked from {source[0]} after step {source[1]}'
    self._paths.write_result(run.name, {**record, 'status': 'started'})
    logging.info('%s: %s', run.name, how)
    preparing.take_codes(self._paths, run)
    if self._ablation.fresh_compilation:
      jax.clear_caches()
    began = time.perf_counter()
    setup.train(runnable(self._paths, run), workdir)
    preparing.give_codes(self._paths, run)
    if not is_finished(self._paths, run):
      raise StoppedError
    self._training_seconds += time.perf_counter() - began
    self._steps_trained += run.steps - (record['forked'] or {'step': 0})['step']


def is_finished(paths: SweepPaths, run: PlannedRun) -> bool:
  """True if a run has been trained to its end."""
  return os.path.isdir(paths.of('runs', run.name, CHECKPOINTS_DIRECTORY, str(run.steps)))
