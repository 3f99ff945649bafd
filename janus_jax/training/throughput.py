"""FLOPs of a training step by formula, and the fraction of the hardware's peak they are (MFU).

Per token: 6 per matrix parameter that it meets (2 forward, 4 backward) plus 6 L d S for causal attention, S the length
of a row and d all heads together (the upper triangle is not counted): the definition of MaxText since its PR #1988.
Text meets the decoder, and `lm_head` where it is predicted; codes the decoder, `gen_aligner` and `gen_head`; SigLIP's
features the decoder and `vision_aligner`, or with a shared encoder `gen_aligner`. A frozen matrix has no weight
gradient and costs 4 of the 6; where nothing that trains lies below it, it has no gradient at all and costs 2. What
factors of LoRA stand beside is frozen; their own products (0.6 % of the 7B at rank 16) are not counted.
Recomputation (remat), norms, activations and the optimizer are not counted. XLA's own count is not used: it counts the
body of a loop once.
"""

import dataclasses
from collections.abc import Collection

from janus_jax.errors import InputError
from janus_jax.models.config import JanusConfig, LlamaConfig, SiglipConfig, VQConfig
from janus_jax.sharding.accelerators import peak_flops
from janus_jax.training import stages

# The VQ has no gradient in a step.
GROUPS = tuple(group for group in stages.GROUPS if group != 'vq')


@dataclasses.dataclass(frozen=True)
class TokenCounts:
  """Counts over one or more steps and all devices, without padding and empty slots.

  Attributes:
    text: tokens that came in as text.
    understanding: positions filled with images that are understood.
    generation: codes to generate.
    images_encoded: images that went through the understanding encoder: SigLIP, or with a shared encoder the VQ's.
    images_tokenized: images that the VQ encoder turned into codes inside the step; 0 where codes are precomputed.
    text_targets: tokens of text that are predicted; others have no logits.
  """

  text: int = 0
  understanding: int = 0
  generation: int = 0
  images_encoded: int = 0
  images_tokenized: int = 0
  text_targets: int = 0

  @property
  def tokens(self) -> int:
    return self.text + self.understanding + self.generation


@dataclasses.dataclass(frozen=True)
class StepFlops:
  """FLOPs over all devices: decoder, adaptors and heads; SigLIP; the VQ encoder, whatever it is for."""

  decoder: float
  vision_encoder: float
  vq: float

  @property
  def total(self) -> float:
    return self.decoder + self.vision_encoder + self.vq


def trunk_parameters(config: LlamaConfig) -> int:
  """Matrix parameters of the decoder's layers: no token table, `lm_head` or norms (6.072e9 in Janus-Pro-7B)."""
  D, H = config.width, config.head_dim
  attention = D * H * (2 * config.num_heads + 2 * config.num_kv_heads)
  return config.depth * (attention + 3 * D * config.mlp_dim)


def siglip_forward_flops(config: SiglipConfig) -> float:
  """FLOPs for one image, attention in full (0.38e12 for SigLIP-L/16 at 384)."""
  P, D = config.num_tokens, config.width
  patch = 2 * P * 3 * config.patch_size**2 * D
  layer = 2 * P * (4 * D * D + 2 * D * config.mlp_dim) + 4 * P * P * D
  return float(patch + config.depth * layer)


def vq_encoder_forward_flops(config: VQConfig) -> float:
  """FLOPs from one image to its codes, convolutions and attention (0.31e12 for VQ-16 at 384)."""
  size, width = config.image_size, config.base_channels
  flops = 2 * size**2 * 9 * 3 * width
  lowest = len(config.channel_multipliers) - 1
  for level, multiplier in enumerate(config.channel_multipliers):
    features = config.base_channels * multiplier
    for _ in range(config.num_res_blocks):
      flops += _res_block_flops(size**2, width, features)
      flops += _attn_block_flops(size**2, features) if level == lowest else 0
      width = features
    if level != lowest:
      size //= 2
      flops += 2 * size**2 * 9 * width * features
      width = features
  P = size**2
  flops += 2 * _res_block_flops(P, width, width) + _attn_block_flops(P, width)
  flops += 2 * P * 9 * width * config.z_channels + 2 * P * config.z_channels * config.code_dim
  return float(flops + 2 * P * config.code_dim * config.codebook_size)


def _res_block_flops(positions: int, inputs: int, outputs: int) -> int:
  shortcut = inputs * outputs if inputs != outputs else 0
  return 2 * positions * (9 * inputs * outputs + 9 * outputs * outputs + shortcut)


def _attn_block_flops(positions: int, width: int) -> int:
  return 2 * positions * 4 * width * width + 4 * positions * positions * width


def step_flops(
  config: JanusConfig,
  counts: TokenCounts,
  sequence_length: int,
  trained: Collection[str] = GROUPS,
  adapted: Collection[str] = (),
) -> StepFlops:
  """FLOPs of training on `counts` in packed rows of S = `sequence_length`, by the formulas above.

  `trained` are those of GROUPS in which anything trains, `adapted` those of them in which only factors of LoRA do.
  Raises InputError for an unknown one.
  """
  llama, vision = config.language_model, config.vision_encoder
  trained = set(trained)
  unknown = sorted(trained - set(GROUPS))
  if unknown:
    raise InputError(f'parameter group {unknown[0]!r} is unknown: expected some of {", ".join(GROUPS)}')
  D, full = llama.width, trained - set(adapted)
  decoder_trains = 'language_model' in full
  # True if gradients pass through the decoder's layers, and through its output into the heads' inputs.
  through_layers = bool(trained - {'gen_head'})
  per_attention = 6 if through_layers else 2
  attention = per_attention * llama.depth * llama.num_heads * llama.head_dim * sequence_length
  trunk = _per_parameter(decoder_trains, through_layers) * trunk_parameters(llama) + attention
  text_head = _per_parameter(decoder_trains, through_layers) * D * llama.vocab_size

  def adaptor(name: str, sizes: tuple[int, int, int], below_trains: bool) -> int:
    return _adaptor_flops(sizes, name in full, name in trained, below_trains)

  gen = adaptor('gen_aligner', (config.vq.code_dim, D, D), 'gen_embed' in trained)
  siglip = adaptor('vision_aligner', (vision.width, D, D), 'vision_encoder' in trained)
  und = gen if config.shared_encoder else siglip
  gen += adaptor('gen_head', (D, D, config.vq.codebook_size), through_layers)
  decoder = (
    counts.tokens * trunk + counts.text_targets * text_head + counts.understanding * und + counts.generation * gen
  )
  # Frozen, SigLIP runs forward only; the VQ encoder always does.
  passes = 1 + ('vision_encoder' in trained) + ('vision_encoder' in full)
  by_siglip = 0 if config.shared_encoder else counts.images_encoded
  by_vq = counts.images_tokenized + counts.images_encoded - by_siglip
  return StepFlops(
    decoder=float(decoder),
    vision_encoder=by_siglip * passes * siglip_forward_flops(vision),
    vq=by_vq * vq_encoder_forward_flops(config.vq),
  )


def _per_parameter(trains: bool, passes_on: bool) -> int:
  """FLOPs per parameter and token: forward; for its own gradient; for the gradient of what lies below it."""
  return 2 + 2 * trains + 2 * passes_on


def _adaptor_flops(sizes: tuple[int, int, int], trains: bool, anything_trains: bool, below_trains: bool) -> int:
  """FLOPs per token of the two matrices of `layers.Adaptor`, which train themselves or have factors that do."""
  inputs, hidden, outputs = sizes
  first = _per_parameter(trains, below_trains) * inputs * hidden
  return first + _per_parameter(trains, anything_trains or below_trains) * hidden * outputs


def throughput(
  counts: TokenCounts, flops: StepFlops, seconds: float, device_kind: str, num_devices: int
) -> dict[str, float]:
  """Speeds over `seconds`, by name, for the metrics.

  Where the peak of the device is known they include `mfu` (decoder, adaptors and heads, the figure that language models
  are compared by) and `mfu_with_encoders` (with SigLIP and the VQ encoder), 0 to 1.
  """
  values = {
    'tokens_per_second': counts.tokens / seconds,
    'tokens_per_second_per_device': counts.tokens / seconds / num_devices,
    'images_per_second': (counts.images_encoded + counts.images_tokenized) / seconds,
    'tflops_per_second_per_device': flops.total / seconds / num_devices / 1e12,
  }
  peak = peak_flops(device_kind)
  if peak is not None:
    values['mfu'] = flops.decoder / seconds / num_devices / peak
    values['mfu_with_encoders'] = flops.total / seconds / num_devices / peak
  return values
