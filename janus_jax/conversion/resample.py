"""Another image size for the same weights: the table of patch positions is resampled, everything else stays."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.conversion.checkpoint import Checkpoint
from janus_jax.conversion.lazy import LazyArray
from janus_jax.errors import InputError

POSITIONS = 'vision_encoder/pos_embed'


def resample_positions(table: np.ndarray, grid: int) -> np.ndarray:
  """Bicubic resampling of a square table of positions.

  torch's bicubic kernel (a = -0.75, no antialiasing), as `interpolate_pos_encoding` of transformers' vision towers.

  Args:
    table: [P, D], P a square number, row-major.
    grid: positions along one side of the result.

  Returns:
    [grid * grid, D] in the dtype of `table`; computed in float32.
  """
  side = round(len(table) ** 0.5)
  square = jnp.asarray(table.astype(np.float32).reshape(side, side, -1))
  cubic = jax.image.ResizeMethod.CUBIC_PYTORCH
  resized = jax.image.resize(square, (grid, grid, square.shape[-1]), cubic, antialias=False)
  return np.asarray(resized).reshape(grid * grid, -1).astype(table.dtype)


def resize_images(checkpoint: Checkpoint, image_size: int) -> Checkpoint:
  """The same model for images of another size, for both encoders.

  Raises:
    InputError: a size that the patch or the VQ's downsampling does not divide.
  """
  step = checkpoint.config.vq.downsampling
  if image_size % step:
    raise InputError(f'image_size is {image_size}: expected a multiple of {step}, the pixels per image code')
  vision_encoder = dataclasses.replace(checkpoint.config.vision_encoder, image_size=image_size)
  vq = dataclasses.replace(checkpoint.config.vq, image_size=image_size)
  config = dataclasses.replace(checkpoint.config, vision_encoder=vision_encoder, vq=vq)
  if config == checkpoint.config:
    return checkpoint
  table, grid = checkpoint.params[POSITIONS], config.vision_encoder.grid
  shape = (grid * grid, table.shape[1])
  resampled = LazyArray(shape, table.dtype, lambda index: resample_positions(table[...], grid)[index], table.origin)
  return dataclasses.replace(checkpoint, config=config, params={**checkpoint.params, POSITIONS: resampled})
