"""The training loop: stage after stage, from wherever the newest checkpoint left off.

What a run does not depend on is handed in by the entry point: where the first parameters come from, and what is drawn,
asked and scored along the way.
"""

import logging
import os
import time
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.data import pipeline
from janus_jax.data.examples import ExampleSpec
from janus_jax.data.mixture import make_mixture
from janus_jax.data.packing import BatchShape, MeanSize
from janus_jax.data.pipeline import next_stage
from janus_jax.data.shard_state import DataShard, deal_states
from janus_jax.data.skipping import SkipLimit, describe_shortened, describe_skipped
from janus_jax.errors import InputError
from janus_jax.sharding.mesh import process_batch_shard, rows_split
from janus_jax.training import hosts
from janus_jax.training.checkpoint import Checkpoints
from janus_jax.training.goodput import Goodput, Watchdog
from janus_jax.training.interrupts import StopRequest
from janus_jax.training.metric_window import Report, Window
from janus_jax.training.metrics import MetricWriter, format_line
from janus_jax.training.optimizer import learning_rates
from janus_jax.training.progress import Progress
from janus_jax.training.run_config import RunConfig, check_batches, stage_shape, streams_fit
from janus_jax.training.stages import Stage, stage_ends, trained_groups, trained_paths
from janus_jax.training.state import (
  Placement,
  TrainState,
  abstract,
  evaluated_params,
  flatten,
  new_state,
  place_batch,
  start_stage,
  start_state,
  unflatten,
)
from janus_jax.training.step import StageValues, StepConfig, jit_train_step

Sources = Mapping[str, Mapping[str, grain.MapDataset]]
# Seconds that a step takes before the watchdog reports it, however short the others are.
WATCHDOG_LEAST = 60.0
# In the workdir: of process N, what its threads were doing when the watchdog reported a step.
STACKS_FILE = 'stacks_{}.txt'
# (step, stage name, parameters, writer): draws, asks or scores, and writes what it finds.
Callback = Callable[[int, str, Any, MetricWriter], None]


class Run:
  """One run in one workdir; `train` carries it to its end."""

  def __init__(
    self,
    config: RunConfig,
    step_config: StepConfig,
    spec: ExampleSpec,
    sources: Sources,
    means: Sequence[MeanSize],
    placement: Placement,
    workdir: str,
    url: str,
    metadata: Mapping[str, Any],
    begin: Callable[[], None],
    before_save: Callable[[], None],
    callbacks: Mapping[str, Callback] = types.MappingProxyType({}),
  ):
    """
    Args:
      config: the run.
      step_config: what the step is compiled for.
      spec: how records become examples.
      sources: per kind, records by name.
      means: what examples hold on average, of each stage (`mean_sizes`).
      placement: mesh and shardings.
      workdir: existing local directory, for all that a run leaves but its checkpoints.
      url: where the checkpoints go: the same, or gs://BUCKET/...
      metadata: JSON values stored with every checkpoint (config, versions).
      begin: called by process 0 once the run can start and a checkpoint is accepted: nothing is written before.
      before_save: called before each checkpoint is saved: what lies in the workdir must not be older than it.
      callbacks: called every so often, by what each does.

    Raises:
      InputError: a pattern of a stage matches nothing, or the mesh does not divide a batch.
    """
    self.config, self._step_config, self._spec, self._sources = config, step_config, spec, sources
    self._means, self._of_states = means, (step_config.optimizer, placement)
    self._placement, self._metadata, self._callbacks = placement, dict(metadata), callbacks
    self._workdir, self._url, self._begin, self._before_save = workdir, url, begin, before_save
    self._trained = [trained_paths(stage, placement.params) for stage in config.run_stages]
    self._ends = stage_ends(config.run_stages)
    self._step = jit_train_step(config.stage_masks)
    self._host = DataShard(*process_batch_shard(placement.mesh))
    self._num_streams = config.streams or rows_split(placement.mesh)
    self._stop, self._stopping = StopRequest(), False
    check_batches(config.run_stages, placement.mesh, step_config.accumulation, config.streams)

  def train(self, initial_params: Callable[[], Any]) -> Any:
    """Trains to the end of the last stage, or until a signal (`interrupts.py`). Returns the parameters.

    Args:
      initial_params: gives the tree to start from; called if there is no checkpoint yet.

    Raises:
      InputError: the data has too many bad records; too many updates in a row were not finite; a checkpoint of another
        run.
      OSError: a checkpoint could not be written.
    """
    keep_every = self.config.keep_every or None
    self._time = Goodput()
    with ExitStack() as stack:
      # Until the last save has ended, too.
      stack.enter_context(self._stop.listening())
      stacks = os.path.join(self._workdir, STACKS_FILE.format(jax.process_index()))
      self._watchdog = stack.enter_context(Watchdog(self.config.watchdog_factor, WATCHDOG_LEAST, stacks))
      checkpoints = stack.enter_context(
        Checkpoints(
          self._url,
          save_every=self.config.save_every,
          keep_last=self.config.keep_last,
          keep_every=keep_every,
          keep_steps=self._ends,
        )
      )
      with self._time.on('starting'):
        step, state, streams = self._start(checkpoints, initial_params)
        hosts.check_same('another checkpoint', {'step': step})
        with hosts.together():
          if not jax.process_index():
            self._begin()
      is_first = jax.process_index() == 0
      writer = stack.enter_context(self._writer(step, is_first))
      progress = stack.enter_context(Progress(self._ends[-1], initial=step, enabled=is_first))
      if step == self._ends[-1]:
        progress.log(f'already complete: all {step} steps are in {self._url}')
      for index, stage in enumerate(self.config.run_stages):
        start = self._ends[index] - stage.steps
        if step >= self._ends[index] or self._stopping:
          continue
        if step == start:
          shape = self._shape(index)
          progress.log(
            f'{stage.name}: a batch is {self._num_streams} x {shape.rows} rows, with room for {self._num_streams} x '
            f'({shape.images} images to understand, {shape.generation_images} to generate)'
          )
          if step:  # Else the state is new.
            state = start_stage(state, self._moments(index), *self._of_states, carry_moments=stage.carry_moments)
          streams = next_stage(streams) if streams else None
        step, state, streams = self._run_stage(index, step, state, streams, checkpoints, writer, progress)
      if self._stopping:
        progress.log(f'stopped after step {step}, which is saved: the same command goes on')
      return state.params

  @property
  def is_complete(self) -> bool:
    """True if `train` came to the end of the last stage."""
    return not self._stopping

  def _writer(self, step: int, enabled: bool) -> MetricWriter:
    project = self.config.wandb_project
    wandb = {'project': project} if project else None
    return MetricWriter(
      self._workdir, resume_step=step, enabled=enabled, wandb=wandb, config=self._metadata.get('config')
    )

  def _moments(self, index: int) -> frozenset[str]:
    """Parameters with moments in a stage: those that train; in traced mode, those of all stages."""
    return self._trained[index] if self.config.stage_masks == 'static' else frozenset().union(*self._trained)

  def _masks(self, index: int) -> Any:
    trained = self._trained[index]
    if self.config.stage_masks == 'static':
      return trained
    return {path: jnp.asarray(path in trained) for path in sorted(self._moments(index))}

  def _start(self, checkpoints: Checkpoints, initial_params: Callable[[], Any]) -> tuple[int, TrainState, Any]:
    def abstract_state(metadata: Mapping[str, Any]) -> TrainState:
      index = metadata['stage_index']
      if index >= len(self.config.run_stages):
        raise self._refused(f'of stage {index + 1} of another schedule')
      params = {path: jax.ShapeDtypeStruct(shape, dtype) for path, (shape, dtype) in metadata['params'].items()}
      make = lambda params: new_state(params, self._moments(index), self._step_config.optimizer)  # noqa: E731
      return abstract(jax.eval_shape(make, unflatten(params)), self._placement)

    restored = checkpoints.restore(abstract_state)
    if restored is not None:
      index, step = restored.metadata['stage_index'], restored.step
      first, last = self._ends[index] - self.config.run_stages[index].steps + 1, self._ends[index]
      if not first <= step <= last:
        name = self.config.run_stages[index].name
        raise self._refused(f'of step {step} in stage {index + 1}, and {name} has steps {first} to {last} here')
      logging.info('%s: resuming after step %d', self._url, step)
      return restored.step, restored.state, self._own_streams(restored.data_states)
    return 0, start_state(initial_params(), self._moments(0), *self._of_states), None

  def _refused(self, what: str) -> InputError:
    return InputError(
      f'{self._url}: the checkpoint is {what}: expected the schedule that it was made with; to start another run from '
      f'its parameters: --config.init_from={self._url} --workdir=NEW'
    )

  def _own_streams(self, saved: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Where this host's streams go on, by what all processes saved. Their number is settled here."""
    # Processes that make the same rows saved the same.
    found = {data['first'] + place: state for data in saved for place, state in enumerate(data['streams'])}
    states = [found[index] for index in range(saved[0]['count'])]
    wanted = self.config.streams or len(states)
    if not streams_fit(self.config.run_stages, self._placement.mesh, self._step_config.accumulation, wanted):
      wanted = rows_split(self._placement.mesh)
    if wanted != len(states):
      logging.info('%d streams of data are dealt to %d', len(states), wanted)
      states = deal_states(states, wanted)
    self._num_streams = wanted
    return [states[shard.index] for shard in self._shards()]

  def _shards(self) -> list[DataShard]:
    """Of the data, this host's."""
    own = self._num_streams // self._host.count
    return [DataShard(self._host.index * own + place, self._num_streams) for place in range(own)]

  def _run_stage(
    self,
    index: int,
    step: int,
    state: TrainState,
    streams: Sequence[Mapping[str, Any]] | None,
    checkpoints: Checkpoints,
    writer: MetricWriter,
    progress: Progress,
  ) -> tuple[int, TrainState, list[Mapping[str, Any]]]:
    stage, end = self.config.run_stages[index], self._ends[index]
    rates = learning_rates(stage.schedule, stage.learning_rate, stage.warmup_steps, stage.steps, stage.final_fraction)
    masks, report = self._masks(index), None
    window = Window(
      self._step_config.model, self.config.sequence_length, trained_groups(self._trained[index]), self._host.count
    )
    self._watchdog.rest()
    reading = f'{stage.name}: reading the first batch'
    compiling = f'{stage.name}: compiling the training step'
    with closing(self._batches(index, streams)) as batches:
      while step < end and not self._stopping:
        began = time.perf_counter()
        with self._time.on('waiting for data', reading, progress.log):
          batch = next(batches)
        window.add(batch, time.perf_counter() - began)
        values = StageValues(
          np.float32(rates[step - end + stage.steps]), np.float32(stage.weight_decay), np.float32(stage.loss_weights)
        )
        batch = place_batch(batch, self._placement.mesh, self._host.count)
        # A stage's first call compiles.
        with self._time.on('compiling', compiling, progress.log) if compiling else nullcontext():
          state, metrics = self._step(state, batch, values, masks=masks, config=self._step_config)
        reading = compiling = ''
        step += 1
        self._watchdog.step_dispatched(metrics['loss'])
        self._stop.step_done()
        progress.update(stage.name)
        self._stopping = hosts.should_stop(self._stop.asked, step)
        # Reading metrics waits for their step. The step after it is dispatched by now, so the device goes on.
        if report:
          self._write(report, stage, window, writer, progress)
          report = None
        if step % self.config.log_every == 0 or step == end:
          report = window.take(step, metrics, float(values.learning_rate), batches.get_state()['streams'])
        due = self.config.eval_every and step % self.config.eval_every == 0
        observing = (due or step == end) and not self._stopping
        saving = checkpoints.should_save(step) or self._stopping
        if report and (observing or saving):
          self._write(report, stage, window, writer, progress)
          report = None
        if observing or saving:
          self._watchdog.rest()
        if observing:
          for what, call in self._callbacks.items():
            with self._time.on('observing', f'step {step}: {what}', progress.log):
              call(step, stage.name, evaluated_params(state), writer)
          window.restart()
        # After the callbacks: a run that dies in one comes back before it, and what it wrote is cut off and made anew.
        if saving:
          data = {'count': self._num_streams, 'first': self._shards()[0].index, **batches.get_state()}
          with self._time.on('saving', f'step {step}: saving', progress.log):
            self._before_save()
            checkpoints.save(step, state, data, self._described(index, state))
      streams = batches.get_state()['streams']
      if skipped := describe_skipped(streams):
        logging.info('records skipped so far: %s', skipped)
      if shortened := describe_shortened(streams):
        logging.info('records that were longer than a row so far: %s', shortened)
      return step, state, streams

  def _write(self, report: Report, stage: Stage, window: Window, writer: MetricWriter, progress: Progress) -> None:
    """Waits for the step of the report and writes its line."""
    line = window.line(report) | self._time.line()
    writer.write(report.step, stage.name, line)
    progress.log(format_line(report.step, stage.name, line))
    self._check_finite(line)

  def _shape(self, index: int) -> BatchShape:
    """Shape of what each stream makes of a batch of a stage."""
    return stage_shape(self.config, self._means, index, self._num_streams)

  def _batches(self, index: int, streams: Sequence[Mapping[str, Any]] | None) -> grain.DatasetIterator:
    stage = self.config.run_stages[index]
    return pipeline.batches(
      self._sources,
      make_mixture(stage.ratio, stage.sources),
      self._spec,
      self._shape(index),
      pipeline.StreamOptions(
        self.config.seed,
        self.config.guidance_dropout,
        SkipLimit(fraction=self.config.max_bad_record_fraction),
        self.config.prefetch,
        self.config.num_workers,
        self._shards(),
      ),
      streams,
    )

  def _described(self, index: int, state: TrainState) -> dict[str, Any]:
    params = {path: [list(x.shape), x.dtype.name] for path, x in flatten(state.params).items()}
    return {**self._metadata, 'stage': self.config.run_stages[index].name, 'stage_index': index, 'params': params}

  def _check_finite(self, line: Mapping[str, float]) -> None:
    if line['skipped_in_a_row'] >= self.config.max_consecutive_skips:
      raise InputError(
        f'{line["skipped_in_a_row"]} updates in a row had a loss or gradient that is not finite: expected fewer than '
        f'{self.config.max_consecutive_skips}; try a lower learning rate'
      )
