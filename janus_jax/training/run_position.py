"""The position of a run: at its first step, after the newest checkpoint, at the start of a stage."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from janus_jax.data.pipeline import next_stage
from janus_jax.data.shard_state import DataShard, deal_states
from janus_jax.errors import InputError
from janus_jax.sharding.mesh import process_batch_shard, rows_split
from janus_jax.training.checkpoint import Checkpoints
from janus_jax.training.run_config import check_batches
from janus_jax.training.state import TrainState, abstract, new_state, start_stage, start_state, unflatten
from janus_jax.training.training_run import ScheduledStage, TrainingRun


@dataclasses.dataclass(frozen=True)
class Position:
  """All that the rest of a run depends on.

  Attributes:
    step: updates so far.
    state: parameters, moments, counters; given up (donated) by the next step.
    shards: for each of this host's streams, the shard of the data that it reads.
    streams: states of these streams (`data.pipeline.Stream`); None before the first stage.
    stopped: a signal has asked the run to stop here.
  """

  step: int
  state: TrainState
  shards: Sequence[DataShard]
  streams: Sequence[Mapping[str, Any]] | None = None
  stopped: bool = False

  @property
  def num_streams(self) -> int:
    """Streams of all hosts."""
    return self.shards[0].count

  @property
  def num_hosts(self) -> int:
    """Hosts that make a batch, each a part. A host may be several processes, which make the same rows."""
    return self.num_streams // len(self.shards)


def start_position(run: TrainingRun, checkpoints: Checkpoints, initial_params: Callable[[], Any]) -> Position:
  """The newest checkpoint's position; without one the first, with `initial_params()`.

  Raises:
    InputError: the checkpoint is of another schedule.
  """
  mesh = run.placement.mesh
  restored = checkpoints.restore(functools.partial(_abstract_state, run))
  if restored is None:
    state = start_state(initial_params(), run.stages[0].with_moments, run.step.optimizer, run.placement)
    return Position(0, state, _host_shards(mesh, run.config.streams or rows_split(mesh)))
  stage, step = run.stages[restored.metadata['stage_index']], restored.step
  if not stage.start < step <= stage.end:
    where = f'of step {step} in stage {stage.index + 1}'
    raise _refused(run, f'{where}, and {stage.stage.name} has steps {stage.start + 1} to {stage.end} here')
  logging.info('%s: resuming after step %d', run.files.url, step)
  streams = _streams(run, restored.data_states)
  shards = _host_shards(mesh, len(streams))
  return Position(step, restored.state, shards, [streams[shard.index] for shard in shards])


def _host_shards(mesh: jax.sharding.Mesh, num_streams: int) -> list[DataShard]:
  host, num_hosts = process_batch_shard(mesh)
  own = num_streams // num_hosts
  return [DataShard(host * own + i, num_streams) for i in range(own)]


def _abstract_state(run: TrainingRun, metadata: Mapping[str, Any]) -> TrainState:
  """The state that a checkpoint holds, on the mesh of now."""
  index = metadata['stage_index']
  if index >= len(run.stages):
    raise _refused(run, f'of stage {index + 1} of another schedule')
  params = {path: jax.ShapeDtypeStruct(shape, dtype) for path, (shape, dtype) in metadata['params'].items()}
  make = functools.partial(new_state, trained=run.stages[index].with_moments, config=run.step.optimizer)
  return abstract(jax.eval_shape(make, unflatten(params)), run.placement)


def _refused(run: TrainingRun, what: str) -> InputError:
  url = run.files.url
  return InputError(
    f'{url}: the checkpoint is {what}: expected the schedule that it was made with; to start another run from its '
    f'parameters: --config.init_from={url} --workdir=NEW'
  )


def _streams(run: TrainingRun, saved: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
  """The states of all streams, as all processes saved them; dealt anew where their number no longer fits."""
  # Processes that make the same rows saved the same.
  found = {data['first'] + i: state for data in saved for i, state in enumerate(data['streams'])}
  states = [found[index] for index in range(saved[0]['count'])]
  count, mesh = run.config.streams or len(states), run.placement.mesh
  try:
    check_batches(run.config.run_stages, mesh, run.step.accumulation, count)
  except InputError:
    count = rows_split(mesh)
  if count != len(states):
    logging.info('%d streams of data are dealt to %d', len(states), count)
    states = deal_states(states, count)
  return states


def enter_stage(run: TrainingRun, stage: ScheduledStage, position: Position) -> Position:
  """The position at a stage's start: fresh moments unless it carries them, and every source where it was left."""
  state, streams = position.state, position.streams and next_stage(position.streams)
  if position.step:  # Else the state is new.
    carry = stage.stage.carry_moments
    state = start_stage(state, stage.with_moments, run.step.optimizer, run.placement, carry_moments=carry)
  return dataclasses.replace(position, state=state, streams=streams)
