"""Work and time of a stage by formula: FLOPs, what a step takes at least, how long the whole stage takes.

Batches are taken to be full, and each example to fill as much of a row as a row has room for images: with 6 images of
576 to a row of 4,096 that is 683 positions, of which examples with an image use the rest for text.
"""

import dataclasses
from collections.abc import Mapping

import jax

from janus_jax.models.config import JanusConfig
from janus_jax.sharding.topologies import Topology
from janus_jax.training.stages import Stage
from janus_jax.training.throughput import (
  StepFlops,
  TokenCounts,
  peak_flops,
  siglip_forward_flops,
  step_flops,
  trunk_parameters,
)

MFU_PERCENT = (40, 50, 60)
SECONDS_PER_DAY = 86_400
WEIGHT_BYTES = 2  # Of a parameter as it is multiplied with: bfloat16.


@dataclasses.dataclass(frozen=True)
class Work:
  """What a step has to do.

  Attributes:
    stage: batch size, ratio, images.
    model: architecture.
    length: positions of a row.
    trained: parameter groups that train.
    holds_codes: whether images to draw come as codes.
    remat: as in `ComputeConfig`.
    accumulation: microbatches.
    state_bytes: of the state that a device holds.
  """

  stage: Stage
  model: JanusConfig
  length: int
  trained: frozenset[str]
  holds_codes: bool
  remat: str
  accumulation: int
  state_bytes: int


@dataclasses.dataclass(frozen=True)
class Bound:
  """Seconds that a step takes at least, if nothing but one thing limited it; the longest is the bound.

  Attributes:
    compute: matrix products at the chip's peak.
    memory: weights and state through HBM.
    network: what devices receive from each other, over all links at once.
  """

  compute: float
  memory: float
  network: float

  @property
  def seconds(self) -> float:
    return max(self.compute, self.memory, self.network)


@dataclasses.dataclass(frozen=True)
class Figures:
  """What follows from the sizes of a stage.

  Attributes:
    flops: of a step over all devices, what MFU counts.
    executed_flops: with what is computed again for the backward pass.
    tokens: of the whole stage.
    bound: None on devices whose speeds are not known, or where the step does not fit.
    mfu_bound: share of the peak that `flops` are if a step takes `bound`; None as well.
    days: percent of MFU -> days for the whole stage; empty where the peak is not known.
  """

  flops: StepFlops
  executed_flops: float
  tokens: int
  bound: Bound | None
  mfu_bound: float | None
  days: Mapping[int, float]


def figures(work: Work, topology: Topology, mesh: jax.sharding.Mesh, received: Mapping[str, int] | None) -> Figures:
  """The figures of a stage.

  Args:
    work: of a step.
    topology: where.
    mesh: of its devices.
    received: bytes by kind of collective; None if not known.
  """
  counts = token_counts(work)
  flops = step_flops(work.model, counts, work.length, work.trained)
  executed = flops.total + recomputed_flops(work, counts)
  steps, tokens = work.stage.steps, work.stage.steps * work.stage.batch_size * work.length
  peak = peak_flops(mesh.devices.flat[0].device_kind)
  if peak is None or topology.chip is None:
    return Figures(flops, executed, tokens, None, None, {})
  all_peak = peak * mesh.size
  days = {mfu: steps * flops.total / (all_peak * mfu / 100) / SECONDS_PER_DAY for mfu in MFU_PERCENT}
  if received is None:
    return Figures(flops, executed, tokens, None, None, days)
  chip = topology.chip
  across = received['between-slices']
  inside = sum(received.values()) - across
  bound = Bound(
    compute=executed / all_peak,
    memory=moved_bytes(work, mesh) / chip.hbm_bandwidth,
    network=max(inside / chip.ici_bandwidth, across / chip.dcn_bandwidth),
  )
  return Figures(flops, executed, tokens, bound, flops.total / all_peak / bound.seconds, days)


def token_counts(work: Work) -> TokenCounts:
  """What a full batch holds."""
  stage, model = work.stage, work.model
  tokens = stage.batch_size * work.length
  und, _, gen = (tokens * share / sum(stage.ratio) for share in stage.ratio)
  images = lambda count, size: min(1.0, count * size / work.length)  # noqa: E731
  und = int(und * images(stage.images_per_row, model.num_image_tokens))
  gen = int(gen * images(stage.drawings_per_row, model.vq.num_tokens))
  return TokenCounts(
    text=tokens - und - gen,
    understanding=und,
    generation=gen,
    # At most: prompts and questions are not predicted.
    text_targets=tokens - und - gen,
    # Every place for an image goes through the encoders, filled or not.
    images_encoded=stage.batch_size * stage.images_per_row,
    images_tokenized=0 if work.holds_codes else stage.batch_size * stage.drawings_per_row,
  )


def recomputed_flops(work: Work, counts: TokenCounts) -> float:
  """Matrix products that the backward pass does a second time: logits always, layers as `remat` says."""
  llama = work.model.language_model
  logits = 2 * llama.width * (llama.vocab_size * counts.text_targets + work.model.vq.codebook_size * counts.generation)
  if work.remat == 'none' or not work.trained - {'gen_head'}:
    return float(logits)
  layers = 2 * llama.depth * llama.num_heads * llama.head_dim * work.length
  if work.remat == 'full':
    layers += 2 * trunk_parameters(llama)
  flops = logits + counts.tokens * layers
  if 'vision_encoder' in work.trained and work.remat == 'full':
    flops += counts.images_encoded * siglip_forward_flops(work.model.vision_encoder)
  return float(flops)


def moved_bytes(work: Work, mesh: jax.sharding.Mesh) -> float:
  """What one device reads and writes at least: state once each, the decoder's weights in each pass of a microbatch."""
  llama = work.model.language_model
  weights = WEIGHT_BYTES * (trunk_parameters(llama) + llama.vocab_size * llama.width) / mesh.shape['tensor']
  passes = 3 if work.remat == 'full' else 2
  return 2 * work.state_bytes + work.accumulation * passes * weights
