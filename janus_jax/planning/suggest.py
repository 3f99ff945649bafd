"""Settings that make a step fit which does not, found by compiling with them, cheapest first."""

import dataclasses
import logging
from collections.abc import Iterator

from janus_jax.planning.compile import Setup, StagePlan, abstract_state, make_setup, plan_stage
from janus_jax.planning.memory import available_bytes, held_bytes
from janus_jax.runs.config import TrainConfig, replaced
from janus_jax.sharding.accelerators import GIB
from janus_jax.training.stages import Stage

GRADIENT_BYTES = 4  # Per parameter that trains.


def find_fitting(config: TrainConfig, index: int, failed: StagePlan) -> tuple[list[str], StagePlan | None]:
  """Finds flags with which stage `index` fits, which has `failed` with the config, and its plan with them.

  ([], None) if nothing was found.
  """
  start, topology = failed.setup.start, failed.setup.topology
  options: dict[str, str] = {}
  tried = list(candidate_changes(failed.setup, failed.stage))
  for number, change in enumerate(tried, start=1):
    config = replaced(config, change)
    options |= {name: f'--config.{name}={value}' for name, value in change.items()}
    shown = ' '.join(options.values())
    candidate = make_setup(config, start, topology, index)
    if least_bytes(candidate, index, failed) > available_bytes(topology):
      logging.info('%d of %d: %s cannot be enough', number, len(tried), shown)
      continue
    logging.info('%d of %d: trying %s', number, len(tried), shown)
    plan = plan_stage(candidate, index)
    logging.info('  %.1f of %.1f GiB', plan.memory.peak / GIB, plan.memory.available / GIB)
    if plan.memory.fits:
      return list(options.values()), plan
    failed = plan
  return [], None


def candidate_changes(setup: Setup, stage: Stage) -> Iterator[dict[str, str | int]]:
  """Yields fields and values, each on top of those before it: what costs nothing, then time, then precision."""
  step, mesh, slices = setup.step.for_stage(stage), setup.mesh.shape, setup.topology.slices
  if mesh['data'] > slices:  # Each slice holds a whole state; within one it need not be held twice.
    yield {'mesh.data': slices, 'mesh.fsdp': -1}
  rows, rest = divmod(stage.batch_size, mesh['data'] * mesh['fsdp'])
  if not rest:
    # The fewest that fit: sharded weights are gathered anew for each.
    for count in range(step.accumulation + 1, rows + 1):
      if rows % count == 0:
        yield {f'stages.{stage.name}.accumulation': count}
  if step.compute.remat != 'full':
    yield {'compute.remat': 'full'}
  if step.optimizer.moment_dtype != 'bfloat16':
    yield {'optimizer.moment_dtype': 'bfloat16'}
  if step.optimizer.gradient_sum_dtype != 'bfloat16':  # Useful since gradients are summed up by now.
    yield {'optimizer.gradient_sum_dtype': 'bfloat16'}


def least_bytes(setup: Setup, index: int, failed: StagePlan) -> int:
  """Bytes that a device must hold whatever the compiler does.

  These are the state and a gradient for each parameter that trains. Where only the accumulation has grown since
  `failed`, the temporaries of `failed`, if all of them shrink as rows do, are a second bound beside the state.
  """
  state = abstract_state(setup, index)
  rest = sum(held_bytes(moment) // moment.dtype.itemsize * GRADIENT_BYTES for moment in state.opt_state.mu.values())
  before, step = failed.step, setup.step.for_stage(setup.run.run_stages[index])
  if setup.mesh == failed.setup.mesh and dataclasses.replace(step, accumulation=before.accumulation) == before:
    temporaries = failed.memory.peaks['step'] - failed.memory.arguments
    rest = max(rest, temporaries * before.accumulation // step.accumulation)
  return held_bytes(state) + rest
