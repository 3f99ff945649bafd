"""The refiner: a small U-Net that makes a generated image larger, given its codes, by flow matching.

The decoder of the VQ gives an image, which is enlarged by a bicubic filter. What is missing between that and the large
image is the residual x. The network is trained on x_t = (1 - t) x + t noise to predict the velocity noise - x
(rectified flow, arXiv 2209.03003). An image is sampled by following the velocity from noise, at t = 1, to t = 0.

The network computes what `UNet2DModel` of diffusers computes with `DownBlock2D`, `UpBlock2D` and a middle without
attention; its submodules are named as the tensors there. Arrays are NHWC here.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from janus_jax.errors import InputError
from janus_jax.models.config import ComputeConfig
from janus_jax.models.initialization import initial_value
from janus_jax.models.layers import dense
from janus_jax.models.vq import l2_normalize

CHANNELS = 3
NORM_EPSILON = 1e-5
LONGEST_PERIOD = 10_000
# Factor by which times in [0, 1] are multiplied for the network: diffusers counts them in thousandths.
TIME_SCALE = 1000.0


@dataclasses.dataclass(frozen=True)
class RefinerConfig:
  """Sizes of a refiner.

  Attributes:
    code_dim: width of the codebook's rows.
    scale: sides of the refined image, as a multiple of those of the VQ's.
    block_out_channels: channels at each resolution, the highest first; each next one has half the side.
    layers_per_block: residual blocks of a resolution on the way down; on the way up there is one more.
    norm_num_groups: groups of each normalisation, which divide every number of channels.
    flow_steps: Euler steps from noise to an image.
    residual_std: standard deviation of the residuals, in units of pixels in [-1, 1], which the network sees at 1.

  Raises:
    InputError: a size that is out of range, or channels that the groups do not divide.
  """

  code_dim: int
  scale: int = 2
  block_out_channels: tuple[int, ...] = (32, 64, 128)
  layers_per_block: int = 1
  norm_num_groups: int = 8
  flow_steps: int = 8
  residual_std: float = 1.0

  def __post_init__(self):
    for name in ('code_dim', 'scale', 'layers_per_block', 'norm_num_groups', 'flow_steps'):
      if getattr(self, name) < 1:
        raise InputError(f'{name} is {getattr(self, name)}: expected 1 or more')
    if not 0 < self.residual_std < math.inf:
      raise InputError(f'residual_std is {self.residual_std}: expected more than 0')
    # Of an even number, half are sines.
    wrong = [n for n in self.block_out_channels if n < 1 or n % self.norm_num_groups or n % 2]
    if wrong or not self.block_out_channels:
      groups = f'even multiples of norm_num_groups, which is {self.norm_num_groups}'
      raise InputError(f'block_out_channels is {list(self.block_out_channels)}: expected {groups}')

  @property
  def in_channels(self) -> int:
    """Channels of the noisy residual, the enlarged image and the codes."""
    return 2 * CHANNELS + self.code_dim

  def check_size(self, size: int) -> None:
    """Raises InputError for a VQ image whose refined side, `scale` times `size` pixels, cannot be halved so often."""
    factor = 2 ** (len(self.block_out_channels) - 1)
    if self.scale * size % factor:
      many = f'{len(self.block_out_channels)} resolutions'
      raise InputError(f'refined images of {self.scale * size} pixels: expected a multiple of {factor} for {many}')


class ResBlock(nn.Module):
  """norm, silu, conv, plus the time, norm, silu, conv, plus the input (through a 1x1 map where the width changes)."""

  features: int
  groups: int
  compute: ComputeConfig

  @nn.compact
  def __call__(self, x: jax.Array, time: jax.Array) -> jax.Array:
    h = _conv(self.features, self.compute, 'conv1')(nn.silu(_norm(self.groups, self.compute, 'norm1')(x)))
    shift = dense(time.shape[-1], self.features, self.compute, name='time_emb_proj')(nn.silu(time))
    h = _norm(self.groups, self.compute, 'norm2')(h + shift[:, None, None])
    h = _conv(self.features, self.compute, 'conv2')(nn.silu(h))
    if x.shape[-1] != self.features:
      x = _conv(self.features, self.compute, 'conv_shortcut', side=1)(x)
    return x + h


class Resample(nn.Module):
  """A convolution that halves each side, or that follows its doubling."""

  features: int
  direction: str  # 'down' or 'up'
  compute: ComputeConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    if self.direction == 'up':
      x = nearest(x, 2)
    return _conv(self.features, self.compute, 'conv', stride=2 if self.direction == 'down' else 1)(x)


class DownBlock(nn.Module):
  """Residual blocks at one resolution. Returns what the way up takes from it, the last of which goes on."""

  features: int
  config: RefinerConfig
  last: bool
  compute: ComputeConfig

  @nn.compact
  def __call__(self, x: jax.Array, time: jax.Array) -> list[jax.Array]:
    found = []
    for i in range(self.config.layers_per_block):
      x = ResBlock(self.features, self.config.norm_num_groups, self.compute, name=f'resnets_{i}')(x, time)
      found.append(x)
    if not self.last:
      found.append(Resample(self.features, 'down', self.compute, name='downsamplers_0')(x))
    return found


class MidBlock(nn.Module):
  config: RefinerConfig
  compute: ComputeConfig

  @nn.compact
  def __call__(self, x: jax.Array, time: jax.Array) -> jax.Array:
    for i in range(2):
      x = ResBlock(x.shape[-1], self.config.norm_num_groups, self.compute, name=f'resnets_{i}')(x, time)
    return x


class UpBlock(nn.Module):
  """Residual blocks at one resolution, each of which takes one of `skips` too, the last one first."""

  features: int
  config: RefinerConfig
  last: bool
  compute: ComputeConfig

  @nn.compact
  def __call__(self, x: jax.Array, skips: list[jax.Array], time: jax.Array) -> jax.Array:
    for i, skip in enumerate(reversed(skips)):
      x = jnp.concatenate([x, skip], axis=-1)
      x = ResBlock(self.features, self.config.norm_num_groups, self.compute, name=f'resnets_{i}')(x, time)
    return x if self.last else Resample(self.features, 'up', self.compute, name='upsamplers_0')(x)


class TimeEmbedding(nn.Module):
  """Times float32[B] in [0, 1] -> [B, 4 width]: cosines and sines of as many frequencies, then two linear maps."""

  width: int
  compute: ComputeConfig

  @nn.compact
  def __call__(self, t: jax.Array) -> jax.Array:
    half = self.width // 2
    frequencies = LONGEST_PERIOD ** -(jnp.arange(half, dtype=jnp.float32) / half)
    angles = (TIME_SCALE * t.astype(jnp.float32))[:, None] * frequencies
    x = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    x = nn.silu(dense(self.width, 4 * self.width, self.compute, name='linear_1')(x))
    return dense(4 * self.width, 4 * self.width, self.compute, name='linear_2')(x)


class Refiner(nn.Module):
  """Velocity of the flow: [B, h, w, in_channels] and times [B] in [0, 1] -> float32[B, h, w, 3].

  Channels of the input are those of x_t, in units of `residual_std`, and of `condition`.
  """

  config: RefinerConfig
  compute: ComputeConfig

  @nn.compact
  def __call__(self, x: jax.Array, t: jax.Array) -> jax.Array:
    config, compute = self.config, self.compute
    widths = config.block_out_channels
    time = TimeEmbedding(widths[0], compute, name='time_embedding')(t)
    x = _conv(widths[0], compute, 'conv_in')(x)
    skips = [x]
    for i, width in enumerate(widths):
      skips += DownBlock(width, config, i == len(widths) - 1, compute, name=f'down_blocks_{i}')(skips[-1], time)
    x = MidBlock(config, compute, name='mid_block')(skips[-1], time)
    for i, width in enumerate(reversed(widths)):
      taken, skips = skips[-config.layers_per_block - 1 :], skips[: -config.layers_per_block - 1]
      x = UpBlock(width, config, i == len(widths) - 1, compute, name=f'up_blocks_{i}')(x, taken, time)
    x = nn.silu(_norm(config.norm_num_groups, compute, 'conv_norm_out')(x))
    return _conv(CHANNELS, compute, 'conv_out')(x).astype(jnp.float32)


def abstract_params(config: RefinerConfig) -> dict[str, Any]:
  """The parameter tree as jax.ShapeDtypeStruct leaves; costs nothing."""
  side = 2 ** (len(config.block_out_channels) - 1)
  inputs = jax.ShapeDtypeStruct((1, side, side, config.in_channels), jnp.float32)
  init = Refiner(config, ComputeConfig()).init
  return jax.eval_shape(init, jax.random.key(0), inputs, jax.ShapeDtypeStruct((1,), jnp.float32))['params']


def initial_params(config: RefinerConfig, seed: int) -> dict[str, Any]:
  """Fresh parameters, numpy arrays, sampled as those of a Janus; the last convolution begins at zero."""
  flat = flax.traverse_util.flatten_dict(abstract_params(config), sep='/')
  found = {path: initial_value(f'refiner/{path}', leaf.shape, seed) for path, leaf in flat.items()}
  found['conv_out/kernel'] = np.zeros_like(found['conv_out/kernel'])
  return flax.traverse_util.unflatten_dict(found, sep='/')


def _norm(groups: int, compute: ComputeConfig, name: str) -> nn.GroupNorm:
  dtype, param_dtype = jnp.dtype(compute.dtype), jnp.dtype(compute.param_dtype)
  fixed = {'epsilon': NORM_EPSILON, 'use_fast_variance': False}
  return nn.GroupNorm(groups, **fixed, dtype=dtype, param_dtype=param_dtype, name=name)


def _conv(features: int, compute: ComputeConfig, name: str, *, stride: int = 1, side: int = 3) -> nn.Conv:
  dtype, param_dtype = jnp.dtype(compute.dtype), jnp.dtype(compute.param_dtype)
  return nn.Conv(features, (side, side), stride, side // 2, dtype=dtype, param_dtype=param_dtype, name=name)


def nearest(x: jax.Array, factor: int) -> jax.Array:
  """[B, h, w, C] -> [B, factor h, factor w, C]: each value as a square."""
  return jnp.repeat(jnp.repeat(x, factor, axis=1), factor, axis=2)


def enlarge(images: jax.Array, scale: int) -> jax.Array:
  """float32[B, h, w, 3] -> float32[B, scale h, scale w, 3] by a bicubic filter (Keys, a = -1/2), not clipped."""
  B, h, w, C = images.shape
  return jax.image.resize(images, (B, scale * h, scale * w, C), 'cubic')


def condition(config: RefinerConfig, images: jax.Array, codes: jax.Array, codebook: jax.Array) -> jax.Array:
  """The input of the network beside x_t: the enlarged image, and for each of its pixels the codebook's row of its code.

  Args:
    config: sizes.
    images: float32[B, h, w, 3] in [-1, 1], decoded by the VQ.
    codes: int32[B, P], row by row, each of a square of pixels.
    codebook: float32[K, code_dim], as stored; its rows are used at unit length, as the VQ uses them.

  Returns:
    float32[B, scale h, scale w, 3 + code_dim].
  """
  large = enlarge(images, config.scale)
  B, height, width, _ = images.shape
  side = math.isqrt(height * width // codes.shape[1])
  rows = jnp.take(l2_normalize(codebook), codes, axis=0, mode='fill', fill_value=jnp.nan)
  rows = rows.reshape(B, height // side, width // side, config.code_dim)
  return jnp.concatenate([large, nearest(rows, config.scale * side)], axis=-1)


def follow_flow(velocity: Callable[[jax.Array, jax.Array], jax.Array], noise: jax.Array, steps: int) -> jax.Array:
  """Follows a flow from `noise` [B, ...], at t = 1, to t = 0, in Euler steps of equal length.

  Args:
    velocity: (x_t [B, ...], t float32[B]) -> dx_t / dt.
    noise: standard normal.
    steps: number of steps.
  """

  def step(number: int, x: jax.Array) -> jax.Array:
    return x - velocity(x, jnp.full(len(x), 1 - number / steps)) / steps

  return jax.lax.fori_loop(0, steps, step, noise)


@functools.partial(jax.jit, static_argnames='config')
def refine(config: RefinerConfig, params: dict, conditions: jax.Array, noise: jax.Array) -> jax.Array:
  """Samples refined images.

  Args:
    config: sizes.
    params: tree of `Refiner`.
    conditions: of `condition`, float32[B, h, w, 3 + code_dim].
    noise: standard normal, float32[B, h, w, 3].

  Returns:
    float32[B, h, w, 3], clipped to [-1, 1].
  """
  network = Refiner(config, ComputeConfig())

  def velocity(x: jax.Array, t: jax.Array) -> jax.Array:
    return network.apply({'params': params}, jnp.concatenate([x, conditions], axis=-1), t)

  residual = follow_flow(velocity, noise, config.flow_steps)
  return jnp.clip(conditions[..., :CHANNELS] + config.residual_std * residual, -1, 1)
