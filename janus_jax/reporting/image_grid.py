"""Images that were judged, in rows with labels, as one image."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

RIGHT, WRONG = (40, 160, 60), (220, 30, 40)
BORDER, DASH, GAP, LABEL, HEAD = 3, 6, 4, 260, 30  # Pixels.


@dataclasses.dataclass(frozen=True, eq=False)
class JudgedImage:
  """A generated image, uint8[size, size, 3]; whether it shows what the prompt asks for; and a word about it."""

  pixels: np.ndarray
  right: bool
  about: str = ''


def image_grid(
  rows: Sequence[tuple[str, Sequence[Sequence[JudgedImage]]]], head: Sequence[str] = (), height: int = 64
) -> np.ndarray:
  """Right images have a whole green frame, wrong ones a red one with gaps.

  Args:
    rows: (label, groups of images); all rows have the same number of groups, and all images one size.
    head: names of the groups, above them.
    height: pixels; an image in the grid has the multiple of its size that comes nearest.

  Returns:
    uint8[h, w, 3].
  """
  size = next(image.pixels.shape[0] for _, groups in rows for group in groups for image in group)
  side = size * max(round(height / size), 1) + 2 * BORDER
  step, top = side + GAP, HEAD if head else 0
  widths = [max(map(len, column)) * step for column in zip(*(groups for _, groups in rows))]
  lefts = [LABEL + 2 * GAP * number + sum(widths[:number]) for number in range(len(widths))]
  sheet = Image.new('RGB', (lefts[-1] + widths[-1], top + len(rows) * step), 'white')
  draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
  for left, name in zip(lefts, head):
    draw.text((left, 8), name, 'black', font)
  for y, (label, groups) in zip(range(top, sheet.height, step), rows):
    draw.multiline_text((8, y + step // 2 - 18), label, 'black', font)
    for left, group in zip(lefts, groups):
      for column, image in enumerate(group):
        sheet.paste(_framed(image, side), (left + column * step, y))
  return np.asarray(sheet)


def _framed(image: JudgedImage, side: int) -> Image.Image:
  dash = np.arange(side) // DASH % 2
  on = (dash[:, None] == dash) | image.right
  frame = np.where(on[..., None], RIGHT if image.right else WRONG, 255).astype(np.uint8)
  inner = Image.fromarray(image.pixels).resize((side - 2 * BORDER,) * 2, Image.Resampling.NEAREST)
  frame[BORDER:-BORDER, BORDER:-BORDER] = inner
  return Image.fromarray(frame)
