"""Reads a drawn picture back into objects, and says whether it is what the prompt asked for (as GenEval does)."""

import dataclasses
import functools
import itertools
import math

import numpy as np
from scipy import ndimage

from janus_jax.data.worlds import captions, shapes
from janus_jax.data.worlds.captions import Description, Part
from janus_jax.data.worlds.shapes import COLOURS, GROUND, SHAPES, SIZES, World

# A pixel belongs to an object if that covers at least this share of it; objects stand a pixel apart or more.
COVERED = 0.55
# Blobs smaller than this share of the smallest object are specks of the decoder, and ignored.
SPECK = 0.25
# Largest root mean square distance (of 0..255 per channel) of a blob's pixels from the mix of a colour and the ground.
MAX_COLOUR_ERROR = 40.0
# Largest share of an object's area by which a blob may differ from it.
MAX_SHAPE_ERROR = 0.5
# Templates are laid to this fraction of a pixel.
FINENESS = 8


@dataclasses.dataclass(frozen=True)
class Seen:
  """One blob of a picture. x and y are its centre, in pixels. What could not be recognised is None."""

  shape: str | None
  colour: str | None
  size: str | None
  x: float
  y: float


@dataclasses.dataclass(frozen=True)
class Verdict:
  """Whether a picture shows what was asked for; if not, the first reason found."""

  passed: bool
  reason: str = ''


def parse(world: World, pixels: np.ndarray) -> list[Seen]:
  """The objects in a picture, from top to bottom and left to right.

  Args:
    world: that the picture should be from.
    pixels: uint8[size, size, 3].
  """
  offset = pixels.astype(np.float32) - GROUND
  palette = np.array(list(COLOURS.values()), np.float32) - GROUND
  # Per pixel and colour: the share of the colour that comes nearest, and how far off it is.
  alphas = (offset @ palette.T / (palette**2).sum(1)).clip(0, 1)
  errors = ((offset[:, :, None] - alphas[..., None] * palette) ** 2).mean(-1)
  alpha = np.take_along_axis(alphas, errors.argmin(-1)[..., None], -1)[..., 0]
  labels, count = ndimage.label(alpha > COVERED)
  blobs = [labels == label for label in range(1, count + 1)]
  smallest = min(_areas(world).values())
  found = [_recognise(world, blob, alphas, errors) for blob in blobs if alpha[blob].sum() > SPECK * smallest]
  return sorted(found, key=lambda item: (item.y, item.x))


def _areas(world: World) -> dict[tuple[str, str], float]:
  """Pixels that each (shape, size) covers."""
  return {key: float(template.sum()) for key, template in _templates(world).items()}


@functools.lru_cache(maxsize=4)
def _templates(world: World) -> dict[tuple[str, str], np.ndarray]:
  """The coverage of each (shape, size) in the middle of a picture."""
  middle = world.size / 2
  pairs = itertools.product(SHAPES, SIZES)
  return {(s, z): shapes.coverage(s, world.radius(z), middle, middle, world.size) for s, z in pairs}


def _recognise(world: World, blob: np.ndarray, alphas: np.ndarray, errors: np.ndarray) -> Seen:
  """A blob's colour, then the shape and size whose template, laid with its centroid on the blob's, differs least."""
  region = ndimage.binary_dilation(blob, np.ones((3, 3), bool))
  colour = errors[region].mean(0).argmin()
  cover = np.where(region, alphas[..., colour], 0)
  x, y = _centroid(cover)
  if math.sqrt(errors[blob].mean(0)[colour]) > MAX_COLOUR_ERROR:
    return Seen(None, None, None, x, y)
  error, shape, size, centre = min(_difference(world, cover, key, x, y) for key in _templates(world))
  name = list(COLOURS)[colour]
  return Seen(shape, name, size, *centre) if error <= MAX_SHAPE_ERROR else Seen(None, name, None, x, y)


def _centroid(cover: np.ndarray) -> tuple[float, float]:
  middles = np.arange(len(cover)) + 0.5
  total = cover.sum()
  return float((cover.sum(0) * middles).sum() / total), float((cover.sum(1) * middles).sum() / total)


def _difference(world: World, cover: np.ndarray, key: tuple[str, str], x: float, y: float):
  """(share of the template's area that differs, shape, size, (x, y) of the centre)."""
  shift_x, shift_y = _shift(world, *key)
  x, y = x - shift_x, y - shift_y
  # The window around the centre that the template is drawn in: what lies outside is empty there.
  half = math.ceil(world.radius(SIZES[-1])) + 2
  left, top = math.floor(x) - half, math.floor(y) - half
  drawn = _drawn(world, *key, *(round((at % 1) * FINENESS) for at in (x, y)), half)
  inside = cover[max(top, 0) : max(top + len(drawn), 0), max(left, 0) : max(left + len(drawn), 0)]
  window = np.zeros_like(drawn)
  window[max(-top, 0) :, max(-left, 0) :][: inside.shape[0], : inside.shape[1]] = inside
  missed = cover.sum() - inside.sum()
  return float((abs(window - drawn).sum() + missed) / drawn.sum()), *key, (x, y)


@functools.lru_cache(maxsize=32)
def _shift(world: World, shape: str, size: str) -> tuple[float, float]:
  """From the centre of a shape to its centroid, in pixels."""
  x, y = _centroid(_templates(world)[shape, size])
  return x - world.size / 2, y - world.size / 2


@functools.lru_cache(maxsize=4096)
def _drawn(world: World, shape: str, size: str, x: int, y: int, half: int) -> np.ndarray:
  """Coverage float32[n, n] (n = 2 half + 1) of a shape centred x / FINENESS, y / FINENESS into the middle pixel."""
  return shapes.coverage(shape, world.radius(size), half + x / FINENESS, half + y / FINENESS, 2 * half + 1)


def judge(description: Description, seen: list[Seen]) -> Verdict:
  """Whether the objects are exactly those described: none missing, none too many, and placed as asked."""
  strange = sum(item.shape is None for item in seen)
  if strange:
    return Verdict(False, f'{strange} of {len(seen)} objects not recognised')
  wanted = sum(part.count for part in description.parts)
  if len(seen) != wanted:
    return Verdict(False, f'{len(seen)} objects: expected {wanted}')
  groups = [[item for item in seen if _matches(part, item)] for part in description.parts]
  for part, group in zip(description.parts, groups, strict=True):
    if len(group) != part.count:
      nouns = captions.plural(_noun(part))
      return Verdict(False, f'{len(group)} {nouns}: expected {part.count}')
  if description.relation is None:
    return Verdict(True)
  found = _relation(*(group[0] for group in groups))
  return Verdict(True) if found == description.relation else Verdict(False, f'is {found}, not {description.relation}')


def _noun(part: Part) -> str:
  return ' '.join(filter(None, (part.size, part.colour, part.shape)))


def _matches(part: Part, item: Seen) -> bool:
  return item.shape == part.shape and part.colour in (None, item.colour) and part.size in (None, item.size)


def _relation(first: Seen, second: Seen) -> str:
  """As `scenes.relation`, on measured centres."""
  dx, dy = first.x - second.x, first.y - second.y
  if abs(dx) > abs(dy):
    return 'left of' if dx < 0 else 'right of'
  return 'above' if dy < 0 else 'below'
