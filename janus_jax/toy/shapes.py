"""Scenes of coloured shapes on a grey ground, and their rendering."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from janus_jax.errors import InputError

# What a world may show: it takes the first of each, and of sizes the outer ones first.
SHAPES = ('circle', 'square', 'triangle', 'cross', 'diamond', 'ring')
# Far apart from each other and from the ground; yellow is missing because a light grey ground swallows it.
COLOURS = {
  'red': (220, 30, 40),
  'orange': (255, 150, 20),
  'green': (40, 160, 60),
  'blue': (20, 110, 240),
  'purple': (140, 30, 170),
  'black': (30, 30, 30),
  'cyan': (0, 190, 210),
  'magenta': (230, 30, 200),
}
SIZES = ('small', 'medium', 'large')
# 0.95 of white, everywhere the same: a noisy ground costs a small model its codes.
GROUND = 242
MAX_OBJECTS = 4
# Radius of the circle in a box of half-width 1. A little less than 1, and small and large as they are in World, keep
# the eight outlines of a 24-pixel world as far apart as they get: the nearest two by 2.6 pixels, not by 0.9.
ROUNDNESS = 0.95
HOLE = 0.5  # Of a ring, as a fraction of its radius.
RENDERED_AT_ONCE = 256  # Images, as floats.
# Coverage of a pixel is the fraction of SAMPLES x SAMPLES points that lie inside.
SAMPLES = 8


@dataclasses.dataclass(frozen=True)
class World:
  """Size, layout and splits of the toy world.

  With the defaults every object fills 2 x 2 of the 6 x 6 cells of a VQ of stride 4, and no cell shows two objects.
  size=32, grid=8 keeps that; size=24, grid=12 with small, large and gap doubled puts centres between cells too.

  Attributes:
    size: side of the images in pixels.
    grid: centres lie on the multiples of a step of size / grid pixels.
    num_shapes: of SHAPES, the first ones.
    num_colours: of COLOURS, the first ones.
    num_sizes: 2 (small and large) or 3.
    small: half the width of a small object, in steps.
    large: half the width of a large one, in steps.
    gap: least distance between two objects' boxes, as if both were large, in steps.
    mixture: weights of scenes that have one object, several alike, and two different ones.
    combinations: of colour, shape and size that training never sees, and of number, colour and shape; half as many of
      two shapes and their relation (`scenes.held_out`).
    questions: most questions about an image in a conversation that trains.
    num_train: scenes sampled for training; duplicates are kept. 0: any number, none of them stored.
    num_test: scenes that training never sees, of combinations it does.
    num_held_out: scenes of combinations that training never sees.
    seed: of all scenes.

  Raises:
    InputError: the grid does not always have room for MAX_OBJECTS, the mixture is not of weights, there are fewer
      shapes, colours or sizes, or more combinations are held out than a world can spare.
  """

  size: int = 24
  grid: int = 6
  num_shapes: int = 4
  num_colours: int = 6
  num_sizes: int = 2
  small: float = 0.625
  large: float = 0.85
  gap: float = 0.25
  mixture: tuple[float, float, float] = (0.5, 0.2, 0.3)
  combinations: int = 6
  questions: int = 3
  num_train: int = 8000
  num_test: int = 1000
  num_held_out: int = 500
  seed: int = 0

  def __post_init__(self):
    object.__setattr__(self, 'mixture', tuple(self.mixture))  # A list in a saved config.
    if len(self.mixture) != 3 or min(self.mixture) < 0 or not sum(self.mixture) > 0:
      raise InputError(f'mixture {self.mixture}: expected three weights, none negative, one above zero')
    for name, count, least, most in (
      ('shapes', self.num_shapes, 3, len(SHAPES)),
      ('colours', self.num_colours, 2, len(COLOURS)),
      ('sizes', self.num_sizes, 2, len(SIZES)),
    ):
      if not least <= count <= most:
        raise InputError(f'a world of {count} {name}: expected {least} to {most}')
    # Each is of another colour and shape, which training then shows in another size; and so are as many counts.
    most = max(self.num_colours, self.num_shapes) * (min(self.num_colours, self.num_shapes) // 2)
    if not 1 <= self.combinations <= most:
      where = f'{self.num_colours} colours and {self.num_shapes} shapes'
      raise InputError(f'{self.combinations} combinations held out of {where}: expected 1 to {most}')
    # An object then keeps others from one corner at most, which leaves the fourth object a corner.
    if len(self.positions) < 2 * self.min_distance:
      raise InputError(
        f'a grid of {self.grid} has {len(self.positions)} positions a side: '
        f'expected {2 * self.min_distance} or more for objects of {self.large} steps and gaps of {self.gap}'
      )

  @property
  def shapes(self) -> tuple[str, ...]:
    return SHAPES[: self.num_shapes]

  @property
  def colours(self) -> tuple[str, ...]:
    return tuple(COLOURS)[: self.num_colours]

  @property
  def sizes(self) -> tuple[str, ...]:
    return SIZES if self.num_sizes == len(SIZES) else (SIZES[0], SIZES[-1])

  @property
  def positions(self) -> range:
    """Coordinates in grid steps at which an object of any size lies inside the image."""
    margin = math.ceil(self.large)
    return range(margin, self.grid - margin + 1)

  @property
  def min_distance(self) -> int:
    """Least distance of two centres along x or along y, in grid steps."""
    return math.ceil(2 * self.large + self.gap)

  def radius(self, size: str) -> float:
    """Half the width of an object, in pixels."""
    steps = {'small': self.small, 'medium': (self.small + self.large) / 2, 'large': self.large}
    return self.size / self.grid * steps[size]


@dataclasses.dataclass(frozen=True, order=True)
class Object:
  """One thing in a scene. x grows to the right and y downwards, in grid steps."""

  shape: str
  colour: str
  size: str
  x: int
  y: int


@dataclasses.dataclass(frozen=True)
class Scene:
  """Objects of an image. Their order means nothing: they are kept sorted, so that scenes compare."""

  objects: tuple[Object, ...]

  def __post_init__(self):
    object.__setattr__(self, 'objects', tuple(sorted(self.objects)))


def encode(scene: Scene) -> np.ndarray:
  """A scene as int8[MAX_OBJECTS, 5]: shape, colour, size, x, y; -1 where there is no object."""
  rows = np.full((MAX_OBJECTS, 5), -1, np.int8)
  colours = list(COLOURS)
  for row, item in zip(rows, scene.objects, strict=False):
    row[:] = SHAPES.index(item.shape), colours.index(item.colour), SIZES.index(item.size), item.x, item.y
  return rows


def decode(rows: np.ndarray) -> Scene:
  """The inverse of `encode`."""
  colours = list(COLOURS)
  present = [row for row in rows.tolist() if row[0] >= 0]
  return Scene(tuple(Object(SHAPES[s], colours[c], SIZES[z], x, y) for s, c, z, x, y in present))


def coverage(shape: str, radius: float, x: float, y: float, size: int) -> np.ndarray:
  """Fraction of each pixel that a shape covers: float32[size, size].

  Args:
    shape: one of SHAPES. All fit the square of half-width `radius`.
    radius: in pixels.
    x: centre, in pixels from the left edge.
    y: centre, in pixels from the top edge.
    size: side of the image.
  """
  points = (np.arange(size * SAMPLES, dtype=np.float32) + 0.5) / SAMPLES
  u, v = (points - x)[None, :] / radius, (points - y)[:, None] / radius
  inside = _inside(shape, u, v)
  return inside.reshape(size, SAMPLES, size, SAMPLES).mean((1, 3), dtype=np.float32)


def _inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
  match shape:
    case 'circle':
      return u**2 + v**2 <= ROUNDNESS**2
    case 'square':
      return (abs(u) <= 1) & (abs(v) <= 1)
    case 'triangle':
      return (abs(u) <= (v + 1) / 2) & (v <= 1)
    case 'cross':
      return (np.minimum(abs(u), abs(v)) <= 1 / 3) & (np.maximum(abs(u), abs(v)) <= 1)
    case 'diamond':
      return abs(u) + abs(v) <= 1
    case 'ring':
      return (u**2 + v**2 <= 1) & (u**2 + v**2 >= HOLE**2)
  raise ValueError(f'shape {shape!r}: expected one of {SHAPES}')


@functools.lru_cache(maxsize=4)
def _masks(world: World) -> np.ndarray:
  """float32[shapes, sizes, y, x, size, size]: the coverage of every object that a scene can hold."""
  positions = world.positions
  masks = np.zeros((world.num_shapes, len(SIZES), len(positions), len(positions), world.size, world.size), np.float32)
  pixels = world.size / world.grid
  for s, z, i, j in np.ndindex(masks.shape[:4]):
    centre = positions[j] * pixels, positions[i] * pixels
    masks[s, z, i, j] = coverage(SHAPES[s], world.radius(SIZES[z]), *centre, world.size)
  return masks


def render_scene(world: World, scenes: Sequence[Scene]) -> np.ndarray:
  """Images of scenes, antialiased: uint8[n, size, size, 3]."""
  return render_encoded(world, np.array([encode(scene) for scene in scenes]).reshape(-1, MAX_OBJECTS, 5))


def render_encoded(world: World, rows: np.ndarray) -> np.ndarray:
  """Images of scenes as `encode` gives them, of any number of objects: int8[n, objects, 5]."""
  images = np.empty((len(rows), world.size, world.size, 3), np.uint8)
  for start in range(0, len(rows), RENDERED_AT_ONCE):
    chunk = slice(start, start + RENDERED_AT_ONCE)
    images[chunk] = _render(world, rows[chunk])
  return images


def _render(world: World, rows: np.ndarray) -> np.ndarray:
  masks, palette = _masks(world), np.array(list(COLOURS.values()), np.float32)
  canvas = np.full((len(rows), world.size, world.size, 3), GROUND, np.float32)
  first = world.positions.start
  for slot in range(rows.shape[1]):
    (present,) = np.nonzero(rows[:, slot, 0] >= 0)
    if not len(present):
      continue
    shape, colour, size, x, y = rows[present, slot].T.astype(int)
    alpha = masks[shape, size, y - first, x - first][..., None]
    canvas[present] += alpha * (palette[colour][:, None, None] - canvas[present])
  return np.rint(canvas).astype(np.uint8)
