"""Images on the host: files to RGB, RGB to the uint8 squares that the two encoders take, and back to files.

Everything stays uint8: (x / 255 - 0.5) / 0.5 happens on the device, so that a quarter of the bytes travel.
"""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Mapping, Sequence
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from janus_jax.data import pointers
from janus_jax.data.image_metadata import without_metadata
from janus_jax.data.resizing import Resize, pillow
from janus_jax.data.whole_files import replacing
from janus_jax.errors import InputError, RecordError, one_line

# Pillow reads more than these, but some of the others start programs (EPS runs Ghostscript).
FORMATS = ('PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM', 'JPEG2000', 'AVIF')
# 11,585 x 11,585: more than a 108-megapixel phone photo, 512 MiB once decoded with transparency.
MAX_PIXELS = 2**27
# int(0.5 * 255), as the original truncates Janus's mean of 0.5.
GREY = 127
# `min_size` of the released preprocessor configs.
MIN_SIDE = 14
# EXIF orientation -> what undoes it (EXIF 2.32, tag 0x0112).
UPRIGHT = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
# Raised by Pillow's readers on damaged files (seen by fuzzing); they have no common base class.
DAMAGE = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, EOFError)
DAMAGE += (struct.error, zlib.error, AssertionError, AttributeError, Image.DecompressionBombError)


def load_image(path: str | os.PathLike) -> Image.Image:
  """Reads an image file as RGB (`decode_image`). InputError: it cannot be read, or what `decode_image` raises."""
  try:
    with open(path, 'rb') as file:
      return decode_image(file, str(path))
  except OSError as error:
    raise InputError(f'{path}: {error.strerror or error}: expected an image file') from None


def decode_image(file: BinaryIO, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
  """Decodes one image to RGB.

  Two things differ from the original (`janus/utils/io.py`), which calls `Image.open(...).convert('RGB')` and no more:
  a rotation stored in EXIF is applied, and transparency is laid over white, where `convert` would uncover whatever
  colour the invisible pixels hold. 16-bit channels keep their upper byte, grey ones too (`convert` clips those at 255).
  CMYK is converted without a colour profile, as there. An animation gives its first frame. Metadata are left out
  before Pillow sees the file, but for what says which way is up: damaged or huge ones cost no pixels. An image of more
  than `max_pixels` is refused by its header, before any pixel is decoded.

  Raises:
    RecordError: 'image too large', or 'image damaged' for no bytes, not one of `FORMATS`, pixels that are cut off or of
      no fixed range.
  """
  # The filter names Pillow alone: should threads restore filters out of order, no other warnings go missing.
  with warnings.catch_warnings():
    warnings.filterwarnings('ignore', module=r'PIL\.')
    with _open(file, name, max_pixels) as image:
      try:
        image.load()
        return _upright(_to_rgb(image, name), image)
      except RecordError:
        raise
      except DAMAGE as error:
        raise RecordError('image damaged', f'{name}: damaged {image.format} image ({one_line(error)})') from None


def _open(file: BinaryIO, name: str, max_pixels: int) -> Image.Image:
  """Reads the header only."""
  file.seek(0)
  data = file.read()
  if not data:
    raise RecordError('image damaged', f'{name}: 0 bytes: expected an image')
  try:
    image = Image.open(io.BytesIO(without_metadata(data)), formats=FORMATS)
  except UnidentifiedImageError:
    pointers.check_content(data[: pointers.HEAD], name)
    expected = f'expected an image ({", ".join(FORMATS)})'
    raise RecordError('image damaged', f'{name}: begins with {data[:16]!r}: {expected}') from None
  except Image.DecompressionBombError as error:  # Pillow's own limit, which lies above MAX_PIXELS.
    raise _too_large(name, one_line(error), max_pixels) from None
  except DAMAGE as error:
    raise RecordError('image damaged', f'{name}: damaged image ({one_line(error)})') from None
  if image.width * image.height > max_pixels:
    image.close()
    raise _too_large(name, f'{image.width} x {image.height} pixels', max_pixels)
  return image


def _too_large(name: str, size: str, max_pixels: int) -> RecordError:
  return RecordError('image too large', f'{name}: {size}: expected at most {max_pixels} pixels')


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
  # Pillow opens 16-bit PGM as 32-bit integers scaled to 65535; elsewhere such integers have no agreed range.
  if image.mode.startswith('I;16') or (image.mode == 'I' and image.format == 'PPM'):
    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
  if image.mode in ('I', 'F', 'LAB'):
    message = f'{name}: pixels of Pillow mode {image.mode!r}: expected integers of 1, 8 or 16 bits, not Lab'
    raise RecordError('image damaged', message)
  if not image.has_transparency_data:
    return image.convert('RGB')
  white = Image.new('RGBA', image.size, 'white')
  return Image.alpha_composite(white, image.convert('RGBA')).convert('RGB')


def _upright(pixels: Image.Image, image: Image.Image) -> Image.Image:
  try:
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
  except DAMAGE:  # The pixels are sound; that they should be rotated is then unknown.
    return pixels
  known = isinstance(orientation, int) and orientation in UPRIGHT
  return pixels.transpose(UPRIGHT[orientation]) if known else pixels


def understanding_pixels(
  image: Image.Image, size: int, min_side: int = MIN_SIDE, resize: Resize = pillow
) -> np.ndarray:
  """Resizes an RGB image for the understanding encoder: its long side to `size`, centred on a grey square.

  `VLMImageProcessor` of DeepSeek's `janus/models/image_processing_vlm.py`, with Pillow's resize bit for bit: sides are
  truncated to integers (`transformers` rounds), and the short side of a long thin image raised to `min_side`.

  Returns:
    uint8[size, size, 3].
  """
  longest = max(image.size)
  # This order of operations, in double precision, decides which way a side on the edge of an integer falls.
  width, height = (max(int(side / longest * size), min(min_side, size)) for side in image.size)
  resized = resize(image, (width, height), None)
  square = np.full((size, size, 3), GREY, np.uint8)
  top, left = (size - height) // 2, (size - width) // 2
  square[top : top + height, left : left + width] = resized
  return square


def generation_pixels(image: Image.Image, size: int, resize: Resize = pillow) -> np.ndarray:
  """Resizes an RGB image for the VQ encoder: short side to `size`, the long side's middle (Janus paper, 4.1).

  Returns:
    uint8[size, size, 3].
  """
  return covering_pixels(image, (size, size), resize)


def covering_pixels(image: Image.Image, shape: tuple[int, int], resize: Resize = pillow) -> np.ndarray:
  """Resizes an RGB image so that it just covers (height, width), and crops the middle.

  Cropping comes first, which gives the same image but for the filter's reach at the two cuts, keeps pixels square
  (exactly where the shape is) and costs no memory on a long thin image. The papers do not say where they crop.

  Returns:
    uint8[height, width, 3].
  """
  height, width = shape
  across = min(image.width, max(round(image.height * width / height), 1))
  down = min(image.height, max(round(image.width * height / width), 1))
  left, top = (image.width - across) // 2, (image.height - down) // 2
  return resize(image, (width, height), (left, top, left + across, top + down))


def to_uint8(pixels: np.ndarray) -> np.ndarray:
  """Decoder output, float[..., 3] around [-1, 1], to uint8[..., 3]: clipped, then truncated, as the original does."""
  return np.clip((np.asarray(pixels, np.float32) + 1) / 2 * 255, 0, 255).astype(np.uint8)


def contact_sheet(images: Sequence[np.ndarray], columns: int, gap: int = 8) -> np.ndarray:
  """Lays out one or more uint8[h, w, 3] row by row on white, `gap` pixels between neighbours.

  Returns:
    uint8[rows * h + (rows - 1) * gap, columns * w + (columns - 1) * gap, 3], columns being at most len(images).
  """
  stacked = np.stack(images)
  count, height, width, _ = stacked.shape
  columns = min(columns, count)
  rows = -(-count // columns)
  sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
  for index, image in enumerate(stacked):
    top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
    sheet[top : top + height, left : left + width] = image
  return sheet


def save_png(path: str | os.PathLike, pixels: np.ndarray, text: Mapping[str, str]) -> None:
  """Writes a PNG of uint8[h, w, 3], in place of an existing file. It appears whole or not at all.

  Its text chunks hold `text`, keyword (1 to 79 Latin-1 characters) to value: tEXt where Latin-1 can hold it, else iTXt.

  Raises:
    InputError: the file cannot be written (no such directory, no permission, no space).
  """
  chunks = PngInfo()
  for keyword, value in text.items():
    chunks.add_text(keyword, value)
  try:
    with replacing(path, shared=True) as partial:
      Image.fromarray(pixels).save(partial, 'PNG', pnginfo=chunks)
  except OSError as error:
    raise InputError(f'{path}: cannot be written: {error.strerror or error}') from None


def read_png_text(path: str | os.PathLike) -> dict[str, str]:
  """The text chunks of a whole PNG (a chunk may follow the pixels, so these are decoded too).

  Raises:
    InputError: no such file, not a PNG, or a damaged one.
  """
  try:
    with Image.open(path, formats=('PNG',)) as image:
      return {keyword: str(value) for keyword, value in image.text.items()}
  except DAMAGE as error:
    raise InputError(f'{path}: cannot be read as PNG: {one_line(error)}') from None
