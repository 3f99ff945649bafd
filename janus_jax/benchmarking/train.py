"""Training steps of one stage: what they take, and what share of the hardware's peak that is."""

import dataclasses
from typing import Any

import jax
import numpy as np

from janus_jax.benchmarking.batches import synthetic_batch
from janus_jax.benchmarking.benchmark_model import BenchmarkModel
from janus_jax.benchmarking.timing import Timing
from janus_jax.data.examples import GENERATION_LOSS, IMAGE
from janus_jax.runs.setup import check_trainable, read_step
from janus_jax.sharding.mesh import rows_split
from janus_jax.training.metric_window import Window
from janus_jax.training.optimizer import learning_rates
from janus_jax.training.run_config import check_batches, expected_mean, stage_shape
from janus_jax.training.stages import Stage, trained_groups, trained_paths
from janus_jax.training.state import place_batch, start_state
from janus_jax.training.step import StageValues, StepConfig, jit_train_step
from janus_jax.training.throughput import StepFlops, TokenCounts, step_flops, throughput


@dataclasses.dataclass(frozen=True, eq=False)
class TrainWork:
  """What every step of a benchmark does.

  Attributes:
    subject: model and mesh.
    stage: of the config.
    rate: learning rate, the highest of the stage.
    step: what the step is compiled for.
    batch: numpy arrays of `data.packing.make_batch`.
    trained: paths of what trains.
    counts: of the batch.
    flops: by formula.
  """

  subject: BenchmarkModel
  stage: Stage
  rate: float
  step: StepConfig
  batch: dict[str, np.ndarray]
  trained: frozenset[str]
  counts: TokenCounts
  flops: StepFlops


def make_work(subject: BenchmarkModel, stage: Stage, holds_codes: bool) -> TrainWork:
  """A stage with a full batch.

  Args:
    subject: what is measured.
    stage: of its config.
    holds_codes: whether drawings come as codes.

  Raises:
    InputError: the batch does not fit the mesh, or a pattern matches no parameter.
  """
  config, model, paths = subject.config, subject.model, subject.placement.params
  check_batches([stage], subject.placement.mesh, config.accumulation, config.streams)
  check_trainable([stage], model, paths)
  length, trained = config.sequence_length, trained_paths(stage, paths)
  streams = config.streams or rows_split(subject.placement.mesh)
  run = dataclasses.replace(config, stages={stage.name: stage}, run=(stage.name,))
  shape = stage_shape(run, [expected_mean(stage, length, holds_codes)], 0, streams)
  batch = synthetic_batch(model, stage, shape, streams, holds_codes, config.seed)
  window = Window(model, length, trained_groups(trained))
  window.add(batch, 0.0)
  rates = learning_rates(stage.schedule, stage.learning_rate, stage.warmup_steps, stage.steps, stage.final_fraction)
  return TrainWork(
    subject=subject,
    stage=stage,
    rate=float(max(rates)),
    step=read_step(config, model, subject.placement, (stage,)),
    batch=batch,
    trained=trained,
    counts=window.counts,
    flops=step_flops(model, window.counts, length, trained_groups(trained)),
  )


class Trainer:
  """Takes steps as the loop does: state donated, one step dispatched while the one before runs."""

  def __init__(self, work: TrainWork):
    stage = work.stage
    self._values = StageValues(*map(np.float32, (work.rate, stage.weight_decay, stage.loss_weights)))
    self._work, self._step = work, jit_train_step('static')
    self._state = start_state(work.subject.make_params(), work.trained, work.step.optimizer, work.subject.placement)
    self._batch = place_batch(work.batch, work.subject.placement.mesh)

  def run(self, steps: int) -> float:
    """Takes steps and waits for the last; its loss."""
    metrics: dict[str, Any] = {}
    with jax.set_mesh(self._work.subject.placement.mesh):
      for _ in range(steps):
        self._state, metrics = self._step(
          self._state, self._batch, self._values, masks=self._work.trained, config=self._work.step
        )
    # Before the loss is there the new state need not be.
    jax.block_until_ready(self._state)
    return float(metrics['loss'])


def train_figures(work: TrainWork, step: Timing) -> dict[str, Any]:
  """Speeds of a step that takes so long; `mfu` and `mfu_with_encoders` are None where a device's peak is not known."""
  device, model = jax.devices()[0].device_kind, work.subject.model
  values = throughput(work.counts, work.flops, step.median, device, jax.device_count())
  asked = int((work.batch['token_types'] == IMAGE).sum()) // model.num_image_tokens
  drawn = int((work.batch['loss_ids'] == GENERATION_LOSS).sum()) // model.vq.num_tokens
  return {
    'step_seconds': step.spread(),
    'tokens_per_step': work.counts.tokens,
    'text_targets_per_step': work.counts.text_targets,
    'images_asked_about_per_step': asked,
    'images_drawn_per_step': drawn,
    'tflops_per_step': work.flops.total / 1e12,
    **{'mfu': None, 'mfu_with_encoders': None, **values},
    # Those that are generated too, though the step encodes none where they are codes.
    'images_per_second': (asked + drawn) / step.median,
  }
