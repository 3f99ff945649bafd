"""Which attention kernel runs: said in the config, or chosen for the device and the shapes, once, before compiling."""

import dataclasses

import jax
import jax.numpy as jnp

from janus_jax.errors import InputError
from janus_jax.models.attention import IMPLEMENTATIONS
from janus_jax.models.attention_accelerators import LANES
from janus_jax.models.config import ComputeConfig, JanusConfig

PLATFORMS = ('cpu', 'gpu', 'tpu', 'other')
CUDNN_SINCE = 8  # Compute capability of Ampere, before which cuDNN has no fused attention.
# From this many positions on, leaving out what is above the diagonal saves more time than the loops over chunks cost.
# On a CPU, forward and backward, they are as fast at 128, 1.3 times as fast at 256, twice at 640. Without causality
# chunks save memory only.
LONG = 256


@dataclasses.dataclass(frozen=True)
class AttentionShape:
  """What the choice depends on.

  Attributes:
    length: positions of a row.
    head_dim: of queries, keys and values.
    causal: whether a position attends only to itself and earlier ones.
    packed: whether segments restrict who attends to whom.
    dtype: of queries, keys and values.
    parts: into how many parts a mesh splits the positions.
  """

  length: int
  head_dim: int
  causal: bool
  packed: bool
  dtype: str
  parts: int = 1


def platform_of(device: jax.Device) -> str:
  """One of PLATFORMS: 'other' for what no kernel is written for, as GPUs of AMD and those older than Ampere."""
  if device.platform == 'gpu':
    major, *_ = str(device.compute_capability).split('.')
    return 'gpu' if major.isdecimal() and int(major) >= CUDNN_SINCE else 'other'
  return device.platform if device.platform in PLATFORMS else 'other'


def objection(implementation: str, platform: str, shape: AttentionShape) -> str | None:
  """Why an implementation cannot be used; None if it can."""
  if implementation == 'splash':
    if platform != 'tpu':
      return f'runs on a TPU only: the platform is {platform}'
    if shape.parts > 1 and shape.length % (shape.parts * LANES):
      return f'wants {shape.parts} parts of a multiple of {LANES} positions: there are {shape.length} in all'
  if implementation == 'cudnn':
    if platform != 'gpu':
      return f"runs on NVIDIA's GPUs since Ampere only: the platform is {platform}"
    if shape.dtype not in ('bfloat16', 'float16'):
      return f'wants bfloat16 or float16: the dtype is {shape.dtype}'
    if shape.head_dim > 128 or shape.head_dim % 8:
      return f'wants heads of a multiple of 8 up to 128 dimensions: they have {shape.head_dim}'
    if shape.packed and shape.length % 2:
      return f'wants an even number of positions: there are {shape.length}'
    if shape.parts > 1:
      return f'wants whole sequences: the mesh splits them into {shape.parts} parts'
  return None


def choose(requested: str, platform: str, shape: AttentionShape) -> str:
  """One of IMPLEMENTATIONS.

  Args:
    requested: one of IMPLEMENTATIONS, or 'auto': the kernel written for the platform where it can be used, else
      'chunked' for long causal sequences and 'xla' for others.
    platform: one of PLATFORMS (`platform_of`).
    shape: of what attends.

  Raises:
    InputError: what is requested cannot be used, or is unknown.
  """
  if requested not in ('auto', *IMPLEMENTATIONS):
    raise InputError(f'attention is {requested!r}: expected one of auto, {", ".join(IMPLEMENTATIONS)}')
  if platform not in PLATFORMS:
    raise InputError(f'platform is {platform!r}: expected one of {", ".join(PLATFORMS)}')
  if requested != 'auto':
    if why := objection(requested, platform, shape):
      raise InputError(f'attention {requested!r} {why}')
    return requested
  best = {'tpu': 'splash', 'gpu': 'cudnn'}.get(platform)
  if best and objection(best, platform, shape) is None:
    return best
  return 'chunked' if shape.causal and shape.length >= LONG else 'xla'


def of_text(model: JanusConfig, length: int, dtype: str, parts: int = 1) -> AttentionShape:
  """What the decoder's attention is like over rows of `length` positions, packed or padded."""
  return AttentionShape(length, model.language_model.head_dim, causal=True, packed=True, dtype=dtype, parts=parts)


def of_images(model: JanusConfig, dtype: str) -> AttentionShape:
  """What the understanding encoder's attention is like."""
  siglip = model.vision_encoder
  return AttentionShape(siglip.num_tokens, siglip.head_dim, causal=False, packed=False, dtype=dtype)


def with_attention(compute: ComputeConfig, model: JanusConfig, platform: str, length: int, parts: int) -> ComputeConfig:
  """The same with an implementation in place of each 'auto', for training.

  Args:
    compute: what was requested.
    model: architecture.
    platform: of the devices (`platform_of`).
    length: positions of a packed row.
    parts: into how many parts the mesh splits a row (its axis `context`).

  Raises:
    InputError: what is requested cannot be used, or the rows do not split into so many parts.
  """
  if length % parts:
    raise InputError(f'a row of {length} positions does not split into {parts} parts: expected a multiple')
  dtype = jnp.dtype(compute.dtype).name
  return dataclasses.replace(
    compute,
    attention=choose(compute.attention, platform, of_text(model, length, dtype, parts)),
    vision_attention=choose(compute.vision_attention, platform, of_images(model, dtype)),
  )
