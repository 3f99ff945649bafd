"""The choice of attention kernel: by the config, or for the device and the shapes; once, before compiling."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp

from janus_jax.errors import InputError
from janus_jax.models.attention import IMPLEMENTATIONS, WHOLE
from janus_jax.models.attention_accelerators import LANES
from janus_jax.models.config import ComputeConfig, JanusConfig

# NVIDIA's GPUs: 'sm90' is Hopper, 'sm100' Blackwell for data centres, 'gpu' what else there is since Ampere.
GPUS = ('gpu', 'sm90', 'sm100')
PLATFORMS = ('cpu', *GPUS, 'tpu', 'other')
AMPERE = 8  # Its compute capability: before, cuDNN and Triton have no fused attention.
# What tokamax's kernels for GPUs are imported from; they need the second as well.
TOKAMAX_MODULES = ('tokamax', 'jax_triton')
# From this many positions on, leaving out what is above the diagonal saves more time than the loops over chunks cost.
# On a CPU, forward and backward, they are as fast at 128, 1.3 times as fast at 256, twice at 640. Without causality
# chunks save memory only.
LONG = 256


@dataclasses.dataclass(frozen=True)
class AttentionShape:
  """Everything about rows, queries and keys that the choice depends on.

  Attributes:
    length: positions of a row.
    head_dim: dimensions of a head.
    causal: whether a position attends only to itself and earlier ones.
    packed: whether segments restrict what may attend to what.
    dtype: dtype of queries, keys and values.
    parts: number of parts into which a mesh splits the positions.
    trained: whether gradients flow through it.
  """

  length: int
  head_dim: int
  causal: bool
  packed: bool
  dtype: str
  parts: int = 1
  trained: bool = True


def platform_of(device: jax.Device) -> str:
  """One of PLATFORMS: 'other' for what no kernel is written for, as GPUs of AMD and those older than Ampere."""
  if device.platform == 'gpu':
    major, *_ = str(device.compute_capability).split('.')
    if not major.isdecimal() or int(major) < AMPERE:
      return 'other'
    return {'9': 'sm90', '10': 'sm100'}.get(major, 'gpu')
  return device.platform if device.platform in PLATFORMS else 'other'


def objection(implementation: str, platform: str, shape: AttentionShape) -> str | None:
  """The reason why an implementation cannot be used; None if it can."""
  if implementation == 'splash':
    if platform != 'tpu':
      return f'runs on a TPU only: the platform is {platform}'
    if shape.parts > 1 and shape.length % (shape.parts * LANES):
      return f'wants {shape.parts} parts of a multiple of {LANES} positions: there are {shape.length} in all'
  if implementation in WHOLE:
    if platform not in GPUS:
      return f"runs on NVIDIA's GPUs since Ampere only: the platform is {platform}"
    if shape.dtype not in ('bfloat16', 'float16'):
      return f'wants bfloat16 or float16: the dtype is {shape.dtype}'
    if not 16 <= shape.head_dim <= 128 or shape.head_dim % 8:
      return f'wants heads of a multiple of 8 from 16 to 128 dimensions: they have {shape.head_dim}'
    if shape.parts > 1:
      return f'wants whole sequences: the mesh splits them into {shape.parts} parts'
  if implementation == 'cudnn' and shape.packed and shape.length % 2:
    return f'wants an even number of positions: there are {shape.length}'
  if implementation == 'tokamax':
    if platform == 'gpu':
      return "runs on Hopper and on data centres' Blackwell (sm90, sm100) only: the GPU is another"
    if missing := [name for name in TOKAMAX_MODULES if importlib.util.find_spec(name) is None]:
      return f'wants {" and ".join(missing)}: expected `pip install janus_jax[gpu]` on Python 3.12 or newer'
    if shape.packed and not shape.causal:
      return 'wants causality where rows are packed'
  return None


def choose(requested: str, platform: str, shape: AttentionShape) -> str:
  """One of IMPLEMENTATIONS.

  Args:
    requested: one of IMPLEMENTATIONS, or 'auto': a kernel written for the platform where one can be used, else
      'chunked' for long causal sequences and 'xla' for others.
    platform: one of PLATFORMS (`platform_of`).
    shape: rows, queries and keys.

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
  # cuDNN takes segments only as a mask of all positions by all, whose gradient it computes as well. For the prompts of
  # a decoder, which are short and have no gradient, that costs nothing.
  best_first = ('splash', 'tokamax', 'pallas', 'cudnn') if shape.packed and shape.trained else ('splash', 'cudnn')
  default = 'chunked' if shape.causal and shape.length >= LONG else 'xla'
  return next((kernel for kernel in best_first if objection(kernel, platform, shape) is None), default)


def faster_kernel(platform: str, implementation: str) -> str:
  """Advice where a chosen implementation is slower than the GPU allows, '' where it is not."""
  if implementation == 'pallas' and platform in ('sm90', 'sm100'):
    return 'attention: this GPU is faster with tokamax: `pip install janus_jax[gpu]` on Python 3.12 or newer'
  return ''


def of_text(model: JanusConfig, length: int, dtype: str, parts: int = 1, trained: bool = True) -> AttentionShape:
  """The decoder's attention over rows of `length` positions: packed, or padded prompts (not `trained`)."""
  head_dim = model.language_model.head_dim
  return AttentionShape(length, head_dim, causal=True, packed=True, dtype=dtype, parts=parts, trained=trained)


def of_images(model: JanusConfig, dtype: str) -> AttentionShape:
  """The understanding encoder's attention."""
  siglip = model.vision_encoder
  return AttentionShape(siglip.num_tokens, siglip.head_dim, causal=False, packed=False, dtype=dtype)


def with_attention(compute: ComputeConfig, model: JanusConfig, platform: str, length: int, parts: int) -> ComputeConfig:
  """The same with an implementation in place of each 'auto', for training.

  Args:
    compute: the requested settings.
    model: architecture.
    platform: one of PLATFORMS (`platform_of`).
    length: positions of a packed row.
    parts: number of parts into which the mesh splits a row (its axis `context`).

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
