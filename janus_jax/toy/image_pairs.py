"""Images of the toy world at two sizes: what a refiner learns from."""

import dataclasses

import numpy as np

from janus_jax.toy import digits, scenes, shapes
from janus_jax.toy.dataset import ENDLESS
from janus_jax.toy.shapes import World

DIGIT_ONE_IN = 4  # One image in so many is a digit, the others are scenes.


class PairedImages:
  """Pairs of one image at the world's size and `scale` times as large, both rendered when they are read.

  Scenes to train on are those that are generated (`scenes.DRAWN`), of which there is no end; others are of `test`.
  """

  def __init__(self, world: World, scale: int, split: str, count: int = ENDLESS):
    """
    Args:
      world: the toy world.
      scale: sides of the larger image, as a multiple.
      split: 'train' or 'test'.
      count: number of images.
    """
    self._small, self._large = world, dataclasses.replace(world, size=scale * world.size)
    self._split, self._count = scenes.DRAWN if split == 'train' else split, count
    self._digits = [digits.load_digits(size, split)[0] for size in (world.size, self._large.size)]

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    """{'small': uint8[size, size, 3], 'large': uint8[scale size, scale size, 3]}."""
    number, kind = divmod(index, DIGIT_ONE_IN)
    if kind == 0:
      small, large = (found[number % len(found)] for found in self._digits)
    else:
      encoded = shapes.encode(scenes.scene_at(self._small, self._split, index))[None]
      small, large = (shapes.render_encoded(world, encoded)[0] for world in (self._small, self._large))
    return {'small': small, 'large': large}
