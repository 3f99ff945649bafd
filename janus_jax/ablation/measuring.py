"""Measurements of a finished run: scores, held-out losses at the end of each stage, costs. Numbers by name.

  questions/CONTENT/KIND/GROUP, generations/SKILL/GROUP   percent right (janus_jax.evaluate)
  questions/all, generations/all                          of all of them together
  target_scores/NAME                                      percent, the figures that janus_jax.evaluate lists first
  held_out/TASK                                           loss per target at the end of the run
  cost/...                                                see `cost_metrics`

All runs are measured on the same questions, prompts and seeds of generation, and on held-out batches of the baseline's
last stage. A run with `optimizer.ema_decay` is measured by its averages.
"""

import dataclasses
import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from janus_jax.ablation.preparing import SweepPaths, runnable
from janus_jax.ablation.settings import Evaluation
from janus_jax.ablation.variants import PlannedRun, digest
from janus_jax.conversion.checkpoint import open_checkpoint, with_params
from janus_jax.conversion.load import load_params
from janus_jax.conversion.workdir import EMA_SUFFIX, read_params
from janus_jax.inference.image_files import prepare_directory
from janus_jax.models.files import CHECKPOINTS_DIRECTORY
from janus_jax.models.lora import NO_LORA
from janus_jax.runs import loading
from janus_jax.runs.callbacks import HeldOutLoss
from janus_jax.runs.config import TrainConfig, to_json
from janus_jax.runs.datasets import open_data
from janus_jax.runs.setup import example_spec, make_placement, read_step
from janus_jax.runs.start import open_start
from janus_jax.runs.workdirs import SAMPLING
from janus_jax.sharding.mesh import rows_split
from janus_jax.toy import scoring
from janus_jax.toy.dataset import world_for
from janus_jax.toy.scores import percent
from janus_jax.toy.test_set import JUDGES
from janus_jax.training.metrics import METRICS_FILE, read_metrics


@dataclasses.dataclass(frozen=True)
class StageCost:
  """Cost of one stage.

  Attributes:
    seconds: training alone.
    compile_seconds: the excess of its first line of metrics (compiling, mostly), as it depends on which run came first;
      0 where there is only one line.
    tokens: tokens of examples; no padding.
    flops: by formula (training/throughput.py), over all devices.
  """

  steps: int
  seconds: float
  compile_seconds: float
  tokens: int
  flops: float


def stage_costs(lines: Sequence[Mapping[str, Any]], ends: Sequence[int]) -> list[StageCost]:
  """The cost of each stage, from lines of metrics.jsonl and the steps at which stages are over.

  A line of metrics stands for the steps since the line before it.
  """
  lines = [line for line in lines if 'step_seconds' in line]
  steps = [line['step'] - before for line, before in zip(lines, [0, *(line['step'] for line in lines)])]
  pairs = list(zip(lines, steps))
  return [_cost([pair for pair in pairs if start < pair[0]['step'] <= end]) for start, end in zip((0, *ends), ends)]


def _cost(lines: Sequence[tuple[Mapping[str, Any], int]]) -> StageCost:
  if not lines:
    return StageCost(0, 0.0, 0.0, 0, 0.0)
  seconds = [line['step_seconds'] * steps for line, steps in lines]
  later = [line['step_seconds'] for line, _ in lines[1:]]
  first, first_steps = lines[0]
  excess = max(first['step_seconds'] - statistics.median(later), 0.0) * first_steps if later else 0.0
  tokens = sum(round(line['tokens_per_second'] * took) for (line, _), took in zip(lines, seconds))
  flops = 0.0
  for (line, _), took in zip(lines, seconds):
    devices = line['tokens_per_second'] / line['tokens_per_second_per_device']
    flops += line['tflops_per_second_per_device'] * 1e12 * devices * took
  return StageCost(sum(steps for _, steps in lines), sum(seconds) - excess, excess, tokens, flops)


def eval_fingerprint(evaluation: Evaluation, baseline: TrainConfig) -> str:
  """A hash of how runs are measured: results of one fingerprint can be compared."""
  judges = [JUDGES] if evaluation.scores else []
  return digest([dataclasses.asdict(evaluation), to_json(baseline), *judges])


def measure_run(
  paths: SweepPaths, run: PlannedRun, evaluation: Evaluation, baseline: TrainConfig, with_compiling: bool = False
) -> dict[str, Any]:
  """Everything that is measured of a finished run.

  Args:
    paths: the sweep's.
    run: the run.
    evaluation: settings.
    baseline: the baseline's config with the seed of the run.
    with_compiling: whether the run compiled for itself, not after another one.

  Returns:
    'metrics': {name: number}; 'stages': a dict for each stage, with its cost and 'held_out': {task: loss}.
  """
  workdir = paths.of('runs', run.name)
  costs = stage_costs(read_metrics(os.path.join(workdir, METRICS_FILE)), run.ends)
  held_out = _held_out_losses(workdir, run, runnable(paths, run, baseline), evaluation.held_out_batches)
  metrics = _scores(paths, run, evaluation) if evaluation.scores else {}
  metrics |= {f'held_out/{task}': loss for task, loss in held_out[-1].items()}
  metrics |= cost_metrics(costs, with_compiling)
  stages = [
    {'name': name, 'end': end, **dataclasses.asdict(cost), 'held_out': losses}
    for name, end, cost, losses in zip(run.config.run, run.ends, costs, held_out, strict=True)
  ]
  return {'metrics': metrics, 'stages': stages}


def cost_metrics(costs: Sequence[StageCost], with_compiling: bool) -> dict[str, float]:
  """Costs of a whole run: teraflops (1e12 operations, not per second), tokens, seconds of training, tokens per second
  of it; seconds of compiling where each run compiles for itself.
  """
  seconds, tokens = sum(cost.seconds for cost in costs), sum(cost.tokens for cost in costs)
  metrics = {
    'cost/teraflops': sum(cost.flops for cost in costs) / 1e12,
    'cost/tokens': tokens,
    'cost/seconds': seconds,
    'cost/tokens_per_second': tokens / seconds if seconds else 0.0,
  }
  if with_compiling:
    metrics['cost/compile_seconds'] = sum(cost.compile_seconds for cost in costs)
  return metrics


def _held_out_losses(workdir: str, run: PlannedRun, config: TrainConfig, num_batches: int) -> list[dict[str, float]]:
  """Losses at the end of each stage on the held-out data of `config`."""
  checkpoint = open_checkpoint(workdir)
  placement = make_placement(config.mesh, checkpoint.config, NO_LORA)
  data = open_data(config, checkpoint.config, workdir, lambda: open_start(config), 0, is_new=False)
  spec = example_spec(config.sequence_length, checkpoint.config, *loading.load_tokenizer(workdir), data.holds_codes)
  step_config = read_step(config, checkpoint.config, placement)
  held_out = HeldOutLoss(
    data.held_out, spec, config, config.run_stages[-1], step_config, rows_split(placement.mesh), num_batches
  )
  losses = []
  with jax.set_mesh(placement.mesh):
    for end in run.ends:
      params = read_params(os.path.join(workdir, CHECKPOINTS_DIRECTORY, str(end)), _is_averaged(run))
      loaded = load_params(with_params(checkpoint, params).resized(), placement.params)
      losses.append(held_out.measure(loaded))
  return losses


def _is_averaged(run: PlannedRun) -> bool:
  return run.config.optimizer.ema_decay > 0


def _scores(paths: SweepPaths, run: PlannedRun, evaluation: Evaluation) -> dict[str, float]:
  """The scores that `janus_jax.evaluate` computes; writes the same files."""
  workdir, directory = paths.of('runs', run.name), paths.of('scores', run.name)
  prepare_directory(directory)
  checkpoint = f'{workdir}{EMA_SUFFIX}' if _is_averaged(run) else workdir
  settings = {name: getattr(evaluation, name) for name in ('questions_per_kind', 'images_per_group', 'seed')}
  settings |= {name: getattr(run.config.sampling, name) for name in SAMPLING}
  janus, data = loading.load(checkpoint, 'float32'), run.config.data
  scored = scoring.score(janus, world_for(janus.config, 0, **data.toy), **settings)
  found = {'checkpoint': checkpoint, 'settings': settings, **scoring.scores_to_dict(scored)}
  scoring.write_scores(directory, found, scored)
  return score_metrics(found)


def score_metrics(found: Mapping[str, Any]) -> dict[str, float]:
  """Percentages in a dict of `scoring.scores_to_dict`."""
  metrics = {f'target_scores/{score["name"]}': score['percent'] for score in found['target_scores']}
  for kind in ('questions', 'generations'):
    metrics[f'{kind}/all'] = percent(*(sum(score[part] for score in found[kind]) for part in ('right', 'total')))
    metrics |= {'/'.join((kind, *score['name'], score['group'])): score['percent'] for score in found[kind]}
  return metrics
