"""The generation tokenizer: LlamaGen's VQ-16 as Janus uses it. Pixels to codes, and codes to pixels.

Reference: `vq_model.py` of deepseek-ai/Janus (itself LlamaGen's), `JanusVQVAE` of transformers. Codebook rows and
encoder outputs are both L2-normalised at use, as in the original; transformers normalises only when it decodes.
Arrays are NHWC. Levels of the encoder run from the highest resolution to the lowest, those of the decoder back.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn

from janus_jax.models.attention_kernels import masked_attention
from janus_jax.models.config import ComputeConfig, VQConfig
from janus_jax.models.layers import dense

NORM_GROUPS = 32


def _norm(compute: ComputeConfig, name: str) -> nn.GroupNorm:
  return nn.GroupNorm(
    num_groups=NORM_GROUPS,
    epsilon=1e-6,
    use_fast_variance=False,
    dtype=jnp.dtype(compute.dtype),
    param_dtype=jnp.dtype(compute.param_dtype),
    name=name,
  )


def _conv(features: int, compute: ComputeConfig, name: str, *, stride: int = 1) -> nn.Conv:
  """3x3. With stride 2 one row and column of zeros is added at the right and bottom only, none at the left and top."""
  padding = 1 if stride == 1 else ((0, 1), (0, 1))
  dtype, param_dtype = jnp.dtype(compute.dtype), jnp.dtype(compute.param_dtype)
  return nn.Conv(features, (3, 3), strides=stride, padding=padding, dtype=dtype, param_dtype=param_dtype, name=name)


class ResBlock(nn.Module):
  """norm, swish, conv, norm, swish, conv, plus the input (through a 1x1 map where the width changes)."""

  features: int
  compute: ComputeConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    h = _conv(self.features, self.compute, 'conv1')(jax.nn.silu(_norm(self.compute, 'norm1')(x)))
    h = _conv(self.features, self.compute, 'conv2')(jax.nn.silu(_norm(self.compute, 'norm2')(h)))
    if x.shape[-1] != self.features:
      x = dense(x.shape[-1], self.features, self.compute, name='shortcut')(x)
    return x + h


class AttnBlock(nn.Module):
  """Single-head attention over all positions of the grid, with a residual."""

  compute: ComputeConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    B, h, w, C = x.shape
    normed = _norm(self.compute, 'norm')(x).reshape(B, h * w, C)
    q, k, v = (dense(C, C, self.compute, name=name)(normed)[:, :, None, :] for name in ('q', 'k', 'v'))
    attended = masked_attention(q, k, v, mask=None).reshape(B, h, w, C)
    return x + dense(C, C, self.compute, name='proj')(attended)


class Level(nn.Module):
  """One resolution: res blocks (each followed by attention at the lowest resolution), then the change of resolution."""

  features: int
  num_res_blocks: int
  attend: bool
  resample: str  # 'down', 'up' or 'none'
  compute: ComputeConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for i in range(self.num_res_blocks):
      x = ResBlock(self.features, self.compute, name=f'res_{i}')(x)
      if self.attend:
        x = AttnBlock(self.compute, name=f'attn_{i}')(x)
    if self.resample == 'down':
      x = _conv(self.features, self.compute, 'downsample', stride=2)(x)
    elif self.resample == 'up':
      x = _conv(self.features, self.compute, 'upsample')(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2))
    return x


class Middle(nn.Module):
  compute: ComputeConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    features = x.shape[-1]
    x = ResBlock(features, self.compute, name='res_0')(x)
    x = AttnBlock(self.compute, name='attn')(x)
    return ResBlock(features, self.compute, name='res_1')(x)


class VQEncoder(nn.Module):
  """[B, h, w, 3] -> [B, rows, columns, z_channels]."""

  config: VQConfig
  compute: ComputeConfig

  @nn.compact
  def __call__(self, pixels: jax.Array) -> jax.Array:
    config, compute = self.config, self.compute
    x = _conv(config.base_channels, compute, 'conv_in')(pixels)
    lowest = len(config.channel_multipliers) - 1
    for i, multiplier in enumerate(config.channel_multipliers):
      resample = 'none' if i == lowest else 'down'
      features = config.base_channels * multiplier
      x = Level(features, config.num_res_blocks, i == lowest, resample, compute, name=f'level_{i}')(x)
    x = Middle(compute, name='mid')(x)
    return _conv(config.z_channels, compute, 'conv_out')(jax.nn.silu(_norm(compute, 'norm_out')(x)))


class VQDecoder(nn.Module):
  """[B, rows, columns, z_channels] -> [B, h, w, 3], unbounded. One res block more per level than the encoder."""

  config: VQConfig
  compute: ComputeConfig

  @nn.compact
  def __call__(self, z: jax.Array) -> jax.Array:
    config, compute = self.config, self.compute
    features = [config.base_channels * m for m in reversed(config.channel_multipliers)]
    x = Middle(compute, name='mid')(_conv(features[0], compute, 'conv_in')(z))
    for i, width in enumerate(features):
      resample = 'none' if i == len(features) - 1 else 'up'
      x = Level(width, config.num_res_blocks + 1, i == 0, resample, compute, name=f'level_{i}')(x)
    return _conv(3, compute, 'conv_out')(jax.nn.silu(_norm(compute, 'norm_out')(x)))


def l2_normalize(x: jax.Array) -> jax.Array:
  """x / max(|x|, 1e-12) along the last axis, as torch's F.normalize."""
  return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


@flax.struct.dataclass
class VQOutput:
  """A reconstruction and the losses of the codebook.

  Attributes:
    pixels: float32[B, size, size, 3], the reconstruction.
    codes: int32[B, P].
    codebook_loss: float32, mean squared distance of chosen rows to the (stopped) encoder outputs.
    commitment_loss: float32, the same with the stop on the rows; not yet weighted (the original's weight is 0.25).
  """

  pixels: jax.Array
  codes: jax.Array
  codebook_loss: jax.Array
  commitment_loss: jax.Array


class VQ(nn.Module):
  """The tokenizer; the methods are its interface. P codes per image in row-major order."""

  config: VQConfig
  compute: ComputeConfig

  def setup(self):
    config = self.config
    # In bfloat16 (or TF32) several percent of the codes change, so the way to the codes is float32 whatever the rest
    # of the model runs in.
    exact = dataclasses.replace(self.compute, dtype='float32')
    decoding = dataclasses.replace(self.compute, dtype=self.compute.vq_dtype)
    self.encoder = VQEncoder(config, exact)
    self.quant_conv = dense(config.z_channels, config.code_dim, exact)
    self.post_quant_conv = dense(config.code_dim, config.z_channels, decoding)
    self.decoder = VQDecoder(config, decoding)
    init = nn.initializers.normal(stddev=1.0)
    shape = (config.codebook_size, config.code_dim)
    self.codebook = self.param('codebook', init, shape, jnp.dtype(self.compute.param_dtype))

  def _rows(self) -> jax.Array:
    return l2_normalize(self.codebook.astype(jnp.float32))

  def latents(self, pixels: jax.Array) -> jax.Array:
    """[B, h, w, 3] in [-1, 1] -> unit vectors float32[B, P, code_dim]."""
    with jax.default_matmul_precision('highest'):
      z = self.quant_conv(self.encoder(pixels.astype(jnp.float32)))
    return l2_normalize(z.reshape(z.shape[0], -1, z.shape[-1]))

  def nearest(self, z: jax.Array) -> jax.Array:
    """Unit vectors [B, P, code_dim] -> int32[B, P]: the row of largest cosine, the first one on a tie."""
    with jax.default_matmul_precision('highest'):
      return jnp.argmax(z @ self._rows().T, axis=-1).astype(jnp.int32)

  def encode(self, pixels: jax.Array) -> jax.Array:
    """float[B, h, w, 3] in [-1, 1] -> codes int32[B, P]."""
    return self.nearest(self.latents(pixels))

  def decode_latents(self, z: jax.Array, grid: tuple[int, int] | None = None) -> jax.Array:
    """float32[B, P, code_dim] of a grid (`decode`) -> float32[B, h, w, 3], about [-1, 1] but not clipped."""
    grid = grid or (self.config.grid,) * 2
    z = self.post_quant_conv(z.reshape(z.shape[0], *grid, z.shape[-1]))
    return self.decoder(z).astype(jnp.float32)

  def decode(self, codes: jax.Array, grid: tuple[int, int] | None = None) -> jax.Array:
    """Codes int32[B, P] -> float32[B, h, w, 3], about [-1, 1] but not clipped.

    `grid` says how they lie, rows and columns; None: in the config's square.
    """
    return self.decode_latents(jnp.take(self._rows(), codes, axis=0, mode='fill', fill_value=jnp.nan), grid)

  def __call__(self, pixels: jax.Array) -> VQOutput:
    """Reconstruction with the straight-through gradient, and the two losses of the codebook."""
    z = self.latents(pixels)
    codes = self.nearest(z)
    rows = self._rows()[codes]
    stop = jax.lax.stop_gradient
    return VQOutput(
      pixels=self.decode_latents(z + stop(rows - z)),
      codes=codes,
      codebook_loss=jnp.mean(jnp.square(rows - stop(z))),
      commitment_loss=jnp.mean(jnp.square(stop(rows) - z)),
    )
