"""A training run as data: what trains, on what, and where it goes. The loop that trains is in loop.py."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import jax.numpy as jnp

from janus_jax.data import pipeline
from janus_jax.data.examples import ExampleSpec
from janus_jax.data.packing import BatchShape, MeanSize
from janus_jax.data.shard_state import DataShard
from janus_jax.data.skipping import SkipLimit
from janus_jax.training.metrics import MetricWriter
from janus_jax.training.run_config import RunConfig, stage_shape
from janus_jax.training.stages import Stage, trained_paths
from janus_jax.training.state import Placement
from janus_jax.training.step import StaticMasks, StepConfig, TracedMasks

Sources = Mapping[str, Mapping[str, grain.MapDataset]]  # Per task, records by name.
# (step, stage name, parameters, writer): generates, asks or scores, and writes the results.
Callback = Callable[[int, str, Any, MetricWriter], None]


@dataclasses.dataclass(frozen=True)
class TrainingData:
  """Records, how they become examples, and the mean size of these for each stage of the run (`data.mean_sizes`)."""

  sources: Sources
  spec: ExampleSpec
  means: Sequence[MeanSize]


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
    trained: paths of the parameters that train; `masks` say the same to `train_step`.
    with_moments: paths of the parameters that have moments.
  """

  index: int
  stage: Stage
  start: int
  trained: frozenset[str]
  masks: StaticMasks | TracedMasks
  with_moments: frozenset[str]

  @property
  def end(self) -> int:
    return self.start + self.stage.steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingRun:
  """One run in one workdir; `loop.train` carries it to its end. `callbacks` are named by what each does."""

  config: RunConfig
  step: StepConfig
  placement: Placement
  data: TrainingData
  files: RunFiles
  callbacks: Mapping[str, Callback]

  @functools.cached_property
  def stages(self) -> list[ScheduledStage]:
    """The stages in their order. With traced masks whatever trains in one of them has moments in all."""
    trained = [trained_paths(stage, self.placement.params) for stage in self.config.run_stages]
    union, stages, start = frozenset().union(*trained), [], 0
    for index, (stage, paths) in enumerate(zip(self.config.run_stages, trained)):
      with_moments = masks = paths
      if self.config.stage_masks == 'traced':
        with_moments, masks = union, {path: jnp.asarray(path in paths) for path in sorted(union)}
      stages.append(ScheduledStage(index, stage, start, paths, masks, with_moments))
      start += stage.steps
    return stages

  def batch_shape(self, stage: ScheduledStage, num_streams: int) -> BatchShape:
    """Shape of the part of a batch that each stream makes."""
    return stage_shape(self.config, self.data.means, stage.index, num_streams)

  def batches(
    self, stage: ScheduledStage, shards: Sequence[DataShard], states: Sequence[Mapping[str, Any]] | None
  ) -> grain.DatasetIterator:
    """The batches of a stage made of these shards of the data, from the given states of their streams on."""
    config, data, shape = self.config, self.data, self.batch_shape(stage, shards[0].count)
    return pipeline.batches(
      *(data.sources, stage.stage.ratio, stage.stage.sources, data.spec, shape),
      seed=config.seed,
      guidance_dropout=config.guidance_dropout,
      skip_limit=SkipLimit(fraction=config.max_bad_record_fraction),
      prefetch=config.prefetch,
      workers=config.num_workers,
      shards=shards,
      states=states,
    )
