"""A page of HTML in one file: no scripts, nothing fetched, and all text escaped where it enters.

`element` makes pieces of `Html`. Any other text that is put into one is escaped, so nothing that a model answered or a
file is called becomes a tag. A policy in the page forbids scripts and requests, should one come in all the same.
"""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from janus_jax.reporting.charts import Figure, to_svg

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
# No width is fixed: grids have as many columns as fit, and tables scroll, so that a page can be read at 400 pixels.
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2328; max-width: 1180px; margin: 0 auto; padding: 16px;
  overflow-wrap: anywhere; }
h1 { margin: 0 0 4px; font-size: 26px; line-height: 1.25; } h3 { margin: 18px 0 6px; font-size: 15px; }
h2 { margin: 40px 0 12px; font-size: 20px; border-bottom: 1px solid #d0d7de; }
p { margin: 6px 0; } .note, figcaption { color: #57606a; font-size: 13px; line-height: 1.35; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--cell)), 1fr)); gap: 12px;
  margin: 12px 0; }
.card { border: 1px solid #d0d7de; border-left: 5px solid #8c959f; border-radius: 6px; padding: 8px 12px; }
.card.met { border-left-color: #28a03c; } .card.missed { border-left-color: #b3141d; }
.card b { display: block; font-size: 28px; line-height: 1.3; } .card small { font-size: 15px; font-weight: 400; }
.row { display: flex; flex-wrap: wrap; gap: 8px 16px; align-items: flex-start; }
.row > * { max-width: 100%; min-width: 0; }
.scroll { overflow-x: auto; } pre { background: #f6f8fa; padding: 12px; overflow-x: auto; font-size: 12px; }
table { border-collapse: collapse; margin: 8px 0; font-size: 14px; overflow-wrap: normal; }
th, td { border: 1px solid #d0d7de; padding: 4px 10px; text-align: left; vertical-align: top; }
th { font-weight: 600; background: #f6f8fa; }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
td.failed { font-weight: 600; background: repeating-linear-gradient(45deg, #fff, #fff 5px, #e4e4e4 5px, #e4e4e4 7px); }
td .note { display: block; } td.lines { white-space: pre-line; } .clear { font-weight: 600; color: #1f2328; }
img { max-width: 100%; box-sizing: border-box; } img.chart { width: 100%; border: 1px solid #d0d7de; }
img.pixels { width: 92px; aspect-ratio: 1; image-rendering: pixelated; vertical-align: top; }
img.right { border: 4px solid #28a03c; } img.wrong { border: 4px dashed #b3141d; } figure { margin: 0; width: 100px; }
td.images { white-space: nowrap; } td.images img { width: 52px; margin-right: 3px; max-width: none; }
strong.right::before { content: "\\2713 "; color: #28a03c; } strong.wrong { color: #b3141d; }
strong.wrong::before { content: "\\2717 "; } .card img { float: left; margin-right: 10px; }
.card::after { content: ""; display: block; clear: both; }
@media print { img, tr, figure { break-inside: avoid; } }
"""


class Html(str):
  """Text that is HTML already. What is made of it by `+`, `join` or formatting is plain text again."""

  __slots__ = ()


def element(name: str, /, *content: Any, **attributes: Any) -> Html:
  """<name attributes>content</name>.

  Args:
    name: the tag.
    *content: `Html` as it is, all else escaped.
    **attributes: escaped; None ones are left out. `class_` is class, and `http_equiv` http-equiv.
  """
  given = {key.rstrip('_').replace('_', '-'): value for key, value in attributes.items() if value is not None}
  marks = ''.join(f' {key}="{html.escape(str(value))}"' for key, value in given.items())
  inner = ''.join(item if isinstance(item, Html) else html.escape(str(item)) for item in content)
  return Html(f'<{name}{marks}>' + ('' if name in ('br', 'img', 'meta') else f'{inner}</{name}>'))


def page(title: str, sections: Sequence[tuple[str, Sequence[Html]]]) -> str:
  """The whole file.

  Args:
    title: above everything.
    sections: (heading or '', what stands in it); those with nothing in them are left out.
  """
  kept = [(heading, content) for heading, content in sections if any(content)]
  body = [item for heading, content in kept for item in (element('h2', heading) if heading else Html(), *content)]
  head = element(
    'head',
    element('meta', charset='utf-8'),
    element('meta', http_equiv='Content-Security-Policy', content=POLICY),
    element('meta', name='viewport', content='width=device-width, initial-scale=1'),
    element('title', title),
    element('style', Html(STYLE)),
  )
  return f'<!doctype html>{element("html", head, element("body", element("h1", title), *body), lang="en")}\n'


def note(*content: Any) -> Html:
  return element('p', *content, class_='note')


def table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> Html:
  """A table that scrolls; nothing without rows. Cells that are no <td> yet are put into one."""
  if not rows:
    return Html()
  cells = [
    [cell if isinstance(cell, Html) and cell.startswith('<td') else element('td', cell) for cell in row] for row in rows
  ]
  lines = [element('tr', *(element('th', name) for name in head)), *(element('tr', *line) for line in cells)]
  return element('div', element('table', *lines), class_='scroll')


def grid(items: Sequence[Html], cell: int) -> Html:
  """Columns that are at least `cell` pixels wide where there is room; nothing without items."""
  return element('div', *items, class_='grid', style=f'--cell: {cell}px') if items else Html()


def folded(title: str, *content: Any) -> Html:
  return element('details', element('summary', title), *content)


def image_tag(pixels: np.ndarray, alt: str, right: bool | None = None) -> Html:
  """uint8[h, w, 3], enlarged; with a green frame where it is right and a dashed red one where it is wrong."""
  return _image_tag(Image.fromarray(pixels), 'PNG', 'pixels', alt, right)


def photo_tag(image: Image.Image, alt: str, right: bool | None = None) -> Html:
  """An image in its own size and a tenth of the bytes, with the frame of `image_tag`."""
  return _image_tag(image, 'JPEG', '', alt, right)


def _image_tag(image: Image.Image, kind: str, name: str, alt: str, right: bool | None) -> Html:
  buffer = io.BytesIO()
  image.save(buffer, kind)
  classes = f'{name} { ({True: "right", False: "wrong", None: ""}[right]) }'.strip()
  source = _data(kind.lower(), buffer.getvalue())
  return element('img', class_=classes or None, src=source, alt=alt, title=alt or None)


def charts(figures: Sequence[Figure | None]) -> Html:
  """Charts beside each other; nothing where there is none."""
  return grid([_chart(figure) for figure in figures if figure is not None], 480)


def _chart(figure: Figure) -> Html:
  return element('img', class_='chart', src=_data('svg+xml', to_svg(figure).encode()), alt=figure.get_suptitle())


def _data(kind: str, content: bytes) -> str:
  return f'data:image/{kind};base64,{base64.b64encode(content).decode()}'
