"""The position of a run: at its first step, after the newest checkpoint, at the start of a stage."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
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
class HostStreams:
  """Streams of data that this host reads.

  Attributes:
    host: this host, of those that make a batch together. It may be several processes, which make the same rows.
    count: streams of all hosts.
    states: states of this host's streams (`data.pipeline.Stream`); None before the first stage.
  """

  host: DataShard
  count: int
  states: Sequence[Mapping[str, Any]] | None = None

  @property
  def shards(self) -> list[DataShard]:
    """The shard of the data that each of this host's streams reads."""
    own = self.count // self.host.count
    return [DataShard(self.host.index * own + i, self.count) for i in range(own)]

  def at(self, batches: grain.DatasetIterator) -> 'HostStreams':
    """The same after the last batch that was taken."""
    return dataclasses.replace(self, states=batches.get_state()['streams'])


@dataclasses.dataclass(frozen=True)
class Position:
  """All that the rest of a run depends on, after `step` updates; `stopped` if a signal has asked it to stop here."""

  step: int
  state: TrainState
  streams: HostStreams
  stopped: bool = False


def start_position(run: TrainingRun, checkpoints: Checkpoints, initial_params: Callable[[], Any]) -> Position:
  """The newest checkpoint's position; without one the first, with `initial_params()`.

  Raises:
    InputError: the checkpoint is of another schedule.
  """
  host = DataShard(*process_batch_shard(run.placement.mesh))
  restored = checkpoints.restore(functools.partial(_abstract_state, run))
  if restored is None:
    state = start_state(initial_params(), run.stages[0].with_moments, run.step.optimizer, run.placement)
    return Position(0, state, HostStreams(host, run.config.streams or rows_split(run.placement.mesh)))
  stage, step = run.stages[restored.metadata['stage_index']], restored.step
  if not stage.start < step <= stage.end:
    where = f'of step {step} in stage {stage.index + 1}'
    raise _refused(run, f'{where}, and {stage.stage.name} has steps {stage.start + 1} to {stage.end} here')
  logging.info('%s: resuming after step %d', run.files.url, step)
  return Position(step, restored.state, _restored_streams(run, host, restored.data_states))


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


def _restored_streams(run: TrainingRun, host: DataShard, saved: Sequence[Mapping[str, Any]]) -> HostStreams:
  """This host's streams by what all processes saved; dealt anew where their number no longer fits."""
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
  streams = HostStreams(host, count)
  return dataclasses.replace(streams, states=[states[shard.index] for shard in streams.shards])


def enter_stage(run: TrainingRun, stage: ScheduledStage, position: Position) -> Position:
  """The position at a stage's start: fresh moments unless it carries them, and every source where it was left."""
  state, streams = position.state, position.streams
  if position.step:  # Else the state is new.
    carry = stage.stage.carry_moments
    state = start_stage(state, stage.with_moments, run.step.optimizer, run.placement, carry_moments=carry)
  if streams.states:
    streams = dataclasses.replace(streams, states=next_stage(streams.states))
  return dataclasses.replace(position, state=state, streams=streams)
