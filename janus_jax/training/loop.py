"""The training loop: stage after stage, from wherever the newest checkpoint left off.

`train_run` goes through the stages of a run; `train_stage` is the loop over steps.
"""

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from typing import Any

import jax
import numpy as np

from janus_jax.data.skipping import describe_shortened, describe_skipped
from janus_jax.errors import InputError
from janus_jax.training import hosts
from janus_jax.training.checkpoint import Checkpoints
from janus_jax.training.goodput import Goodput, Watchdog
from janus_jax.training.interrupts import StopRequest
from janus_jax.training.metric_window import Report, Window
from janus_jax.training.metrics import MetricWriter, format_line
from janus_jax.training.optimizer import learning_rates
from janus_jax.training.progress import Progress
from janus_jax.training.stages import Stage
from janus_jax.training.state import evaluated_params, flatten, place_batch, place_whole_batch
from janus_jax.training.step import StageValues, jit_train_step
from janus_jax.training.training_run import Callback, Position, ScheduledStage, TrainingRun, enter_stage, start_position

# Seconds that a step takes before the watchdog reports it, however short the others are.
WATCHDOG_LEAST = 60.0
# In the workdir: of process N, what its threads were doing when the watchdog reported a step.
STACKS_FILE = 'stacks_{}.txt'


@dataclasses.dataclass(frozen=True)
class Session:
  """Everything that a run holds open from its start to its end."""

  stop: StopRequest
  watchdog: Watchdog
  checkpoints: Checkpoints
  time: Goodput
  writer: MetricWriter
  progress: Progress

  def timed(self, cause: str, what: str = '') -> AbstractContextManager[None]:
    """Counts the block as time spent on `cause`, and says what is done."""
    return self.time.on(cause, what, self.progress.log)

  def step_dispatched(self, stage: str, metrics: Mapping[str, jax.Array]) -> None:
    """Tells all that a step of a stage has been given to the devices."""
    self.watchdog.step_dispatched(metrics['loss'])
    self.stop.step_done()
    self.progress.update(stage)


def train_run(run: TrainingRun, initial_params: Callable[[], Any]) -> tuple[Any, bool]:
  """Trains to the end of the last stage, or until a signal asks to save and stop (`interrupts.py`).

  Returns the parameters, and whether the last stage has ended. `initial_params` gives the tree to start from, and is
  called if there is no checkpoint yet.

  Raises:
    InputError: the data has too many bad records; too many consecutive updates were not finite; a checkpoint of
      another run.
    OSError: a checkpoint could not be written.
  """
  with ExitStack() as stack:
    session, position = _open_session(run, initial_params, stack)
    for stage in run.stages:
      if run.is_over(position) or position.step >= stage.end:
        continue
      if position.step == stage.start:
        if stage.settings.reads_data:
          session.progress.log(_batch_line(run, stage, position.num_streams))
        position = enter_stage(run, stage, position)
      position = train_stage(run, stage, position, session)
    if position.stopped:
      session.progress.log(f'stopped after step {position.step}, which is saved: the same command goes on')
    elif run.is_over(position):
      best = position.best
      session.progress.log(
        f'step {position.step}: the held-out loss has not fallen for {best.waited} evaluations: the run ends with that '
        f'of step {best.step}, {best.loss:.4g}'
      )
    return position.state.params, not position.stopped


def train_stage(run: TrainingRun, stage: ScheduledStage, position: Position, session: Session) -> Position:
  """Trains from a position to the end of its stage, or until a signal.

  The order within a step must not change:

  1. All processes ask once a step, at the same point, whether to stop: they agree on the step that is the last.
  2. The data's state is taken before the next batch is read: the records that this step has not used come next.
  3. The metrics of an earlier step are read only after a step is dispatched, which returns before the devices have
     computed it: reading waits for the earlier step, and the devices have the next one to go on with.
  4. Metrics are written before callbacks and saves: what lies in the workdir is never older than a checkpoint.
  5. A save comes after the callbacks: a run that dies in a callback starts again before that step, and the metrics
     that it had written since are cut off and made anew.
  """
  config, name, first = run.config, stage.settings.name, position.step
  train_step, phase = jit_train_step(config.stage_masks), run.open_phase(stage.index)
  rates, values = _stage_values(stage.settings)
  reports, timed = _Reports(run, stage, position, session), session.timed
  session.watchdog.rest()
  with closing(run.batches(stage, position.shards, position.streams)) as batches:
    while position.step < stage.end and not run.is_over(position):
      is_first, began = position.step == first, time.perf_counter()
      with timed(
        'waiting for data', f'{name}: reading the first batch' if is_first and stage.settings.reads_data else ''
      ):
        batch = next(batches)
      reports.count(batch, time.perf_counter() - began)
      batch = place_batch(batch, run.placement.mesh, position.num_hosts)
      if name in phase.rollouts:
        jax.block_until_ready(position.state.params)  # The update before is not counted as sampling.
        with timed('sampling', f'{name}: the first samples' if is_first else ''), hosts.together():
          samples, figures = phase.rollouts[name](position.step, position.state.params)
        reports.count_samples(samples, figures)
        batch['samples'] = place_whole_batch(samples, run.placement.mesh)
      values = values.replace(learning_rate=rates[position.step - stage.start])
      with timed('compiling', f'{name}: compiling the training step') if is_first else nullcontext():
        state, metrics = train_step(position.state, batch, values, masks=stage.masks, config=stage.step)
      if is_first:
        reports.start_clock()
      session.step_dispatched(name, metrics)
      step = position.step + 1
      stopped = hosts.should_stop(session.stop.asked, step)  # 1.
      streams = batches.get_state()['streams']  # 2.
      position = dataclasses.replace(position, step=step, state=state, streams=streams, stopped=stopped)

      reports.write()  # 3.
      if step % config.log_every == 0 or step == stage.end:
        reports.take(position, metrics, values)
      due = {what: one for what, one in phase.callbacks.items() if step == stage.end or one.is_due(step)}
      evaluating = due and not stopped
      saving = session.checkpoints.should_save(step) or stopped
      if evaluating or saving:
        reports.write()  # 4.
        session.watchdog.rest()
      if evaluating:
        losses = _evaluate(due, stage, position, session)
        if config.patience and losses and stage.index == len(run.stages) - 1:
          position = dataclasses.replace(position, best=position.best.after(step, losses))
        reports.restart()
      if saving or position.best.step == step or run.is_over(position):
        _save(run, stage, position, session)  # 5.
  _log_unused(position)
  return position


def _log_unused(position: Position) -> None:
  for what, described in ('skipped', describe_skipped), ('that were longer than a row', describe_shortened):
    if counts := described(position.streams):
      logging.info('records %s so far: %s', what, counts)


def _evaluate(
  callbacks: Mapping[str, Callback], stage: ScheduledStage, position: Position, session: Session
) -> dict[str, float]:
  """Calls the callbacks; returns losses on held-out data by task, if one measures them."""
  losses = {}
  for what, callback in callbacks.items():
    with session.timed('observing', f'step {position.step}: {what}'):
      found = callback.call(position.step, stage.settings.name, evaluated_params(position.state), session.writer)
    losses |= found or {}
  return losses


def _save(run: TrainingRun, stage: ScheduledStage, position: Position, session: Session) -> None:
  state = run.saved(position.state)
  params = {path: [list(x.shape), x.dtype.name] for path, x in flatten(state.params).items()}
  metadata = {**run.files.metadata, 'stage': stage.settings.name, 'stage_index': stage.index, 'params': params}
  metadata |= dict(zip(('image_size', 'generation_size'), stage.step.model.sizes))
  if position.best.step:
    metadata['best'] = dataclasses.asdict(position.best)
  data = {'count': position.num_streams, 'first': position.shards[0].index, 'streams': position.streams}
  with session.timed('saving', f'step {position.step}: saving'):
    run.files.before_save()
    session.checkpoints.save(position.step, state, data, metadata, keep=position.best.step)


def _open_session(run: TrainingRun, initial_params: Callable[[], Any], stack: ExitStack) -> tuple[Session, Position]:
  """Opens all that a run needs, finds out where it goes on, and begins: before that nothing is written."""
  config, files, index, last = run.config, run.files, jax.process_index(), run.stages[-1].end
  goodput = Goodput()
  # Opened first, closed last: signals are heard until the last save has ended.
  stop = stack.enter_context(StopRequest().listening())
  stacks = os.path.join(files.workdir, STACKS_FILE.format(index))
  watchdog = stack.enter_context(Watchdog(config.watchdog_factor, WATCHDOG_LEAST, stacks))
  policy = {'save_every': config.save_every, 'keep_last': config.keep_last, 'keep_every': config.keep_every or None}
  ends = [stage.end for stage in run.stages]
  checkpoints = stack.enter_context(Checkpoints(files.url, keep_steps=ends, **policy))
  with goodput.on('starting'):
    position = start_position(run, checkpoints, initial_params)
    hosts.check_same('another checkpoint', {'step': position.step})
    # The stage that goes on, or the last one of a complete run.
    run.open_phase(next((stage.index for stage in run.stages if position.step < stage.end), len(run.stages) - 1))
    with hosts.together():
      if index == 0:
        files.begin()
  options = {'wandb_project': config.wandb_project, 'config': files.metadata.get('config')}
  writer = MetricWriter(files.workdir, resume_step=position.step, enabled=index == 0, **options)
  stack.enter_context(writer)
  progress = stack.enter_context(Progress(last, initial=position.step, enabled=index == 0))
  if position.step == last:
    progress.log(f'already complete: all {last} steps are in {files.url}')
  return Session(stop, watchdog, checkpoints, goodput, writer, progress), position


def _batch_line(run: TrainingRun, stage: ScheduledStage, count: int) -> str:
  shape = run.batch_shape(stage, count)
  return (
    f'{stage.settings.name}: a batch is {count} x {shape.rows} rows, with room for {count} x ({shape.images} images to '
    f'understand, {shape.generation_images} to generate)'
  )


class _Reports:
  """Lines of metrics of one stage: taken when their step has been dispatched, written later."""

  def __init__(self, run: TrainingRun, stage: ScheduledStage, position: Position, session: Session):
    self._stage, self._session, self._max_skips = stage.settings.name, session, run.config.max_consecutive_skips
    self._window = Window(stage.step.model, run.config.sequence_length, stage.trained, position.num_hosts)
    self._pending: Report | None = None
    self.count, self.count_samples = self._window.add, self._window.add_samples
    self.restart, self.start_clock = self._window.restart, self._window.start_clock

  def take(self, position: Position, metrics: Mapping[str, jax.Array], values: StageValues) -> None:
    """Ends a window with a dispatched step; waits for nothing."""
    self._pending = self._window.take(position.step, metrics, float(values.learning_rate), position.streams)

  def write(self) -> None:
    """Waits for the step that was taken, if any, and writes its line."""
    if self._pending is None:
      return
    step, line = self._pending.step, self._window.line(self._pending) | self._session.time.line()
    self._pending = None
    self._session.writer.write(step, self._stage, line)
    self._session.progress.log(format_line(step, self._stage, line))
    if line['skipped_in_a_row'] >= self._max_skips:
      raise InputError(
        f'{line["skipped_in_a_row"]} updates in a row had a loss or gradient that is not finite: expected fewer than '
        f'{self._max_skips}; try a lower learning rate'
      )


def _stage_values(stage: Stage) -> tuple[np.ndarray, StageValues]:
  """float32[steps], the learning rates of a stage; the values of its steps, with the first rate."""
  rates = learning_rates(stage.schedule, stage.learning_rate, stage.warmup_steps, stage.steps, stage.final_fraction)
  return rates, StageValues(rates[0], np.float32(stage.weight_decay), np.float32(stage.loss_weights))
