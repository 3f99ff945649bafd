"""Memory that a step needs of a GPU, by formula: XLA's compiler for GPUs wants to try its kernels on the card.

The formula is the one by which 'auto' chooses what is kept for the backward pass (training/rematerialisation.py). Of
Stage III of the 1B it says 3 to 11 % more than an H100 took (tests/planning/test_estimate.py).
"""

import dataclasses
from collections.abc import Mapping

from janus_jax.planning.memory import available_bytes
from janus_jax.planning.topologies import Topology
from janus_jax.runs.config import TrainConfig
from janus_jax.training.rematerialisation import USABLE, step_bytes
from janus_jax.training.stages import Stage
from janus_jax.training.state import Placement
from janus_jax.training.step import StepConfig

Shapes = Mapping[str, tuple[int, ...]]


def estimated_step(
  step: StepConfig, config: TrainConfig, placement: Placement, shapes: Shapes, topology: Topology
) -> StepConfig:
  """The step as the config asks for it: kernels are left open, rematerialisation is chosen for the GPU.

  Args:
    step: for the devices that stand for the GPUs.
    config: of a run.
    placement: where parameters lie.
    shapes: path -> shape of each parameter.
    topology: GPUs.
  """
  remat = config.compute.remat
  if remat == 'auto':
    needed = step_bytes(step, config.run_stages, placement, shapes, config.sequence_length, 'dots')
    remat = 'dots' if needed <= USABLE * available_bytes(topology) else 'full'
  kernels = {name: getattr(config.compute, name) for name in ('attention', 'vision_attention')}
  return dataclasses.replace(step, compute=dataclasses.replace(step.compute, remat=remat, **kernels))


def estimated_memory(
  step: StepConfig, stage: Stage, placement: Placement, shapes: Shapes, length: int, arguments: int
) -> int:
  """Bytes of a GPU in a step of a stage, at least its arguments; arguments as in `step_bytes`."""
  return max(arguments, step_bytes(step, [stage], placement, shapes, length, step.compute.remat))
