"""A drawing of lines, marks and text, that becomes an <svg> for a page or the pixels of a PNG file, alike.

Curves differ in dash and mark as well as in colour, so that they can be told apart in black and white. The colours are
Okabe and Ito's, which colour-blind people can tell apart.
"""

import dataclasses
import html
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, FAINT, LIGHT = '#1f2328', '#57606a', '#d9dee3'
COLOURS = ('#000000', '#0072b2', '#d55e00', '#009e73', '#cc79a7', '#56b4e9', '#e69f00')
DASHES = ((), (7, 3), (2, 2), (10, 3, 2, 3), (4, 4), (12, 4))
MARKS = ('circle', 'square', 'triangle', 'diamond', 'cross')
# Pixels of a PNG per unit of a drawing.
SCALE = 2
FONT_SIZE = 12
Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Style:
  """What tells the things of one variant from those of others: three properties with different periods."""

  colour: str
  dash: tuple[int, ...]
  mark: str


def style_of(number: int) -> Style:
  """Of the variant in this place of the report; the first is black, without dashes, with circles."""
  return Style(COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)], MARKS[number % len(MARKS)])


@dataclasses.dataclass(frozen=True)
class Line:
  points: tuple[Point, ...]
  colour: str
  width: float = 1.0
  dash: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Mark:
  """A filled shape around a point."""

  at: Point
  shape: str
  colour: str
  radius: float = 4.0


@dataclasses.dataclass(frozen=True)
class Text:
  """`anchor` is where `at` lies: 'start', 'middle' or 'end' of the text, on its base line."""

  at: Point
  text: str
  anchor: str = 'start'
  colour: str = INK
  bold: bool = False


@dataclasses.dataclass(frozen=True)
class Drawing:
  """Things on white, later ones over earlier ones. Units are pixels of the page."""

  width: int
  height: int
  things: tuple[Line | Mark | Text, ...]


def outline(mark: Mark) -> list[Point]:
  """Corners of a mark's shape; of a circle, enough to look like one."""
  (x, y), r = mark.at, mark.radius
  match mark.shape:
    case 'circle':
      return [(x + r * math.cos(a), y + r * math.sin(a)) for a in np.linspace(0, 2 * math.pi, 24, endpoint=False)]
    case 'square':
      return [(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r)]
    case 'triangle':
      return [(x, y - 1.2 * r), (x + 1.15 * r, y + r), (x - 1.15 * r, y + r)]
    case 'diamond':
      return [(x, y - 1.4 * r), (x + 1.4 * r, y), (x, y + 1.4 * r), (x - 1.4 * r, y)]
  a, b = 1.3 * r, 0.5 * r
  corners = [(-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b), (b, a), (-b, a), (-b, b), (-a, b), (-a, -b), (-b, -b)]
  return [(x + dx, y + dy) for dx, dy in corners]


def to_svg(drawing: Drawing) -> str:
  """An <svg> element for a page of HTML, that needs no style sheet."""
  parts = ''.join(_svg(thing) for thing in drawing.things)
  size = f'width="{drawing.width}" height="{drawing.height}" viewBox="0 0 {drawing.width} {drawing.height}"'
  return f'<svg {size} role="img">{parts}</svg>'


def _svg(thing: Line | Mark | Text) -> str:
  match thing:
    case Line(points, colour, width, dash):
      dashes = f' stroke-dasharray="{" ".join(map(str, dash))}"' if dash else ''
      return f'<polyline points="{_pairs(points)}" fill="none" stroke="{colour}" stroke-width="{width}"{dashes}/>'
    case Mark(colour=colour):
      return f'<polygon points="{_pairs(outline(thing))}" fill="{colour}"/>'
  # As a style, which a page's own style sheet does not overrule.
  style = f'fill: {thing.colour}; font: {600 if thing.bold else 400} {FONT_SIZE}px sans-serif'
  place = f'x="{thing.at[0]:.1f}" y="{thing.at[1]:.1f}" text-anchor="{thing.anchor}"'
  return f'<text {place} style="{style}">{html.escape(thing.text)}</text>'


def _pairs(points: Sequence[Point]) -> str:
  return ' '.join(f'{x:.1f},{y:.1f}' for x, y in points)


def to_pixels(drawing: Drawing) -> np.ndarray:
  """uint8[SCALE * height, SCALE * width, 3]."""
  image = Image.new('RGB', (drawing.width * SCALE, drawing.height * SCALE), 'white')
  draw, font = ImageDraw.Draw(image), ImageFont.load_default(FONT_SIZE * SCALE)
  for thing in drawing.things:
    match thing:
      case Line(points, colour, width, dash):
        for piece in dashed(points, dash) if dash else [points]:
          draw.line(_enlarged(piece), colour, max(round(width * SCALE), 1), 'curve')
      case Mark(colour=colour):
        draw.polygon(_enlarged(outline(thing)), colour)
      case Text(at, text, anchor, colour, bold):
        where = {'start': 'ls', 'middle': 'ms', 'end': 'rs'}[anchor]
        draw.text(_enlarged([at])[0], text, colour, font, where, stroke_width=0.5 if bold else 0)
  return np.asarray(image)


def _enlarged(points: Sequence[Point]) -> list[Point]:
  return [(x * SCALE, y * SCALE) for x, y in points]


def dashed(points: Sequence[Point], dash: Sequence[float]) -> Iterator[list[Point]]:
  """The pieces of a line that are drawn: lengths of `dash` in turn, drawn and left out."""
  number, left, piece = 0, dash[0], [points[0]]
  for (ax, ay), (bx, by) in itertools.pairwise(points):
    length, done = math.hypot(bx - ax, by - ay), 0.0
    while length - done > left:
      done += left
      at = (ax + (bx - ax) * done / length, ay + (by - ay) * done / length)
      if number % 2 == 0:
        yield [*piece, at]
      number, piece = number + 1, [at]
      left = dash[number % len(dash)]
    left -= length - done
    piece.append((bx, by))
  if number % 2 == 0 and len(piece) > 1:
    yield piece
