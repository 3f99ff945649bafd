"""Work and time of a stage by formula: FLOPs, the least time of a step, the time of the whole stage.

Rows are full of examples of the lengths that the stage expects (`Stage.expected_tokens`). Empty slots for images and
matrix products of higher precision take time, but are no FLOPs that MFU counts.
"""

import dataclasses
from collections.abc import Mapping

import jax

from janus_jax.data.packing import BatchShape, MeanSize
from janus_jax.models.config import JanusConfig
from janus_jax.planning.topologies import GPU_NETWORK, Topology
from janus_jax.training.stages import Stage
from janus_jax.training.throughput import StepFlops, TokenCounts, siglip_forward_flops, step_flops, trunk_parameters

MFU_PERCENT = (40, 50, 60)
SECONDS_PER_DAY = 86_400
WEIGHT_BYTES = 2  # Parameters are multiplied with in bfloat16.


@dataclasses.dataclass(frozen=True)
class StageWork:
  """Work of a step.

  Attributes:
    shape: shape of the part of a batch that one stream makes.
    samples: shape of what is learned from beside it, or in its place (`Stage.reads_data`).
    streams: streams that make a batch.
    mean: mean size of an example.
    trained: parameter groups in which anything trains.
    adapted: those of them in which only factors of LoRA do.
    state_bytes: bytes of the state on a device.
  """

  stage: Stage
  model: JanusConfig
  shape: BatchShape
  streams: int
  mean: MeanSize
  trained: frozenset[str]
  adapted: frozenset[str]
  remat: str
  accumulation: int
  state_bytes: int
  samples: BatchShape | None = None

  @property
  def has_decoder_backward(self) -> bool:
    """True if gradients go through the decoder."""
    return bool(self.trained - {'gen_head'})


@dataclasses.dataclass(frozen=True)
class Bound:
  """Least seconds of a step if a single thing limited it; the longest is the bound.

  Attributes:
    compute: matrix products at the chip's peak.
    memory: weights and state through HBM.
    network: bytes that devices receive from each other, over all links at once.
  """

  compute: float
  memory: float
  network: float

  @property
  def seconds(self) -> float:
    return max(self.compute, self.memory, self.network)


@dataclasses.dataclass(frozen=True)
class Figures:
  """Figures that follow from the sizes of a stage.

  Attributes:
    flops: FLOPs of a step over all devices, as MFU counts them.
    executed_flops: FLOPs with those repeated for the backward pass, and for empty slots.
    tokens: tokens of the whole stage.
    bound: least time of a step; None on devices of unknown speed, or where the step does not fit.
    mfu_bound: MFU if a step takes `bound`; None as well.
    sampling: least seconds in which the images that a step learns from are generated; None where it learns from none.
    days: percent of MFU -> days for the whole stage; empty where the peak is not known.
  """

  flops: StepFlops
  executed_flops: float
  tokens: int
  bound: Bound | None = None
  mfu_bound: float | None = None
  sampling: float | None = None
  days: Mapping[int, float] = dataclasses.field(default_factory=dict)


def stage_figures(
  work: StageWork, topology: Topology, mesh: jax.sharding.Mesh, received: Mapping[str, int] | None
) -> Figures:
  """Figures of a stage on the devices of a mesh; `received`, bytes by kind of collective, is None if not known."""
  counts, length = token_counts(work), work.shape.length
  flops = step_flops(work.model, counts, length, work.trained, work.adapted)
  # The encoders go through empty slots as well.
  slots = {'images_encoded': work.shape.images, 'images_tokenized': work.shape.generation_images}
  with_empty = dataclasses.replace(counts, **{name: work.streams * count for name, count in slots.items()})
  computed = step_flops(work.model, with_empty, length, work.trained, work.adapted)
  executed = computed.total + recomputed_flops(work, counts)
  found = Figures(flops, executed, work.stage.steps * counts.tokens)
  chip = topology.chip
  if chip is None:
    return found
  all_peak, exact_peak = chip.device.bfloat16_flops * mesh.size, chip.device.float32_flops * mesh.size
  days = {mfu: work.stage.steps * flops.total / (all_peak * mfu / 100) / SECONDS_PER_DAY for mfu in MFU_PERCENT}
  if received is None:
    return dataclasses.replace(found, days=days)
  across = received['between-slices']
  inside = sum(received.values()) - across
  bound = Bound(
    # Codes come of float32 products: rounded, other codes would be the nearest.
    compute=(executed - computed.vq) / all_peak + computed.vq / exact_peak,
    memory=moved_bytes(work, mesh) / chip.device.memory_bandwidth,
    network=max(inside / chip.device.interconnect, across / (chip.device.network or GPU_NETWORK)),
  )
  # Each device reads its part of the weights.
  parts = mesh.shape['fsdp'] * mesh.shape['tensor']
  sampling = sampling_seconds(work, chip.device.memory_bandwidth) / parts if work.samples else None
  return dataclasses.replace(
    found, bound=bound, mfu_bound=flops.total / all_peak / bound.seconds, sampling=sampling, days=days
  )


def sampling_seconds(work: StageWork, bandwidth: float) -> float:
  """Seconds of reading all of the decoder's weights for each token of a sample: 0 where pairs are stored."""
  how, weights = work.stage.preference, WEIGHT_BYTES * trunk_parameters(work.model.language_model)
  tokens = how.max_new_tokens if how.samples == 'answers' else work.model.vq.num_tokens
  return 0.0 if how.pairs else tokens * weights / bandwidth


def token_counts(work: StageWork) -> TokenCounts:
  """Counts of a full batch, and of samples."""
  found = _data_counts(work) if work.stage.reads_data else TokenCounts()
  if work.samples is None:
    return found
  model, samples = work.model, work.samples
  if samples.images:
    seen = samples.images * model.num_image_tokens
    text = samples.rows * samples.length - seen
    return dataclasses.replace(
      found,
      text=found.text + text,
      understanding=found.understanding + seen,
      text_targets=found.text_targets + text,
      images_encoded=found.images_encoded + samples.images,
    )
  codes = samples.rows * (model.vq.num_tokens - 1)
  text = samples.rows * samples.length - codes
  return dataclasses.replace(found, text=found.text + text, generation=found.generation + codes)


def _data_counts(work: StageWork) -> TokenCounts:
  model, mean = work.model, work.mean
  tokens = work.stage.batch_size * work.shape.length
  examples, ratio = tokens / mean.tokens, work.stage.ratio
  seen, generated = (int(examples * part / sum(ratio)) for part in (ratio[0], ratio[2]))
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


def recomputed_flops(work: StageWork, counts: TokenCounts) -> float:
  """FLOPs that the backward pass repeats: logits always, layers as `remat` says. And those of the passes before it that
  find log-probabilities of samples.
  """
  llama = work.model.language_model
  logits = 2 * llama.width * (llama.vocab_size * counts.text_targets + work.model.vq.codebook_size * counts.generation)
  if not work.has_decoder_backward:
    return float(logits)
  # Below 'full', products and attention are kept.
  layers = 2 * trunk_parameters(llama) + 2 * llama.depth * llama.num_heads * llama.head_dim * work.shape.length
  flops = logits + (counts.tokens * layers if work.remat == 'full' else 0)
  if 'vision_encoder' in work.trained:
    # Once by layers, and once more where images are encoded a group at a time, before the microbatches.
    again = (work.remat == 'full') + (work.accumulation > 1)
    flops += again * work.streams * work.shape.images * siglip_forward_flops(work.model.vision_encoder)
  if work.samples:
    predicted = work.samples.rows * work.model.vq.num_tokens * work.model.vq.codebook_size
    if work.samples.images:
      predicted = work.samples.rows * work.stage.preference.max_new_tokens * llama.vocab_size
    logits = 2 * llama.width * predicted
    flops += (1 + work.stage.has_reference) * (work.samples.rows * work.samples.length * layers + logits)
  return float(flops)


def moved_bytes(work: StageWork, mesh: jax.sharding.Mesh) -> float:
  """Least bytes that one device moves: state both ways, the decoder's weights in each pass of a microbatch."""
  llama = work.model.language_model
  weights = WEIGHT_BYTES * (trunk_parameters(llama) + llama.vocab_size * llama.width) / mesh.shape['tensor']
  passes = 3 if work.remat == 'full' else 2
  return 2 * work.state_bytes + work.accumulation * passes * weights
