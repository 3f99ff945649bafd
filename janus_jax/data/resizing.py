"""Antialiased bicubic resizing: as Pillow does it, or five times faster.

DeepSeek's processor is Pillow's filter, and what a checkpoint is asked about goes through that. Training data, where
resizing takes most of the time that an image costs, goes through `fast`.
"""

import importlib.util
import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from janus_jax.errors import InputError

Box = tuple[int, int, int, int]
# (RGB image, (width, height), (left, top, right, bottom) of the part to resize or None) -> uint8[height, width, 3].
Resize = Callable[[Image.Image, tuple[int, int], Box | None], np.ndarray]
# How far a bicubic filter reaches, in pixels of the smaller of the two grids.
REACH = 2


def pillow(image: Image.Image, size: tuple[int, int], box: Box | None = None) -> np.ndarray:
  """Pillow's own: to the bit what `transformers`' `JanusImageProcessorPil` and DeepSeek's processor compute."""
  return np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=box))


def fast(image: Image.Image, size: tuple[int, int], box: Box | None = None) -> np.ndarray:
  """The same filter with the processor's vector instructions (cykooz_resizer).

  Along rows and then along columns, each rounded to uint8, as Pillow works, unless an image is more than twice as high
  as wide. (In one call it goes the other way round, which differs by up to nine levels.) What is left: one value in 300
  differs by a level, as the weights have fewer bits.
  """
  from cykooz_resizer import CropBox, FilterType, ResizeAlg, ResizeOptions, Resizer

  def along(source: Image.Image, size: tuple[int, int], left: int, top: int, right: int, bottom: int) -> Image.Image:
    options = ResizeOptions(
      ResizeAlg.convolution(FilterType.catmull_rom), False, CropBox(left, top, right - left, bottom - top)
    )
    target = Image.new('RGB', size)
    resizer.resize_pil(source, target, options)
    return target

  resizer = Resizer()
  left, top, right, bottom = box or (0, 0, *image.size)
  # The rows that the second pass reads.
  reach = math.ceil(REACH * max((bottom - top) / size[1], 1))
  first, last = max(top - reach, 0), min(bottom + reach, image.height)
  narrow = along(image, (size[0], last - first), left, first, right, last)
  return np.asarray(along(narrow, size, 0, top - first, size[0], bottom - first))


RESIZES: dict[str, Resize] = {'fast': fast, 'pillow': pillow}


def find_resize(name: str) -> Resize:
  """The function called `name` in configs (`data.resize`).

  Raises:
    InputError: there is none, or what it needs is not installed.
  """
  if name not in RESIZES:
    raise InputError(f'data.resize is {name!r}: expected one of {", ".join(RESIZES)}')
  if name == 'fast' and importlib.util.find_spec('cykooz_resizer') is None:
    raise InputError(
      "data.resize is 'fast', which needs cykooz_resizer (pip install cykooz-resizer): expected it, or 'pillow'"
    )
  return RESIZES[name]
