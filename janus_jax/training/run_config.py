"""Everything about a run that is neither a stage's own nor the model's, and whether its batches can be made."""

import dataclasses
from collections.abc import Sequence

import jax

from janus_jax.data.pipeline import SkipLimit
from janus_jax.errors import InputError
from janus_jax.sharding.mesh import row_shares
from janus_jax.training.stages import Stage


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """Everything about a run that is neither a stage nor the model.

  Attributes:
    stages: in order.
    stage_masks: 'static' or 'traced' (training/step.py).
    sequence_length: positions of a packed row.
    seed: of the data's order and of guidance dropout.
    guidance_dropout: share of prompts to draw that become pads.
    prefetch: batches made ahead by a thread.
    workers: processes that read and decode records; 0 leaves that to the thread.
    streams: of data, each of which makes an equal part of every batch; a host takes care of one or more, and as long as
      their number stays the same batches do not depend on the number of hosts. 0: one for each host that begins.
    skip_limit: how many bad records are put up with.
    log_every: steps between lines of metrics.
    observe_every: steps between calls of the observers; 0 calls them at the end of each stage only.
    save_every: steps between checkpoints; the end of each stage has one too.
    keep_last: checkpoints.
    keep_every: multiples of this are kept for good; 0 keeps none.
    max_skipped_in_a_row: updates without a finite loss and gradient after which the run gives up.
    watchdog_factor: times the mean of the steps before it after which a step is reported as stuck; 0 never does.
    wandb_project: of Weights & Biases; '' does without.
  """

  stages: tuple[Stage, ...]
  stage_masks: str
  sequence_length: int
  seed: int
  guidance_dropout: float
  prefetch: int
  workers: int
  streams: int
  skip_limit: SkipLimit
  log_every: int
  observe_every: int
  save_every: int
  keep_last: int
  keep_every: int
  max_skipped_in_a_row: int
  watchdog_factor: float
  wandb_project: str


def check_batches(stages: Sequence[Stage], mesh: jax.sharding.Mesh, accumulation: int, streams: int) -> None:
  """Raises InputError for a batch that does not divide into microbatches, over the mesh or into streams."""
  parts = mesh.shape['data'] * mesh.shape['fsdp'] * accumulation
  hosts = row_shares(mesh)[1]
  if streams % hosts:
    raise InputError(
      f'streams is {streams}: expected a multiple of {hosts}, the parts of a batch that hosts make, or 0'
    )
  for stage in stages:
    if stage.batch_size % parts:
      raise InputError(
        f'stages.{stage.name}.batch_size is {stage.batch_size}: expected a multiple of {parts} (mesh axes data '
        f'{mesh.shape["data"]} x fsdp {mesh.shape["fsdp"]} x accumulation {accumulation})'
      )
    if streams and stage.batch_size % streams:
      raise InputError(
        f'stages.{stage.name}.batch_size is {stage.batch_size}: expected a multiple of streams, which is {streams}'
      )
