"""A large image as several of the size that a model understands: the whole, then tiles that show it in detail.

Each is an ordinary image of the prompt, which says how they lie, so released models and both PyTorch layouts take them.
The grid is chosen as DeepSeek-VL2 does it (`select_best_resolution` of its processing_deepseek_vl_v2.py).
"""

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from janus_jax.data.images import GREY, understanding_pixels
from janus_jax.data.prompts import place_images
from janus_jax.data.resizing import Resize, pillow
from janus_jax.data.tokenizer import IMAGE_PLACEHOLDER
from janus_jax.errors import InputError


def choose_grid(width: int, height: int, size: int, most: int) -> tuple[int, int]:
  """(rows, columns), at most `most` tiles of `size` pixels, on which most of an image's pixels can be told apart; of
  several the one that leaves the least of its area empty. (1, 1) where tiles would show no more than one square does.
  """

  def quality(grid: tuple[int, int]) -> tuple[int, int, int]:
    rows, columns = grid
    scale = min(columns * size / width, rows * size / height)
    shown = min(int(width * scale) * int(height * scale), width * height)
    return shown, shown - rows * columns * size**2, -rows * columns

  grids = [(rows, columns) for rows in range(1, most + 1) for columns in range(1, most // rows + 1)]
  return max(grids, key=quality)


def cut_tiles(image: Image.Image, grid: tuple[int, int], size: int, resize: Resize = pillow) -> list[np.ndarray]:
  """The tiles of an RGB image, uint8[size, size, 3] each, row by row: as large as it fits the grid, centred on grey."""
  rows, columns = grid
  scale = min(columns * size / image.width, rows * size / image.height)
  width, height = (max(1, int(side * scale)) for side in image.size)
  canvas = np.full((rows * size, columns * size, 3), GREY, np.uint8)
  top, left = (len(canvas) - height) // 2, (canvas.shape[1] - width) // 2
  canvas[top : top + height, left : left + width] = resize(image, (width, height), None)
  return list(canvas.reshape(rows, size, columns, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3))


def tile_text(grid: tuple[int, int]) -> str:
  """Text of a prompt in the place of an image with so many (rows, columns) of tiles."""
  rows, columns = grid
  if rows * columns == 1:
    return IMAGE_PLACEHOLDER
  where = f'{rows} {"row" if rows == 1 else "rows"} of {columns}'
  return f'{IMAGE_PLACEHOLDER}\nIts parts, {where}: {IMAGE_PLACEHOLDER * (rows * columns)}'


def with_tiles(
  turns: Sequence[str],
  images: Sequence[Image.Image],
  size: int,
  most: int = 1,
  separator: str = '\n',
  resize: Resize = pillow,
) -> tuple[list[str], list[np.ndarray]]:
  """Turns with a placeholder for each image and tile, and these, uint8[size, size, 3], in their order.

  Args:
    turns: of a conversation, or a document alone; `place_images` says where the images go.
    images: RGB.
    size: side of what the understanding encoder takes, in pixels.
    most: tiles of an image beside the whole; 1: none.
    separator: as of `place_images`.
    resize: filter.

  Raises:
    InputError: `most` is less than 1; placeholders that do not match the images.
  """
  if most < 1:
    raise InputError(f'tiles is {most}: expected 1 (none) or more')
  placed, squares = place_images(turns, len(images), separator), []
  texts = []
  for image in images:
    grid = choose_grid(*image.size, size, most)
    squares.append(understanding_pixels(image, size, resize=resize))
    squares += cut_tiles(image, grid, size, resize) if grid != (1, 1) else []
    texts.append(tile_text(grid))
  found = iter(texts)
  return [_replaced(turn, found) for turn in placed], squares


def _replaced(turn: str, texts: Iterator[str]) -> str:
  first, *rest = turn.split(IMAGE_PLACEHOLDER)
  return first + ''.join(next(texts) + part for part in rest)
