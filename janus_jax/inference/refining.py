"""Refines generated images: makes them larger by a refiner that was trained for their VQ."""

import dataclasses
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.data.images import to_uint8
from janus_jax.inference.generation import GeneratedImage
from janus_jax.inference.sampling import row_key
from janus_jax.models.janus import normalize_pixels
from janus_jax.models.refiner import CHANNELS, RefinerConfig, condition, refine

# Index below a row's key: the noise of an image is another than that of its codes.
NOISE = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class ImageRefiner:
  """A refiner opened for use, in float32.

  Attributes:
    config: sizes.
    params: tree of `models.refiner.Refiner`.
    codebook: float32[K, code_dim] of the VQ that it was trained for.
  """

  config: RefinerConfig
  params: dict
  codebook: np.ndarray

  def refine(self, images: np.ndarray, codes: np.ndarray, keys: jax.Array) -> np.ndarray:
    """Refines images.

    Args:
      images: uint8[B, h, w, 3], decoded by the VQ.
      codes: int32[B, P] of the images.
      keys: key[B], of the noise of each.

    Returns:
      uint8[B, scale h, scale w, 3].
    """
    conditions = condition(self.config, normalize_pixels(images), jnp.asarray(codes), jnp.asarray(self.codebook))
    noise = jax.vmap(lambda key: jax.random.normal(key, (*conditions.shape[1:3], CHANNELS)))(keys)
    return to_uint8(refine(self.config, self.params, conditions, noise))


def noise_key(seed: int, *indices: int) -> jax.Array:
  """The key of the noise of one image: (seed, prompt index, image index), whatever its batch."""
  return row_key(seed, *indices, NOISE)


def refine_stream(refiner: ImageRefiner, images: Iterable[GeneratedImage], seed: int) -> Iterator[GeneratedImage]:
  """Refines images as they come, one at a time: none depends on its batch."""
  for image in images:
    key = noise_key(seed, image.prompt_index, image.image_index)
    pixels = refiner.refine(image.pixels[None], image.codes[None], key[None])[0]
    yield dataclasses.replace(image, pixels=pixels)
