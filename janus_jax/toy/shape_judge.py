"""Reads a generated image back into objects, and says whether it is what the prompt asked for (as GenEval does)."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from janus_jax.toy import captions, shapes
from janus_jax.toy.captions import CaptionPart, Description
from janus_jax.toy.shapes import COLOURS, GROUND, World

# A pixel belongs to an object if that covers at least this fraction of it; objects stand a pixel apart or more.
COVERED = 0.55
# Blobs smaller than this fraction of the smallest object are specks of the decoder, and ignored.
SPECK = 0.25
# Largest root mean square distance (of 0..255 per channel) of a blob's pixels from the mix of a colour and the ground.
MAX_COLOUR_ERROR = 40.0
# Largest fraction of an object's area by which a blob may differ from it.
MAX_SHAPE_ERROR = 0.5
# Templates are laid to this fraction of a pixel.
FINENESS = 8

# Limits of `find_flaw`. Each lies between good and bad images that pass without it, measured at 24 pixels. Good: 2857
# reconstructions of scenes by the toy tokenizer (configs/tiny.py) and 304 generated images of the toy model. Bad: 48
# renderings, one of each object, spoilt in one way. Errors are root mean squares over pixels and channels, in grey
# levels of 0..255; areas are fractions of the smallest object's.
# Error of the ground. Good: 99 % to 11, at most 16. Bad: pale pink (242, 212, 222) 21, 20 levels darker 20, noise of
# 25 levels 18.
MAX_GROUND_ERROR = 18.0
# A pixel of the ground that is off by more is stained, and a stain larger than a SPECK is something that should not be
# there. Good: 99 % to 0.08 (specks of 3 pixels pass). Bad: a second object at 30 % opacity 0.64 or more.
STAINED = 25.0
# The ground begins this many small radii from the pixels of an object.
NEAR = 0.4
# Least colour of an object, summed over its pixels, as a multiple of its rendering's. Good: 99 % from 0.80. Bad: 0.70
# at 70 % opacity, 0.56 for a small triangle without its lower quarter.
MIN_MASS = 0.72
# Coverage that may be missing and too much anywhere in an object, averaged with a Gaussian of BLUR small radii. Good:
# 99 % to 0.26 and 0.30. Bad: 0.33 or more without a quarter at one side, 0.48 with a hole; 0.33 to 0.41 with a shadow
# of 50 %. The tip of a triangle, 6 % of it, is too little to be missed: 0.15.
MAX_MISSING, MAX_EXTRA = 0.3, 0.35
BLUR = 0.24
# Error of an object's CORE, the pixels covered this far, from one colour. Good: 99 % to 23, generated ones at most 25.
# Bad: 34 or more with a half in another colour or with noise of 60.
MAX_UNEVENNESS = 30.0
CORE = 0.6


@dataclasses.dataclass(frozen=True)
class Seen:
  """One blob of an image. x and y are its centre, in pixels. What could not be recognised is None."""

  shape: str | None
  colour: str | None
  size: str | None
  x: float
  y: float


@dataclasses.dataclass(frozen=True)
class Verdict:
  """`right` where an image shows what was asked for; if not, the first reason found."""

  right: bool
  reason: str = ''


def find_objects(world: World, pixels: np.ndarray) -> list[Seen]:
  """The objects in an image uint8[size, size, 3] of this world, from top to bottom and left to right."""
  offset = pixels.astype(np.float32) - GROUND
  palette = np.array([COLOURS[name] for name in world.colours], np.float32) - GROUND
  # Per pixel and colour: the fraction of the colour that comes nearest, and how far off it is.
  alphas = (offset @ palette.T / (palette**2).sum(1)).clip(0, 1)
  errors = ((offset[:, :, None] - alphas[..., None] * palette) ** 2).mean(-1)
  alpha = np.take_along_axis(alphas, errors.argmin(-1)[..., None], -1)[..., 0]
  labels, count = ndimage.label(alpha > COVERED)
  blobs = [labels == label for label in range(1, count + 1)]
  found = [_recognise(world, blob, alphas, errors) for blob in blobs if alpha[blob].sum() > _speck(world)]
  return sorted(found, key=lambda item: (item.y, item.x))


def _speck(world: World) -> float:
  """Area of the largest speck, in pixels."""
  return SPECK * min(float(template.sum()) for template in _templates(world).values())


@functools.lru_cache(maxsize=4)
def _templates(world: World) -> dict[tuple[str, str], np.ndarray]:
  """The coverage of each (shape, size) in the middle of an image."""
  middle = world.size / 2
  pairs = itertools.product(world.shapes, world.sizes)
  return {(s, z): shapes.coverage(s, world.radius(z), middle, middle, world.size) for s, z in pairs}


def _recognise(world: World, blob: np.ndarray, alphas: np.ndarray, errors: np.ndarray) -> Seen:
  """A blob's colour, then the shape and size whose template, laid with its centroid on the blob's, differs least."""
  region = ndimage.binary_dilation(blob, np.ones((3, 3), bool))
  colour = errors[region].mean(0).argmin()
  cover = np.where(region, alphas[..., colour], 0)
  x, y = _centroid(cover)
  if math.sqrt(errors[blob].mean(0)[colour]) > MAX_COLOUR_ERROR:
    return Seen(None, None, None, x, y)
  found = []
  for key in _templates(world):
    shift_x, shift_y = _shift(world, *key)
    centre = x - shift_x, y - shift_y
    template = _lay(world, *key, *centre)
    found.append((float(abs(cover - template).sum() / template.sum()), *key, centre))
  error, shape, size, centre = min(found)
  name = list(COLOURS)[colour]
  return Seen(shape, name, size, *centre) if error <= MAX_SHAPE_ERROR else Seen(None, name, None, x, y)


def _centroid(cover: np.ndarray) -> tuple[float, float]:
  middles = np.arange(len(cover)) + 0.5
  total = cover.sum()
  return float((cover.sum(0) * middles).sum() / total), float((cover.sum(1) * middles).sum() / total)


def _lay(world: World, shape: str, size: str, x: float, y: float) -> np.ndarray:
  """Coverage float32[size, size] of a shape centred on (x, y), to FINENESS; what lies outside of the image is cut."""
  x, y = round(x * FINENESS), round(y * FINENESS)
  half = math.ceil(world.radius(size)) + 2
  template = _template_at(world, shape, size, x % FINENESS, y % FINENESS, half)
  left, top = x // FINENESS + half + 1, y // FINENESS + half + 1
  canvas = np.zeros((world.size + 4 * half + 2,) * 2, np.float32)
  canvas[top : top + len(template), left : left + len(template)] = template
  return canvas[2 * half + 1 :, 2 * half + 1 :][: world.size, : world.size]


@functools.lru_cache(maxsize=32)
def _shift(world: World, shape: str, size: str) -> tuple[float, float]:
  """Vector from the centre of a shape to its centroid, in pixels."""
  x, y = _centroid(_templates(world)[shape, size])
  return x - world.size / 2, y - world.size / 2


@functools.lru_cache(maxsize=4096)
def _template_at(world: World, shape: str, size: str, x: int, y: int, half: int) -> np.ndarray:
  """Coverage float32[n, n] (n = 2 half + 1) of a shape centred x / FINENESS, y / FINENESS into the middle pixel."""
  return shapes.coverage(shape, world.radius(size), half + x / FINENESS, half + y / FINENESS, 2 * half + 1)


def judge_image(world: World, description: Description, pixels: np.ndarray) -> Verdict:
  """Verdict on an image uint8[size, size, 3]: it must show what is described, and nothing that a rendering of it would
  not show.
  """
  seen = find_objects(world, pixels)
  verdict = judge(description, seen)
  flaw = find_flaw(world, pixels, seen) if verdict.right else ''
  return Verdict(False, flaw) if flaw else verdict


def find_flaw(world: World, pixels: np.ndarray, seen: Sequence[Seen]) -> str:
  """The first difference between an image uint8[size, size, 3] and a rendering of its objects `seen`, all recognised,
  that is larger than a decoder makes; '' for none.
  """
  image = pixels.astype(np.float32)
  covers = [_fit(world, image, item) for item in seen]
  reach = max(round(NEAR * world.radius('small')), 1)
  regions = [ndimage.binary_dilation(cover > 0, np.ones((3, 3), bool), reach) for cover in covers]
  ground = ~np.any(regions, axis=0)
  flaw = _ground_flaw(world, image, ground)
  if flaw:
    return flaw
  level = np.median(image[ground], axis=0)
  contrasts = [np.array(COLOURS[item.colour], np.float32) - level for item in seen]
  layers = [cover[..., None] * contrast for cover, contrast in zip(covers, contrasts)]
  rest = image - level - sum(layers)
  # Of each object, the image without the others.
  offsets = [np.where(region[..., None], rest + layer, 0) for region, layer in zip(regions, layers)]
  found = (_object_flaw(world, *known) for known in zip(seen, offsets, covers, contrasts))
  return next(filter(None, found), '')


def _fit(world: World, image: np.ndarray, item: Seen) -> np.ndarray:
  """Coverage float32[size, size] of an object where it fits best, up to half a pixel away: a part that is missing moves
  the centroid by which it was found.
  """
  contrast = np.array(COLOURS[item.colour], np.float32) - GROUND
  around = _lay(world, 'square', item.size, item.x, item.y) > 0
  cover = np.where(ndimage.binary_dilation(around), (image - GROUND) @ contrast / (contrast @ contrast), 0)
  steps = np.arange(-FINENESS // 2, FINENESS // 2 + 1) / FINENESS
  tries = [_lay(world, item.shape, item.size, item.x + dx, item.y + dy) for dx in steps for dy in steps]
  return min(tries, key=lambda template: ((cover - template) ** 2).sum())


def _ground_flaw(world: World, image: np.ndarray, ground: np.ndarray) -> str:
  """A flaw of the pixels bool[size, size] that no object is near."""
  errors = np.where(ground, np.sqrt(((image - GROUND) ** 2).mean(-1)), 0)
  error = math.sqrt((errors[ground] ** 2).mean())
  if error > MAX_GROUND_ERROR:
    return f'the ground is off by {error:.0f} grey levels'
  labels, _ = ndimage.label(errors > STAINED, np.ones((3, 3)))
  largest = max(np.bincount(labels.ravel())[1:], default=0)
  return f'something on the ground: {largest} pixels' if largest > _speck(world) else ''


def _object_flaw(world: World, item: Seen, offset: np.ndarray, cover: np.ndarray, contrast: np.ndarray) -> str:
  """A flaw of one object.

  Args:
    world: the toy world.
    item: the object.
    offset: float32[size, size, 3]: the image less the ground and the other objects; 0 far away.
    cover: float32[size, size] in [0, 1]: coverage of the object's rendering.
    contrast: float32[3]: its colour less the ground.
  """
  name = f'{item.colour} {item.shape}'
  mass = float((offset @ contrast).sum() / (contrast @ contrast) / cover.sum())
  if mass < MIN_MASS:
    return f'the {name} has {100 * mass:.0f} % of its colour'
  # Its own colour, whatever part is missing: decoders shift the colour of an object, but of all of it.
  core = cover >= CORE * cover.max()
  own = np.median(offset[core] / cover[core][:, None], axis=0)
  error = ndimage.gaussian_filter(offset @ own / (own @ own) - cover, BLUR * world.radius('small'))
  if error.min() < -MAX_MISSING:
    return f'a part of the {name} is missing'
  if error.max() > MAX_EXTRA:
    return f'something is attached to the {name}'
  uneven = math.sqrt(((offset - cover[..., None] * own)[core] ** 2).mean())
  return f'the {name} is not of one colour: off by {uneven:.0f} grey levels' if uneven > MAX_UNEVENNESS else ''


def judge(description: Description, seen: list[Seen]) -> Verdict:
  """Verdict on objects, which must be exactly those described: none missing, none too many, and placed as asked."""
  strange = sum(item.shape is None for item in seen)
  if strange:
    return Verdict(False, f'{strange} of {len(seen)} objects not recognised')
  wanted = sum(part.count for part in description.parts)
  if len(seen) != wanted:
    return Verdict(False, f'{len(seen)} objects: expected {wanted}')
  groups = [[item for item in seen if _matches(part, item)] for part in description.parts]
  for part, group in zip(description.parts, groups, strict=True):
    if len(group) != part.count:
      return Verdict(False, f'{len(group)} {captions.plural(part.noun)}: expected {part.count}')
  if description.relation is None:
    return Verdict(True)
  found = _relation(*(group[0] for group in groups))
  return Verdict(True) if found == description.relation else Verdict(False, f'is {found}, not {description.relation}')


def _matches(part: CaptionPart, item: Seen) -> bool:
  return item.shape == part.shape and part.colour in (None, item.colour) and part.size in (None, item.size)


def _relation(first: Seen, second: Seen) -> str:
  """`scenes.relation` on measured centres."""
  dx, dy = first.x - second.x, first.y - second.y
  if abs(dx) > abs(dy):
    return 'left of' if dx < 0 else 'right of'
  return 'above' if dy < 0 else 'below'
