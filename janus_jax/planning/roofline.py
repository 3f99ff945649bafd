"""Work and time of a stage by formula: FLOPs, what a step takes at least, how long the whole stage takes.

Rows are taken to be full of examples of the lengths that the stage expects (`Stage.expected_tokens`). Empty slots for
images and matrix products of higher precision take time, but are no FLOPs that MFU counts.
"""

import dataclasses
from collections.abc import Mapping

import jax

from janus_jax.data.packing import BatchShape, MeanSize
from janus_jax.models.config import JanusConfig
from janus_jax.planning.topologies import Topology
from janus_jax.sharding.accelerators import float32_peak_flops, peak_flops
from janus_jax.training.stages import Stage
from janus_jax.training.throughput import (
  StepFlops,
  TokenCounts,
  siglip_forward_flops,
  step_flops,
  trunk_parameters,
)

MFU_PERCENT = (40, 50, 60)
SECONDS_PER_DAY = 86_400
WEIGHT_BYTES = 2  # Of a parameter as it is multiplied with: bfloat16.


@dataclasses.dataclass(frozen=True)
class StageWork:
  """What a step has to do.

  Attributes:
    stage: batch size, ratio.
    model: architecture.
    shape: of the part of a batch that one stream makes.
    streams: of a batch.
    mean: what an example holds on average.
    trained: parameter groups that train.
    remat: as in `ComputeConfig`.
    accumulation: microbatches.
    state_bytes: of the state that a device holds.
  """

  stage: Stage
  model: JanusConfig
  shape: BatchShape
  streams: int
  mean: MeanSize
  trained: frozenset[str]
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
    executed_flops: with what is computed again for the backward pass, and for empty slots.
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


def stage_figures(
  work: StageWork, topology: Topology, mesh: jax.sharding.Mesh, received: Mapping[str, int] | None
) -> Figures:
  """The figures of a stage.

  Args:
    work: of a step.
    topology: where.
    mesh: of its devices.
    received: bytes by kind of collective; None if not known.
  """
  counts, length = token_counts(work), work.shape.length
  flops = step_flops(work.model, counts, length, work.trained)
  computed = step_flops(work.model, computed_counts(work, counts), length, work.trained)
  executed = computed.total + recomputed_flops(work, counts)
  steps, tokens = work.stage.steps, work.stage.steps * work.stage.batch_size * length
  kind = topology.chip.device_kind if topology.chip else mesh.devices.flat[0].device_kind
  peak, exact_peak = peak_flops(kind), float32_peak_flops(kind)
  if peak is None or exact_peak is None or topology.chip is None:
    return Figures(flops, executed, tokens, None, None, {})
  all_peak = peak * mesh.size
  days = {mfu: steps * flops.total / (all_peak * mfu / 100) / SECONDS_PER_DAY for mfu in MFU_PERCENT}
  if received is None:
    return Figures(flops, executed, tokens, None, None, days)
  chip = topology.chip
  across = received['between-slices']
  inside = sum(received.values()) - across
  bound = Bound(
    # Codes come of float32 products: rounded, other codes would be the nearest.
    compute=(executed - computed.vq) / all_peak + computed.vq / (exact_peak * mesh.size),
    memory=moved_bytes(work, mesh) / chip.hbm_bandwidth,
    network=max(inside / chip.ici_bandwidth, across / chip.dcn_bandwidth),
  )
  return Figures(flops, executed, tokens, bound, flops.total / all_peak / bound.seconds, days)


def token_counts(work: StageWork) -> TokenCounts:
  """What a full batch holds."""
  model, mean = work.model, work.mean
  tokens = work.stage.batch_size * work.shape.length
  examples, ratio = tokens / mean.tokens, work.stage.ratio
  seen, generated = (int(examples * share / sum(ratio)) for share in (ratio[0], ratio[2]))
  und, gen = seen * model.num_image_tokens, generated * (model.vq.num_tokens - 1)
  return TokenCounts(
    text=tokens - und - gen,
    understanding=und,
    generation=gen,
    # At most: prompts and questions are not predicted.
    text_targets=tokens - und - gen,
    images_encoded=seen,
    images_tokenized=generated if mean.generation_images else 0,
  )


def computed_counts(work: StageWork, counts: TokenCounts) -> TokenCounts:
  """With empty slots, through which the encoders go as well."""
  images, generation_images = (work.streams * count for count in (work.shape.images, work.shape.generation_images))
  return dataclasses.replace(counts, images_encoded=images, images_tokenized=generation_images)


def recomputed_flops(work: StageWork, counts: TokenCounts) -> float:
  """Matrix products that the backward pass does a second time: logits always, layers as `remat` says."""
  llama = work.model.language_model
  logits = 2 * llama.width * (llama.vocab_size * counts.text_targets + work.model.vq.codebook_size * counts.generation)
  if not work.trained - {'gen_head'}:
    return float(logits)
  # Below 'full', products and attention are kept.
  layers = 2 * trunk_parameters(llama) + 2 * llama.depth * llama.num_heads * llama.head_dim * work.shape.length
  flops = logits + (counts.tokens * layers if work.remat == 'full' else 0)
  if 'vision_encoder' in work.trained:
    # Once by layers, and once more where images are encoded a group at a time, before the microbatches.
    again = (work.remat == 'full') + (work.accumulation > 1)
    flops += again * work.streams * work.shape.images * siglip_forward_flops(work.model.vision_encoder)
  return float(flops)


def moved_bytes(work: StageWork, mesh: jax.sharding.Mesh) -> float:
  """What one device reads and writes at least: state once each, the decoder's weights in each pass of a microbatch."""
  llama = work.model.language_model
  weights = WEIGHT_BYTES * (trunk_parameters(llama) + llama.vocab_size * llama.width) / mesh.shape['tensor']
  passes = 3 if work.remat == 'full' else 2
  return 2 * work.state_bytes + work.accumulation * passes * weights
