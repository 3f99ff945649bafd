"""The step of each stage, compiled for devices that are not there: whether it fits, and how fast it can be.

Nothing is allocated: parameters, moments and batches are shapes. The program is `training.step.train_step` with the
arguments that the loop gives it. XLA's compiler for GPUs wants to try its kernels on the card, so their memory is
estimated by the formula with which 'auto' chooses a rematerialisation (training/rematerialisation.py). For Stage III of
the 1B it gives 3 to 11 % more than an H100 took (tests/planning/test_estimate.py).
"""

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from janus_jax.conversion.translate import parameter_shapes
from janus_jax.data.packing import BatchShape, batch_shape
from janus_jax.errors import one_line
from janus_jax.planning.hlo import received_bytes
from janus_jax.planning.ideal import ideal_bytes
from janus_jax.planning.memory import Memory, available_bytes, held_bytes, memory_of, wanted_bytes
from janus_jax.planning.roofline import Figures, StageWork, stage_figures
from janus_jax.planning.topologies import Topology, abstract_devices
from janus_jax.runs.callbacks import held_out_losses
from janus_jax.runs.config import TrainConfig
from janus_jax.runs.datasets import hold_codes
from janus_jax.runs.setup import frozen_dtypes, make_placement, read_step
from janus_jax.runs.start import Start
from janus_jax.sharding.mesh import ROW_AXES, rows_split
from janus_jax.training.preference import ADVANTAGE, SAMPLE
from janus_jax.training.rematerialisation import USABLE, step_bytes
from janus_jax.training.run_config import check_batches, expected_mean, expected_samples, stage_shape
from janus_jax.training.stages import Stage, adapted_groups, stage_models, trained_groups, trained_paths
from janus_jax.training.state import Placement, TrainState, abstract, flatten, new_state, unflatten
from janus_jax.training.step import StageValues, StepConfig, jit_train_step


@dataclasses.dataclass(frozen=True)
class Setup:
  """A config on a topology, as far as compiling its steps needs it.

  Attributes:
    step: settings that the step is compiled for.
    holds_codes: whether images to generate come as codes, so that the VQ encoder is not part of the step.
  """

  topology: Topology
  start: Start
  run: TrainConfig
  step: StepConfig
  placement: Placement
  holds_codes: bool

  @property
  def mesh(self) -> jax.sharding.Mesh:
    return self.placement.mesh


@dataclasses.dataclass(frozen=True)
class StagePlan:
  """One stage on a topology.

  Attributes:
    step: what the step of this stage is compiled for.
    received: bytes a device gets from others in a step, by kind of collective; None where it does not fit.
    ideal: bytes that it would have to get at least (ideal.py).
    compile_seconds: seconds on this machine.
  """

  stage: Stage
  setup: Setup
  step: StepConfig
  memory: Memory
  received: Mapping[str, int] | None
  ideal: int
  figures: Figures
  compile_seconds: float


def make_setup(config: TrainConfig, start: Start, topology: Topology, index: int = 0) -> Setup:
  """The setup of stages whose images have the sizes of the stage `index`. Raises InputError for what is wrong with the
  config, or with the mesh on this topology.
  """
  start = dataclasses.replace(start, model=stage_models(start.model, config.run_stages)[index])
  placement = make_placement(config.mesh, start.model, config.lora, abstract_devices(topology))
  step = read_step(config, start.model, placement, dtypes=frozen_dtypes(config, start))
  if topology.is_estimated:
    step = _gpu_step(step, config, placement, topology, frozen_dtypes(config, start))
  return Setup(topology, start, config, step, placement, hold_codes(config.data))


def _gpu_step(
  step: StepConfig, config: TrainConfig, placement: Placement, topology: Topology, dtypes: Mapping[str, str]
) -> StepConfig:
  """The step with the config's own kernels, and rematerialisation chosen for the GPU, not for what stands for it."""
  remat = config.compute.remat
  if remat == 'auto':
    shapes = parameter_shapes(step.model, config.lora)
    needed = step_bytes(step, config.run_stages, placement, shapes, config.sequence_length, 'dots', dtypes)
    remat = 'dots' if needed <= USABLE * available_bytes(topology) else 'full'
  kernels = {name: getattr(config.compute, name) for name in ('attention', 'vision_attention')}
  return dataclasses.replace(step, compute=dataclasses.replace(step.compute, remat=remat, **kernels))


def moments(setup: Setup, index: int) -> frozenset[str]:
  """Parameters with moments in a stage (training/step.py)."""
  trained = [trained_paths(stage, setup.placement.params) for stage in setup.run.run_stages]
  return trained[index] if setup.run.stage_masks == 'static' else frozenset().union(*trained)


def abstract_state(setup: Setup, index: int) -> TrainState:
  """State in a stage of the run: what trained in an earlier one stays float32."""
  params = _stored_params(setup)
  for earlier in range(index + 1):
    reference = setup.run.run_stages[earlier].has_reference
    make = functools.partial(
      new_state, trained=moments(setup, earlier), config=setup.step.optimizer, with_reference=reference
    )
    state = jax.eval_shape(make, params)
    params = state.params
  return abstract(state, setup.placement)


def _stored_params(setup: Setup) -> Any:
  """Abstract parameters that the run starts from."""
  dtypes, shardings = setup.start.dtypes, setup.placement.params
  return unflatten(
    {
      path: jax.ShapeDtypeStruct(shape, dtypes[path], sharding=shardings[path])
      for path, shape in parameter_shapes(setup.start.model, setup.run.lora).items()
    }
  )


def abstract_batch(setup: Setup, shape: BatchShape, streams: int) -> dict[str, jax.ShapeDtypeStruct]:
  """Arrays of so many streams of `data.packing.make_batch`, placed as `training.state.place_batch` does it."""
  B, T, model = shape.rows * streams, shape.length, setup.start.model
  rows = NamedSharding(setup.mesh, PartitionSpec(ROW_AXES))

  def images(count: int, size: int) -> tuple[tuple[int, ...], Any]:
    return (streams, count, size, size, 3), jnp.uint8

  arrays = _of_positions(B, T) | {'pixels': images(shape.images, model.image_size)}
  if not setup.holds_codes:
    arrays['generation_pixels'] = images(shape.generation_images, model.vq.image_size)
  return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows) for name, (shape, dtype) in arrays.items()}


def _of_positions(B: int, T: int) -> dict[str, tuple[tuple[int, ...], Any]]:
  """Shape and dtype of the arrays of any batch that have a value for each position."""
  arrays = dict.fromkeys(('tokens', 'positions', 'segments', 'targets'), ((B, T), jnp.int32))
  arrays |= dict.fromkeys(('token_types', 'loss_ids'), ((B, T), jnp.uint8))
  return arrays | {'weights': ((B, T), jnp.float32)}


def abstract_samples(setup: Setup, shape: BatchShape) -> dict[str, jax.ShapeDtypeStruct]:
  """Arrays of `training.rollout.sample_batch`."""
  B, T = shape.rows, shape.length
  rows = NamedSharding(setup.mesh, PartitionSpec(ROW_AXES))
  arrays = _of_positions(B, T) | {SAMPLE: ((B, T), jnp.int32), ADVANTAGE: ((B, T), jnp.float32)}
  if shape.images:
    streams, size = rows_split(setup.mesh), setup.start.model.image_size
    arrays['pixels'] = (streams, shape.images // streams, size, size, 3), jnp.uint8
  return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows) for name, (shape, dtype) in arrays.items()}


def plan_stage(setup: Setup, index: int) -> StagePlan:
  """Compiles the step of a stage: minutes for a real model.

  Raises:
    InputError: the mesh or the accumulation does not divide the batch; a pattern of the stage matches nothing.
  """
  stage = setup.run.run_stages[index]
  step = setup.step.for_stage(stage)
  check_batches([stage], setup.mesh, setup.run, setup.run.streams)
  trained = trained_paths(stage, setup.placement.params)
  streams = setup.run.streams or rows_split(setup.mesh)
  means = [expected_mean(one, setup.run.sequence_length, setup.holds_codes) for one in setup.run.run_stages]
  shape = stage_shape(setup.run, means, index, streams)
  state, batch = abstract_state(setup, index), abstract_batch(setup, shape, streams) if stage.reads_data else {}
  samples = expected_samples(stage)
  if samples:
    batch['samples'] = abstract_samples(setup, samples)
  began = time.perf_counter()
  shapes = parameter_shapes(setup.start.model, setup.run.lora)
  if setup.topology.is_estimated:
    compiled, arguments = None, held_bytes((state, batch))
    length = setup.run.sequence_length
    dtypes = frozen_dtypes(setup.run, setup.start)
    needed = step_bytes(step, [stage], setup.placement, shapes, length, step.compute.remat, dtypes)
    peak = max(arguments, needed)
    memory = Memory(arguments, peak - arguments, {'step': peak}, available_bytes(setup.topology))
  else:
    compiled, memory = _compile_step(setup, index, state, batch)
  memory.peaks['start'] = start_bytes(setup, index)
  if compiled and setup.run.held_out_batches and memory.fits:
    memory.peaks['held-out'] = _held_out_bytes(setup, state)
  seconds = time.perf_counter() - began
  # The two loops over chunks of logits end when what counts is through: together after all chunks, at most.
  trip_count = (-(-setup.run.sequence_length // step.loss_chunk) + 1) // 2
  received = _received(compiled, trip_count) if compiled else None
  work = StageWork(
    stage=stage,
    model=setup.start.model,
    shape=shape,
    samples=samples,
    streams=streams,
    mean=means[index],
    trained=frozenset(trained_groups(trained)),
    adapted=frozenset(adapted_groups(trained)),
    remat=step.compute.remat,
    accumulation=step.accumulation,
    state_bytes=held_bytes(state),
  )
  itemsize = jnp.dtype(step.compute.dtype).itemsize
  ideal = ideal_bytes(work, shapes, setup.placement.params, trained, itemsize)
  if setup.topology.is_estimated and memory.fits:
    # Several nodes: all of it at the speed of their network, since the part within a node is not known.
    across = setup.topology.slices > 1
    received = {'within a node': 0 if across else ideal, 'between-slices': ideal if across else 0}
  found = stage_figures(work, setup.topology, setup.mesh, received)
  return StagePlan(stage, setup, step, memory, received, ideal, found, seconds)


def _received(compiled: Any, trip_count: int) -> Mapping[str, int] | None:
  """`hlo.received_bytes`; None where jaxlib cannot read the program that a newer compiler made."""
  try:
    return received_bytes(compiled.as_text(), trip_count)
  except jax.errors.JaxRuntimeError as error:
    logging.warning('what devices receive is not known: the program cannot be read (%s)', one_line(error)[:120])
    return None


def start_bytes(setup: Setup, index: int) -> int:
  """Bytes of a device while a stage's state is made (`training.state.start_state`).

  Moments of the stage before are gone by then; a parameter that begins to train exists twice, stored and in float32.
  """
  state = abstract_state(setup, index)
  stored = abstract_state(setup, index - 1).params if index else _stored_params(setup)
  new, old = flatten(state.params), flatten(stored)
  cast = [held_bytes(leaf) for path, leaf in old.items() if leaf.dtype != new[path].dtype]
  return held_bytes(state) + max(cast, default=0)


def _held_out_bytes(setup: Setup, state: TrainState) -> int:
  """Bytes of a device while the loss on held-out data is measured, with the whole state beside it."""
  stage, parts = setup.run.run_stages[-1], rows_split(setup.mesh)
  mean = expected_mean(stage, setup.run.sequence_length, setup.holds_codes)
  batch = abstract_batch(setup, batch_shape(stage.batch_size // parts, setup.run.sequence_length, mean), parts)
  weights = jax.ShapeDtypeStruct((3,), jnp.float32)
  _, memory = _compile(
    setup,
    lambda: held_out_losses.lower(state.params, batch, weights, setup.step.for_stage(stage)),
    (state.params, batch),
  )
  # Parameters that the loss does not need are no arguments of its program, but are there.
  return held_bytes((state, batch)) + memory.peak - memory.arguments


def _compile_step(setup: Setup, index: int, state: TrainState, batch: Mapping[str, Any]) -> tuple[Any, Memory]:
  stage = setup.run.run_stages[index]
  masks: Any = trained_paths(stage, setup.placement.params)
  if setup.run.stage_masks == 'traced':
    masks = {path: jax.ShapeDtypeStruct((), jnp.bool_) for path in sorted(moments(setup, index))}
  scalar = jax.ShapeDtypeStruct((), jnp.float32)
  values = StageValues(scalar, scalar, jax.ShapeDtypeStruct((3,), jnp.float32))
  step, config = jit_train_step(setup.run.stage_masks), setup.step.for_stage(stage)
  return _compile(setup, lambda: step.lower(state, batch, values, masks=masks, config=config), (state, batch))


def _compile(setup: Setup, lower: Callable[[], Any], arguments: Any) -> tuple[Any, Memory]:
  """The compiled program, None if the compiler gave up for want of memory; and the memory that it needs."""
  # Only compiling may happen in here: nothing can be computed on a mesh of devices that are not there.
  with jax.set_mesh(setup.mesh):
    lowered = lower()
    try:
      compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
      wanted = wanted_bytes(str(error))
      if wanted is None:
        raise
      return None, Memory(held_bytes(arguments), None, {'step': wanted}, available_bytes(setup.topology))
  return compiled, memory_of(compiled, setup.topology)
