"""A training run as data: what trains, on what, where it goes, how far it is. The loop that trains is in loop.py."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.data.examples import ExampleSpec
from janus_jax.data.mixture import make_mixture
from janus_jax.data.packing import BatchShape, MeanSize
from janus_jax.data.pipeline import NEW, StreamOptions, batches, next_stage
from janus_jax.data.shard_state import DataShard, deal_states
from janus_jax.data.skipping import SkipLimit
from janus_jax.errors import InputError
from janus_jax.sharding.mesh import process_batch_shard, rows_split
from janus_jax.training.checkpoint import Checkpoints
from janus_jax.training.early_stopping import NO_BEST, Best
from janus_jax.training.metrics import MetricWriter
from janus_jax.training.run_config import RunConfig, check_batches, stage_shape
from janus_jax.training.stages import Stage, trained_paths
from janus_jax.training.state import (
  Placement,
  TrainState,
  abstract,
  flatten,
  new_state,
  resize_positions,
  start_stage,
  start_state,
  unflatten,
)
from janus_jax.training.step import StaticMasks, StepConfig, TracedMasks

Sources = Mapping[str, Mapping[str, grain.MapDataset]]  # Per task, records by name.
# (number of the update, parameters) -> samples to learn from, the same on all hosts, and figures about them.
SampleBatches = Callable[[int, Any], tuple[Mapping[str, np.ndarray], Mapping[str, float]]]


@dataclasses.dataclass(frozen=True)
class Callback:
  """An evaluation along the way.

  Attributes:
    call: (step, stage name, parameters, writer): generates, asks or scores, and writes the results; returns losses on
      held-out data by task if that is what it measures.
    every: steps between two; 0: only at the end of each stage.
  """

  call: Callable[[int, str, Any, MetricWriter], Mapping[str, float] | None]
  every: int

  def is_due(self, step: int) -> bool:
    """True where it falls on a step, apart from ends of stages."""
    return self.every > 0 and step % self.every == 0


@dataclasses.dataclass(frozen=True)
class Phase:
  """Data and evaluations of consecutive stages whose images have the same sizes.

  Attributes:
    sources: records by task and name.
    spec: how records become examples.
    means: mean size of the examples of each stage of the run (`data.mean_sizes`); of those of other sizes, any.
    callbacks: evaluations along the way, named by what each does.
    rollouts: by stage, the samples of those that learn from any.
  """

  sources: Sources
  spec: ExampleSpec
  means: Sequence[MeanSize]
  callbacks: Mapping[str, Callback]
  rollouts: Mapping[str, SampleBatches]


@dataclasses.dataclass(frozen=True)
class RunFiles:
  """Files and directories of a run.

  Attributes:
    workdir: existing local directory, for everything but the checkpoints.
    url: where the checkpoints go: the workdir, or gs://BUCKET/...
    metadata: JSON values stored with every checkpoint (config, versions).
    begin: called by process 0 once the run can start: nothing is written before.
    before_save: called before each save: the workdir's other files must not be older than a checkpoint.
  """

  workdir: str
  url: str
  metadata: Mapping[str, Any]
  begin: Callable[[], None]
  before_save: Callable[[], None]


@dataclasses.dataclass(frozen=True)
class ScheduledStage:
  """The stage `index` of a run. It takes the steps after `start`, up to and including `end`.

  Attributes:
    step: settings that its step is compiled for.
    trained: paths of the parameters that train; `masks` say the same to `train_step`.
    with_moments: paths of the parameters that have moments.
  """

  index: int
  settings: Stage
  step: StepConfig
  start: int
  trained: frozenset[str]
  masks: StaticMasks | TracedMasks
  with_moments: frozenset[str]

  @property
  def end(self) -> int:
    return self.start + self.settings.steps

  @property
  def grid(self) -> int:
    """Patches along one side of an image that is understood."""
    return self.step.model.vision_encoder.grid


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingRun:
  """One run in one workdir; `loop.train_run` carries it to its end.

  Attributes:
    steps: for each stage, the settings that steps of its image sizes are compiled for.
    open_phase: opens the data of the stage of an index; gives the same phase to stages that share one.
    base: paths of the parameters that checkpoints leave out: with LoRA, those that stay as the run's start has them.
  """

  config: RunConfig
  steps: Sequence[StepConfig]
  placement: Placement
  files: RunFiles
  open_phase: Callable[[int], Phase]
  base: frozenset[str] = frozenset()

  def is_over(self, position: 'Position') -> bool:
    """Says whether a signal stopped the run, or the held-out loss has not fallen for as long as `patience` says."""
    return position.stopped or (self.config.patience > 0 and position.best.waited >= self.config.patience)

  def saved(self, state: TrainState) -> TrainState:
    """The state without parameters of the base."""
    if not self.base:
      return state
    return state.replace(params=unflatten({p: x for p, x in flatten(state.params).items() if p not in self.base}))

  @functools.cached_property
  def stages(self) -> list[ScheduledStage]:
    """The stages in their order. With traced masks whatever trains in one of them has moments in all."""
    trained = [trained_paths(stage, self.placement.params) for stage in self.config.run_stages]
    union, stages, start = frozenset().union(*trained), [], 0
    for index, (stage, paths) in enumerate(zip(self.config.run_stages, trained)):
      with_moments = masks = paths
      if self.config.stage_masks == 'traced':
        with_moments, masks = union, {path: jnp.asarray(path in paths) for path in sorted(union)}
      step = self.steps[index].for_stage(stage)
      stages.append(ScheduledStage(index, stage, step, start, paths, masks, with_moments))
      start += stage.steps
    return stages

  def batch_shape(self, stage: ScheduledStage, num_streams: int) -> BatchShape:
    """Shape of the part of a batch that each stream makes."""
    return stage_shape(self.config, self.open_phase(stage.index).means, stage.index, num_streams)

  def batches(
    self, stage: ScheduledStage, shards: Sequence[DataShard], states: Sequence[Mapping[str, Any]] | None
  ) -> 'grain.DatasetIterator | _NoBatches':
    """The batches of a stage made of these shards of the data, from the given states of their streams on."""
    config, settings = self.config, stage.settings
    if not settings.reads_data:
      return _NoBatches(states or [NEW] * len(shards))
    options = StreamOptions(
      config.seed,
      config.guidance_dropout,
      SkipLimit(fraction=config.max_bad_record_fraction),
      config.prefetch,
      config.num_workers,
      shards,
    )
    mixture, shape = make_mixture(settings.ratio, settings.sources), self.batch_shape(stage, shards[0].count)
    phase = self.open_phase(stage.index)
    return batches(phase.sources, mixture, phase.spec, shape, options, states)


@dataclasses.dataclass(frozen=True)
class _NoBatches(Iterator[dict[str, np.ndarray]]):
  """In the place of the batches of a stage that reads no data: empty ones, which leave the streams where they are."""

  states: Sequence[Mapping[str, Any]]

  def __next__(self) -> dict[str, np.ndarray]:
    return {}

  def get_state(self) -> dict[str, Any]:
    return {'streams': list(self.states)}

  def close(self) -> None:
    """Nothing is open."""


@dataclasses.dataclass(frozen=True)
class Position:
  """All that the rest of a run depends on.

  Attributes:
    step: updates so far.
    state: parameters, moments, counters; given up (donated) by the next step.
    shards: for each of this host's streams, the shard of the data that it reads.
    streams: states of these streams (`data.pipeline.Stream`); None before the first stage.
    stopped: a signal has asked the run to stop here.
    best: the lowest held-out loss of the last stage.
  """

  step: int
  state: TrainState
  shards: Sequence[DataShard]
  streams: Sequence[Mapping[str, Any]] | None = None
  stopped: bool = False
  best: Best = NO_BEST

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
    first = run.stages[0]
    state = start_state(
      initial_params(),
      first.with_moments,
      first.step.optimizer,
      run.placement,
      with_reference=first.settings.has_reference,
    )
    return Position(0, state, _host_shards(mesh, run.config.streams or rows_split(mesh)))
  stage, step, state = run.stages[restored.metadata['stage_index']], restored.step, restored.state
  if run.base:
    state = state.replace(params=unflatten({**flatten(initial_params()), **flatten(state.params)}))
  if not stage.start < step <= stage.end:
    where = f'of step {step} in stage {stage.index + 1}'
    raise _refused(run, f'{where}, and {stage.settings.name} has steps {stage.start + 1} to {stage.end} here')
  logging.info('%s: resuming after step %d', run.files.url, step)
  streams = _streams(run, restored.data_states)
  shards = _host_shards(mesh, len(streams))
  best = Best(**restored.metadata.get('best', {}))
  return Position(step, state, shards, [streams[shard.index] for shard in shards], best=best)


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
  stage = run.stages[index]
  make = functools.partial(
    new_state,
    trained=stage.with_moments,
    config=stage.step.optimizer,
    with_reference=stage.settings.has_reference,
  )
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
    check_batches(run.config.run_stages, mesh, run.steps[0], count)
  except InputError:
    count = rows_split(mesh)
  if count != len(states):
    logging.info('%d streams of data are dealt to %d', len(states), count)
    states = deal_states(states, count)
  return states


def enter_stage(run: TrainingRun, stage: ScheduledStage, position: Position) -> Position:
  """The position at a stage's start: patch positions for its images, fresh moments unless it carries them, and every
  source where it was left.
  """
  state, streams = position.state, position.streams and next_stage(position.streams)
  if position.step:  # Else the state is new.
    how = {'carry_moments': stage.settings.carry_moments, 'with_reference': stage.settings.has_reference}
    state = resize_positions(state, stage.grid, run.placement)
    state = start_stage(state, stage.with_moments, stage.step.optimizer, run.placement, **how)
  return dataclasses.replace(position, state=state, streams=streams)
