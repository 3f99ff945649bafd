"""Settings of a run that are neither a stage's own nor the model's; checks and shapes of its batches."""

import dataclasses
import os
from collections.abc import Mapping, Sequence

import jax

from janus_jax.data.packing import BatchShape, MeanSize, batch_shape
from janus_jax.data.skipping import SkipLimit
from janus_jax.errors import InputError
from janus_jax.models.lora import NO_LORA, LoraConfig
from janus_jax.sharding.mesh import rows_split
from janus_jax.training.stages import Stage
from janus_jax.training.step_config import StepSettings

# Rows that hold a single example are as long as the longest, rounded up to one of these: attention's kernels want 128.
LENGTH_MULTIPLES = (8, 128)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
  """Settings of a run beside its model and its step.

  Attributes:
    stages: all stages that may run, by name.
    run: names of the stages, in the order in which they run. Start at one: run=('stage2', 'stage3'); stop after one:
      run=('stage1',); repeat one: name it twice.
    stage_masks: 'static' compiles one step per stage, without the gradients of what is frozen; 'traced' one for all
      stages (training/step.py).
    sequence_length: positions of a packed row.
    seed: seed of the data's order, of guidance dropout and of generation along the way.
    guidance_dropout: fraction of the prompts of images to generate that become pads (Janus paper, footnote 2).
    prefetch: batches made ahead by a thread.
    workers: processes that read and decode records; 0 leaves that to the thread, -1: one for each core, at most 8.
    streams: parallel streams of data, each of which makes an equal part of every batch; its rows share the slots for
      images. As long as their number stays the same, batches do not depend on the number of hosts and devices. 0: one
      for each part into which the mesh of the run's first start splits the rows, which is also the least.
    max_bad_record_fraction: a larger fraction of bad records in a source stops the run (`data.skipping.SkipLimit`).
    log_every: steps between lines of metrics.
    eval_every: steps between evaluations along the way (held-out loss, generated images, answers); 0: only at the
      end of each stage.
    patience: evaluations of the held-out loss in a row without a lower one, after which the last stage ends early. The
      checkpoint with the lowest is kept, and is what the workdir is opened at. 0: trains to the end.
    save_every: steps between checkpoints; the end of each stage has one too.
    keep_last: newest checkpoints that are kept.
    keep_every: checkpoints of multiples of this step are kept for good; 0 keeps none.
    max_consecutive_skips: updates without a finite loss and gradient after which the run gives up.
    watchdog_factor: a step that takes so many times the mean of those before it, and a minute, is reported as stuck,
      with the stacks of all threads; 0 never does.
    wandb_project: project of Weights & Biases; '' does without.
  """

  stages: Mapping[str, Stage] = dataclasses.field(default_factory=dict)
  run: tuple[str, ...] = ('stage1', 'stage2', 'stage3')
  stage_masks: str = 'static'
  sequence_length: int = 4096
  seed: int = 0
  guidance_dropout: float = 0.1
  prefetch: int = 2
  workers: int = 0
  streams: int = 0
  max_bad_record_fraction: float = SkipLimit.fraction
  log_every: int = 10
  eval_every: int = 1000
  patience: int = 0
  save_every: int = 1000
  keep_last: int = 2
  keep_every: int = 0
  max_consecutive_skips: int = 20
  watchdog_factor: float = 10.0
  wandb_project: str = ''

  @property
  def num_workers(self) -> int:
    """`workers`, with -1 settled by this machine. Batches do not depend on it."""
    return min(8, cpu_cores()) if self.workers < 0 else self.workers

  @property
  def run_stages(self) -> tuple[Stage, ...]:
    """The stages in the order in which they run."""
    return tuple(self.stages[name] for name in self.run)

  @property
  def lora(self) -> LoraConfig:
    """The factors of LoRA that the run's parameters have, by those of its stages that train any."""
    return next((stage.lora for stage in self.run_stages if stage.lora.rank), NO_LORA)

  def find_stage(self, name: str | None) -> Stage:
    """The stage of this name, of those that run; None: the last one. Raises InputError if there is none."""
    found = self.run[-1] if name is None else name
    if found not in self.run:
      hint = '; it is defined, but not in config.run' if found in self.stages else ''
      raise InputError(f'stage is {name!r}: expected one of {", ".join(self.run)}{hint}')
    return self.stages[found]


def cpu_cores() -> int:
  """Number of cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def check_batches(stages: Sequence[Stage], mesh: jax.sharding.Mesh, settings: StepSettings, streams: int) -> None:
  """Raises InputError for a batch, or samples, that do not divide into microbatches, over the mesh or into streams."""
  parts, axes = rows_split(mesh), f'data {mesh.shape["data"]} x fsdp {mesh.shape["fsdp"]}'
  if streams % parts:
    raise InputError(
      f'streams is {streams}: expected a multiple of {parts}, the parts into which the mesh splits the rows of a batch '
      f'({axes}), or 0'
    )
  for stage in stages:
    accumulation = settings.accumulation_in(stage)
    preference, each = stage.preference, 'group' if stage.objective == 'grpo' else '2'
    samples = preference.num_prompts * (preference.group if stage.objective == 'grpo' else 2)
    if stage.objective != 'sft' and samples % (parts * accumulation):
      raise InputError(
        f'stages.{stage.name}.preference: num_prompts x {each} is {samples}: expected a multiple of '
        f'{parts * accumulation} (mesh axes {axes} x accumulation {accumulation})'
      )
    if not stage.reads_data:
      continue
    where = f'stages.{stage.name}.batch_size is {stage.batch_size}: expected a multiple of'
    if stage.batch_size % (parts * accumulation):
      raise InputError(f'{where} {parts * accumulation} (mesh axes {axes} x accumulation {accumulation})')
    if streams and stage.batch_size % (streams * accumulation):
      raise InputError(f'{where} streams x accumulation, which is {streams} x {accumulation}')


def expected_mean(stage: Stage, length: int, holds_codes: bool) -> MeanSize:
  """Mean size of a stage's examples where no data says it: `expected_tokens`, at most a row, and an image each.

  Images to generate need no slots where the data `holds_codes`.
  """
  total = sum(stage.ratio)
  tokens = sum(part * min(expected, length) for part, expected in zip(stage.ratio, stage.expected_tokens)) / total
  return MeanSize(tokens, stage.ratio[0] / total, 0.0 if holds_codes else stage.ratio[2] / total)


def row_length(tokens: int) -> int:
  """Positions of rows of which the longest holds so many tokens, where each row holds a single example."""
  multiple = LENGTH_MULTIPLES[tokens > LENGTH_MULTIPLES[1]]
  return -(-tokens // multiple) * multiple


def expected_samples(stage: Stage) -> BatchShape | None:
  """Shape of the samples of an update where no prompt says how long they are: by `expected_tokens`, and an image for
  each answer. None of 'sft'.
  """
  if stage.objective == 'sft':
    return None
  preference = stage.preference
  rows = preference.num_prompts * (preference.group if stage.objective == 'grpo' else 2)
  rows *= 2 if preference.has_unconditional else 1
  answers = preference.samples == 'answers'
  return BatchShape(rows, row_length(round(stage.expected_tokens[0 if answers else 2])), rows * answers, 0)


def stage_shape(run: RunConfig, means: Sequence[MeanSize], index: int, streams: int) -> BatchShape:
  """Shape of the part of a batch of the run's stage `index` that each of so many streams makes.

  `means` are the mean sizes of examples in each stage. With traced masks, one executable serves all stages that have
  batches of one size: they have the same slots for images.
  """

  def shape_of(stage: Stage, mean: MeanSize) -> BatchShape:
    rows = stage.batch_size // streams
    return batch_shape(rows, run.sequence_length, mean, stage.images_per_row, stage.generation_images_per_row)

  shapes = [shape_of(stage, mean) for stage, mean in zip(run.run_stages, means)]
  own = shapes[index]
  if run.stage_masks == 'static':
    return own
  alike = [shape for shape in shapes if shape.rows == own.rows]
  slots = {name: max(getattr(shape, name) for shape in alike) for name in ('images', 'generation_images')}
  return dataclasses.replace(own, **slots)
