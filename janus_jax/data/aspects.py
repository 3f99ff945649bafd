"""Aspect buckets: grids of codes for images that are not square, none of more codes than the square has.

The decoder reads one row of codes after another with nothing between them: `generate` of transformers samples codes
alone, so that a token at the end of rows could not be exported. The prompt says in words how the codes lie, as that of
an image with tiles does (`data.tiles`); of a square it says nothing.
"""

import functools
import re
from collections.abc import Sequence

from janus_jax.errors import InputError

Grid = tuple[int, int]  # Rows and columns of codes.
LARGEST_RATIO = 2  # Of the sides of a bucket.
SQUARE = '1:1'


@functools.cache
def aspect_buckets(side: int) -> tuple[Grid, ...]:
  """All buckets of a model whose square has side x side codes, from the widest to the tallest.

  Each number of rows has one number of columns: as many as the codes of the square allow.
  """
  wide = [(rows, side**2 // rows) for rows in range(1, side + 1)]
  wide = [(rows, columns) for rows, columns in wide if columns <= LARGEST_RATIO * rows]
  return (*wide, *((columns, rows) for rows, columns in reversed(wide) if rows != columns))


def nearest_bucket(width: int, height: int, buckets: Sequence[Grid]) -> Grid:
  """The bucket that an image of so many pixels fills with the least of it cut away; of several the squarest."""

  def preference(grid: Grid) -> tuple[float, int]:
    rows, columns = grid
    across, down = width * rows, height * columns
    return min(across, down) / max(across, down), -abs(rows - columns)

  return max(buckets, key=preference)


def parse_aspect(text: str) -> tuple[int, int]:
  """'3:2' -> (3, 2), width and height. Raises InputError for another form, and a ratio that no bucket has."""
  found = re.fullmatch(r'([0-9]{1,5}):([0-9]{1,5})', text)
  width, height = map(int, found.groups()) if found else (0, 0)
  if not 0 < max(width, height) <= LARGEST_RATIO * min(width, height):
    raise InputError(f'aspect is {text!r}: expected WIDTH:HEIGHT from 1:{LARGEST_RATIO} to {LARGEST_RATIO}:1')
  return width, height


def requested_grid(aspect: str, side: int) -> Grid:
  """The bucket for 'WIDTH:HEIGHT' of a model whose square has side x side codes. Raises InputError (`parse_aspect`)."""
  return nearest_bucket(*parse_aspect(aspect), aspect_buckets(side))


def with_grid(prompt: str, grid: Grid | None) -> str:
  """The prompt with the words that say how the codes of its image lie; as it is where they lie in a square (None)."""
  if grid is None or grid[0] == grid[1]:
    return prompt
  return f'{prompt.strip()}\nThe image, {grid[0]} rows of {grid[1]}:'
