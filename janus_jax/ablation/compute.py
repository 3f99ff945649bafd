"""Equal compute: how many steps a schedule may have to cost as many FLOPs as another one."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from janus_jax.ablation.settings import times
from janus_jax.conversion.translate import parameter_shapes
from janus_jax.data.mean_sizes import mean_sizes
from janus_jax.errors import InputError
from janus_jax.runs.config import TrainConfig, replaced
from janus_jax.runs.setup import open_examples, stage_batches
from janus_jax.runs.start import open_start
from janus_jax.sharding.mesh import make_mesh, rows_split
from janus_jax.training.metric_window import Window
from janus_jax.training.stages import adapted_groups, stage_models, trained_groups, trained_paths
from janus_jax.training.throughput import step_flops

# Batches of a stage that are made to see what a step costs; their mean is good to less than 1 %.
BATCHES = 64


def step_prices(config: TrainConfig, directory: str) -> dict[str, float]:
  """FLOPs of a step of each stage that runs, by formula (training/throughput.py) from the first batches of the stage.

  The config has `init_from` and `data.directory`; indices of data go to `directory`.
  """
  coded, config = config.data.precompute_codes, replaced(config, {'data.precompute_codes': False})
  start, stages, prices = open_start(config), config.run_stages, {}
  streams = config.streams or rows_split(make_mesh(dataclasses.asdict(config.mesh)))
  for stage, model in zip(stages, stage_models(start.config, stages)):
    sized = start.resized(*model.sizes)
    data, spec = open_examples(config, sized, directory)
    (mean,) = mean_sizes(data.train, [(stage.ratio, stage.sources)], spec, config.seed)
    window = Window(model, config.sequence_length, ())
    for batch in itertools.islice(stage_batches(config, stage, mean, data, spec, streams), BATCHES):
      window.add({name: part for name, part in batch.items() if not coded or name != 'generation_pixels'}, 0.0)
    paths = trained_paths(stage, parameter_shapes(model, config.lora))
    trained = trained_groups(paths), adapted_groups(paths)
    prices[stage.name] = step_flops(model, window.counts, config.sequence_length, *trained).total / BATCHES
  return prices


def total_flops(config: TrainConfig, prices: Mapping[str, float]) -> float:
  """FLOPs of all stages that run."""
  return sum(stage.steps * prices[stage.name] for stage in config.run_stages)


def check_runs(config: TrainConfig, stages: Sequence[str], where: str) -> None:
  """Raises InputError for a stage that does not run."""
  for name in stages:
    if name not in config.run:
      raise InputError(f'{where}: {name!r}: expected stages that run, of {", ".join(config.run)}')


def matched_steps(
  config: TrainConfig, prices: Mapping[str, float], budget: float, stages: Sequence[str], where: str
) -> dict[str, int]:
  """Steps of some stages, all multiplied by one factor, with which a schedule costs `budget` FLOPs.

  Rounding misses it by less than half a step of each stage. `prices` are FLOPs of a step of each.

  Raises:
    InputError: a stage that does not run, or those that stay as they are cost more than the budget.
  """
  check_runs(config, stages, where)
  changing = sum(config.stages[name].steps * prices[name] for name in config.run if name in stages)
  left = budget - (total_flops(config, prices) - changing)
  if not changing or left <= 0:
    raise InputError(f'{where}: the stages that stay as they are cost more than the whole baseline: nothing is left')
  return {name: times(config.stages[name].steps, left / changing) for name in stages}
