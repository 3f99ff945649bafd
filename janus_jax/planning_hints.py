"""Which settings make a step fit that does not: found by compiling with them, cheapest first."""

import logging
from collections.abc import Iterator

from ml_collections import ConfigDict

from janus_jax.planning import (
  Setup,
  StagePlan,
  Start,
  abstract_state,
  available_bytes,
  held_bytes,
  make_setup,
  plan_stage,
)
from janus_jax.sharding.topologies import Topology
from janus_jax.training.stages import Stage

GRADIENT_BYTES = 4  # Of a parameter that trains.


def find_fitting(
  config: ConfigDict, start: Start, topology: Topology, index: int
) -> tuple[list[str], StagePlan | None]:
  """Settings with which a stage that does not fit would.

  Args:
    config: with which it does not fit.
    start: of the run.
    topology: where.
    index: of the stage in the run.

  Returns:
    What to add to the command, and the plan with it; ([], None) if nothing was found.

  Raises:
    InputError: see `planning.plan_stage`.
  """
  setup = make_setup(config, start, topology)
  stage = setup.run.stages[index]
  changed = ConfigDict(config.to_dict())
  options: list[str] = []
  for change in changes(setup, stage):
    changed.update_from_flattened_dict(change)
    options += [f'--config.{name}={value}' for name, value in change.items()]
    candidate = make_setup(changed, start, topology)
    if least_bytes(candidate, index) > available_bytes(topology):
      logging.info('%s on %s: %s cannot be enough', stage.name, topology.name, ' '.join(options))
      continue
    logging.info('%s on %s: trying %s', stage.name, topology.name, ' '.join(options))
    plan = plan_stage(candidate, index)
    if plan.memory.fits:
      return options, plan
  return [], None


def changes(setup: Setup, stage: Stage) -> Iterator[dict[str, str | int]]:
  """Fields and values, each tried on top of those before it: what costs nothing, then time, then precision."""
  mesh, slices = setup.mesh.shape, setup.topology.slices
  if mesh['data'] > slices:  # Each slice holds a whole state; within one it need not be held twice.
    yield {'mesh.data': slices, 'mesh.fsdp': -1}
  rows, rest = divmod(stage.batch_size, mesh['data'] * mesh['fsdp'])
  if rows > setup.step.accumulation and not rest:
    yield {'accumulation': rows}
  if setup.step.compute.remat != 'full':
    yield {'compute.remat': 'full'}
  if setup.step.optimizer.moment_dtype != 'bfloat16':
    yield {'optimizer.moment_dtype': 'bfloat16'}


def least_bytes(setup: Setup, index: int) -> int:
  """What a device must hold whatever the compiler does: the state, and a gradient for each parameter that trains."""
  state = abstract_state(setup, index)
  gradients = sum(
    held_bytes(moment) // moment.dtype.itemsize * GRADIENT_BYTES for moment in state.opt_state.mu.values()
  )
  return held_bytes(state) + gradients
