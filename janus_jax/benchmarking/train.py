"""Training steps of one stage: what they take, and what share of the hardware's peak that is."""

import dataclasses
from typing import Any

import jax
import numpy as np

from janus_jax.benchmarking.batches import synthetic_batch
from janus_jax.benchmarking.subject import Subject
from janus_jax.benchmarking.timing import Timing
from janus_jax.data.packing import BatchShape
from janus_jax.errors import InputError
from janus_jax.training.optimizer import learning_rates
from janus_jax.training.run_config import check_batches
from janus_jax.training.stages import Stage, trained_groups, trained_paths
from janus_jax.training.state import new_state, place, place_batch
from janus_jax.training.step import StageValues, StepConfig, jit_train_step
from janus_jax.training.throughput import StepFlops, TokenCounts, step_flops, throughput
from janus_jax.training.window import Window
from janus_jax.training_run import check_trainable, read_run, read_step


@dataclasses.dataclass(frozen=True, eq=False)
class Work:
  """What every step of a benchmark does.

  Attributes:
    subject: model and mesh.
    stage: of the config.
    step: what the step is compiled for.
    batch: numpy arrays of `data.packing.make_batch`.
    trained: paths of what trains.
    counts: of the batch.
    flops: by formula.
  """

  subject: Subject
  stage: Stage
  step: StepConfig
  batch: dict[str, np.ndarray]
  trained: frozenset[str]
  counts: TokenCounts
  flops: StepFlops


def read_work(subject: Subject, stage_name: str | None, holds_codes: bool) -> Work:
  """A stage of the config (None: its last one) with a full batch.

  Args:
    subject: what is measured.
    stage_name: of the config.
    holds_codes: whether drawings come as codes.

  Raises:
    InputError: no such stage, or something is wrong with the config.
  """
  config, model = subject.config, subject.model
  run = read_run(config)
  stages = {stage.name: stage for stage in run.stages}
  stage = stages.get(stage_name or run.stages[-1].name)
  if stage is None:
    raise InputError(f'stage is {stage_name!r}: expected one of {", ".join(stages)}')
  check_batches([stage], subject.placement.mesh, config.accumulation, config.streams)
  check_trainable([stage], model, subject.placement.params)
  step = read_step(config, model, subject.placement)
  trained = trained_paths(stage, subject.placement.params)
  shape = BatchShape(stage.batch_size, run.sequence_length, stage.images_per_row, stage.drawings_per_row)
  batch = synthetic_batch(model, shape, stage.ratio, holds_codes, config.seed)
  window = Window(model, run.sequence_length, trained_groups(trained))
  window.add(batch, 0.0)
  flops = step_flops(model, window.counts, run.sequence_length, trained_groups(trained))
  return Work(subject, stage, step, batch, trained, window.counts, flops)


class Trainer:
  """Takes steps as the loop does: state donated, one step dispatched while the one before runs."""

  def __init__(self, work: Work):
    stage = work.stage
    rates = learning_rates(stage.schedule, stage.learning_rate, stage.warmup_steps, stage.steps, stage.final_fraction)
    self._values = StageValues(np.float32(max(rates)), np.float32(stage.weight_decay), np.float32(stage.loss_weights))
    self._work, self._step = work, jit_train_step('static')
    params = jax.tree.map(np.array, work.subject.params)
    self._state = place(new_state(params, work.trained, work.step.optimizer), work.subject.placement)
    self._batch = place_batch(work.batch, work.subject.placement.mesh)
    self.loss = float('nan')

  def run(self, steps: int) -> None:
    """Takes steps and waits for the last; `loss` is its loss."""
    metrics: dict[str, Any] = {}
    with jax.set_mesh(self._work.subject.placement.mesh):
      for _ in range(steps):
        self._state, metrics = self._step(
          self._state, self._batch, self._values, masks=self._work.trained, config=self._work.step
        )
    self.loss = float(metrics['loss'])


def figures(work: Work, step: Timing) -> dict[str, Any]:
  """Speeds of a step that takes so long."""
  device = jax.devices()[0].device_kind
  values = throughput(work.counts, work.flops, step.median, device, jax.device_count())
  return {
    'step_seconds': step.median,
    'step_seconds_low': step.low,
    'step_seconds_high': step.high,
    'tokens_per_step': work.counts.tokens,
    'text_targets_per_step': work.counts.text_targets,
    'images_per_step': work.counts.images_encoded + work.counts.images_tokenized,
    'tflops_per_step': work.flops.total / 1e12,
    **values,
  }
