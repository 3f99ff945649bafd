"""Antialiased bicubic resizing: Pillow's, or five times faster.

DeepSeek's processor is Pillow's filter, and images that a checkpoint is asked about go through that. Training data,
where resizing takes most of the time that an image costs, goes through `fast`.
"""

import importlib.util
import math
from collections.abc import Callable

import numpy as np
import PIL
from PIL import Image

from janus_jax.errors import InputError

Box = tuple[int, int, int, int]
# (RGB image, (width, height), (left, top, right, bottom) of the part to resize or None) -> uint8[height, width, 3].
Resize = Callable[[Image.Image, tuple[int, int], Box | None], np.ndarray]
# How far a bicubic filter reaches, in pixels of the smaller of the two grids.
REACH = 2


def pillow(image: Image.Image, size: tuple[int, int], box: Box | None = None) -> np.ndarray:
  """Pillow's own: to the bit what `transformers`' `JanusImageProcessorPil` and DeepSeek's processor compute with the
  same version of it (`columns_first`).
  """
  return np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=box))


def columns_first(source: tuple[int, int], size: tuple[int, int], version: str = PIL.__version__) -> bool:
  """True if Pillow resizes along columns before rows: since 13.0, where the height shrinks by more than twice what the
  width does. `source` is the (width, height) of the whole image, whatever part of it is resized.

  Each pass is rounded to uint8, so the order shows: in up to a quarter of the values, by up to nine levels. The rule is
  what tells one call from two of one axis each (5,294 sizes and boxes, no exception).
  """
  lost_columns, lost_rows = source[0] - size[0], source[1] - size[1]
  return int(version.split('.')[0]) >= 13 and lost_rows > max(2 * lost_columns, 0)


def _read(start: int, stop: int, size: int, limit: int) -> tuple[int, int]:
  """The part of an axis that resizing `start` to `stop` to `size` pixels reads."""
  reach = math.ceil(REACH * max((stop - start) / size, 1))
  return max(start - reach, 0), min(stop + reach, limit)


def fast(image: Image.Image, size: tuple[int, int], box: Box | None = None) -> np.ndarray:
  """The same filter with the processor's vector instructions (cykooz_resizer).

  It takes rows and columns apart, each rounded to uint8, in the order of the installed Pillow. (In one call it has an
  order of its own.) One value in 300 still differs by a level, few by two, as the weights have fewer bits.
  """
  from cykooz_resizer import CropBox, FilterType, ResizeAlg, ResizeOptions, Resizer

  def along(source: Image.Image, size: tuple[int, int], left: int, top: int, right: int, bottom: int) -> Image.Image:
    crop = CropBox(left, top, right - left, bottom - top)
    options = ResizeOptions(ResizeAlg.convolution(FilterType.catmull_rom), False, crop)
    target = Image.new('RGB', size)
    resizer.resize_pil(source, target, options)
    return target

  resizer = Resizer()
  left, top, right, bottom = box or (0, 0, *image.size)
  if columns_first(image.size, size):
    first, last = _read(left, right, size[0], image.width)
    low = along(image, (last - first, size[1]), first, top, last, bottom)
    return np.asarray(along(low, size, left - first, 0, right - first, size[1]))
  first, last = _read(top, bottom, size[1], image.height)
  narrow = along(image, (size[0], last - first), left, first, right, last)
  return np.asarray(along(narrow, size, 0, top - first, size[0], bottom - first))


RESIZES: dict[str, Resize] = {'fast': fast, 'pillow': pillow}


def find_resize(name: str) -> Resize:
  """The function called `name` in configs (`data.resize`). InputError: there is none, or its library is missing."""
  if name not in RESIZES:
    raise InputError(f'data.resize is {name!r}: expected one of {", ".join(RESIZES)}')
  if name == 'fast' and importlib.util.find_spec('cykooz_resizer') is None:
    needed = 'cykooz_resizer (pip install cykooz-resizer)'
    raise InputError(f"data.resize is 'fast', which needs {needed}: expected it, or 'pillow'")
  return RESIZES[name]
