"""Training steps of one stage: their time, and the fraction of the hardware's peak that it amounts to."""

import dataclasses
from typing import Any

import jax
import numpy as np

from janus_jax.benchmarking.batches import synthetic_batch, synthetic_samples
from janus_jax.benchmarking.benchmark_model import BenchmarkModel
from janus_jax.benchmarking.timing import Timing
from janus_jax.data.examples import GENERATION_LOSS, IMAGE
from janus_jax.runs.setup import check_trainable, read_step
from janus_jax.sharding.mesh import rows_split
from janus_jax.training.metric_window import Window
from janus_jax.training.optimizer import learning_rates
from janus_jax.training.run_config import check_batches, expected_mean, expected_samples, stage_shape
from janus_jax.training.stages import Stage, adapted_groups, trained_groups, trained_paths
from janus_jax.training.state import place_batch, place_whole_batch, start_state
from janus_jax.training.step import StageValues, StepConfig, jit_train_step
from janus_jax.training.throughput import StepFlops, TokenCounts, step_flops, throughput


@dataclasses.dataclass(frozen=True, eq=False)
class TrainWork:
  """Work of every step of a benchmark.

  Attributes:
    rate: learning rate, the highest of the stage.
    batch: numpy arrays of `data.packing.make_batch`, with `counts` and `flops` by formula; {} in a stage without data.
    samples: those of `training.samples.sample_batch`, where the objective is another than 'sft', or None.
    trained: paths that train.
  """

  model: BenchmarkModel
  stage: Stage
  rate: float
  step: StepConfig
  batch: dict[str, np.ndarray]
  samples: dict[str, np.ndarray] | None
  trained: frozenset[str]
  counts: TokenCounts
  flops: StepFlops


def make_work(model: BenchmarkModel, stage: Stage, holds_codes: bool) -> TrainWork:
  """A stage of the model's config with a full batch; `holds_codes`: images to generate come as codes.

  Raises:
    InputError: the batch does not fit the mesh, or a pattern matches no parameter.
  """
  run, config, mesh, paths = model.run, model.config, model.placement.mesh, model.placement.params
  check_batches([stage], mesh, run, run.streams)
  check_trainable([stage], config, paths)
  length, trained = run.sequence_length, trained_paths(stage, paths)
  streams = run.streams or rows_split(mesh)
  alone = dataclasses.replace(run, stages={stage.name: stage}, run=(stage.name,))
  shape = stage_shape(alone, [expected_mean(stage, length, holds_codes)], 0, streams)
  batch = synthetic_batch(config, stage, shape, streams, holds_codes, run.seed) if stage.reads_data else {}
  window, samples = Window(config, length, trained), None
  window.add(batch, 0.0)
  if sampled := expected_samples(stage):
    samples = synthetic_samples(config, stage, sampled, rows_split(mesh), run.seed)
    window.add_samples(samples, {})
  rates = learning_rates(stage.schedule, stage.learning_rate, stage.warmup_steps, stage.steps, stage.final_fraction)
  return TrainWork(
    model=model,
    stage=stage,
    rate=float(max(rates)),
    step=read_step(run, config, model.placement, (stage,)).for_stage(stage),
    batch=batch,
    samples=samples,
    trained=trained,
    counts=window.counts,
    flops=step_flops(config, window.counts, length, trained_groups(trained), adapted_groups(trained)),
  )


class Trainer:
  """Takes steps as the loop does: state donated, one step dispatched while the one before runs."""

  def __init__(self, work: TrainWork):
    stage = work.stage
    self._values = StageValues(*map(np.float32, (work.rate, stage.weight_decay, stage.loss_weights)))
    self._work, self._step = work, jit_train_step('static')
    optimizer, placement = work.step.optimizer, work.model.placement
    self._state = start_state(
      work.model.make_params(), work.trained, optimizer, placement, with_reference=stage.has_reference
    )
    self._batch = place_batch(work.batch, placement.mesh)
    if work.samples is not None:
      self._batch['samples'] = place_whole_batch(work.samples, placement.mesh)

  def run(self, steps: int) -> float:
    """Takes steps and waits for the last; its loss."""
    metrics: dict[str, Any] = {}
    with jax.set_mesh(self._work.model.placement.mesh):
      for _ in range(steps):
        self._state, metrics = self._step(
          self._state, self._batch, self._values, masks=self._work.trained, config=self._work.step
        )
    # The loss may be there before the new state.
    jax.block_until_ready(self._state)
    return float(metrics['loss'])


def train_figures(work: TrainWork, step: Timing) -> dict[str, Any]:
  """Speeds by the time of a step; `mfu` and `mfu_with_encoders` are None where a device's peak is not known."""
  device, config = jax.devices()[0].device_kind, work.model.config
  values = throughput(work.counts, work.flops, step.median, device, jax.device_count())
  batches = [batch for batch in (work.batch, work.samples) if batch]
  seen = sum(int((batch['token_types'] == IMAGE).sum()) for batch in batches) // config.num_image_tokens
  generated = sum(int((batch['loss_ids'] == GENERATION_LOSS).sum()) for batch in batches) // config.vq.num_tokens
  return {
    'step_seconds': step.spread(),
    'tokens_per_step': work.counts.tokens,
    'text_targets_per_step': work.counts.text_targets,
    'images_asked_about_per_step': seen,
    'images_drawn_per_step': generated,
    'tflops_per_step': work.flops.total / 1e12,
    **{'mfu': None, 'mfu_with_encoders': None, **values},
    # Generated ones too, though the step encodes none where they are codes.
    'images_per_second': (seen + generated) / step.median,
  }
