"""The understanding encoder: SigLIP-Large-Patch16-384 as Janus runs it (exact GELU, no pooling head).

Reference: `SiglipVisionModel` / `JanusVisionModel` of transformers, `siglip_vit.py` of deepseek-ai/Janus.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from janus_jax.models import layers
from janus_jax.models.attention import attention
from janus_jax.models.config import ComputeConfig, SiglipConfig

POSITIONS = 'vision_encoder/pos_embed'  # In the tree of a Janus: the only parameter whose shape depends on image sizes.


def resample_positions(table: jax.Array, grid: int) -> jax.Array:
  """Bicubic resampling of a square table of positions, computed in float32.

  torch's bicubic kernel (a = -0.75, no antialiasing), as `interpolate_pos_encoding` of transformers' vision towers.

  Args:
    table: [P, D], P a square number, row-major.
    grid: positions along one side of the result.

  Returns:
    [grid * grid, D] in the dtype of `table`.
  """
  side, D = round(len(table) ** 0.5), table.shape[1]
  square = table.astype(jnp.float32).reshape(side, side, D)
  cubic = jax.image.ResizeMethod.CUBIC_PYTORCH
  return jax.image.resize(square, (grid, grid, D), cubic, antialias=False).reshape(-1, D).astype(table.dtype)


class SiglipAttention(nn.Module):
  """Bidirectional multi-head attention with biases."""

  config: SiglipConfig
  compute: ComputeConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    D, N, H = self.config.width, self.config.num_heads, self.config.head_dim
    q, k, v = (layers.Linear((N, H), (D,), self.compute, name=name)(x) for name in ('q', 'k', 'v'))
    attended = attention(
      q,
      k,
      v,
      segments=None,
      causal=False,
      implementation=self.compute.vision_attention,
      layout=self.compute.layout,
      names=('patch_heads', 'patch_heads'),
    )
    return layers.Linear((D,), (N, H), self.compute, name='o')(attended)


class SiglipMLP(nn.Module):
  config: SiglipConfig
  compute: ComputeConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    D, F = self.config.width, self.config.mlp_dim
    hidden = layers.activation(self.config.activation)(layers.dense(D, F, self.compute, name='fc1')(x))
    return layers.dense(F, D, self.compute, name='fc2')(self.compute.constrain('patch_mlp', hidden))


class SiglipBlock(nn.Module):
  """Pre-norm transformer block."""

  config: SiglipConfig
  compute: ComputeConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
    eps = self.config.norm_eps
    x = x + SiglipAttention(self.config, self.compute, name='attn')(
      layers.LayerNorm(eps, self.compute, name='norm1')(x)
    )
    x = x + SiglipMLP(self.config, self.compute, name='mlp')(layers.LayerNorm(eps, self.compute, name='norm2')(x))
    return self.compute.constrain('patches', x), None


class Siglip(nn.Module):
  """Pixels to patch features.

  Pixels [B, size, size, 3] in [-1, 1] -> features [B, P, D]; P patches in row-major order.
  """

  config: SiglipConfig
  compute: ComputeConfig

  @nn.compact
  def __call__(self, pixels: jax.Array) -> jax.Array:
    B, size, p, D = pixels.shape[0], self.config.image_size, self.config.patch_size, self.config.width
    if pixels.shape[1:] != (size, size, 3):
      raise ValueError(f'pixels have shape {pixels.shape}: expected [B, {size}, {size}, 3]')
    # A convolution whose stride is its kernel, written as the matrix product it is: [B, P, 3, p, p] by [D, 3, p, p].
    grid = self.config.grid
    patches = pixels.reshape(B, grid, p, grid, p, 3).transpose(0, 1, 3, 5, 2, 4).reshape(B, grid * grid, 3, p, p)
    x = layers.Linear((D,), (3, p, p), self.compute, name='patch_embed')(patches)
    init = nn.initializers.normal(stddev=D**-0.5)
    positions = self.param('pos_embed', init, (grid * grid, D), jnp.dtype(self.compute.param_dtype))
    x = self.compute.constrain('patches', x + positions.astype(x.dtype))
    blocks = layers.stack_layers(
      SiglipBlock, self.config.depth, self.compute, in_axes=(), name='layers', config=self.config
    )
    x, _ = blocks(x)
    return layers.LayerNorm(self.config.norm_eps, self.compute, name='final_norm')(x)
