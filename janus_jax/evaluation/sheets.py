"""Pages of generated images with what their judge saw: GenEval's boxes, by skill; DPG-Bench's failed questions."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from janus_jax.data.images import load_image
from janus_jax.data.whole_files import write_text
from janus_jax.errors import InputError
from janus_jax.evaluation.geneval import Box, read_metadata, seen_boxes
from janus_jax.evaluation.rows import Row
from janus_jax.reporting.charts import COLOURS
from janus_jax.reporting.page import Html, element, note, page, photo_tag

SIDE = 256  # Pixels of an image's width on a page.
FONT = 13
FOLDER = 'sheets'


def write_sheets(
  benchmark: str, images: str, rows: Sequence[Row], readings: Sequence[Mapping[str, Any]], directory: str
) -> list[str]:
  """Writes <directory>/sheets/<skill>.html of GenEval, or sheets/dpg.html.

  Args:
    benchmark: 'geneval' or 'dpg'.
    images: directory of images, as `evaluate` writes it; a row's file is looked for below it by the end of its path.
    rows: as the benchmark prepares them.
    readings: {'read', 'score'} of each row under one rule.
    directory: `score --out`.

  Returns:
    Paths of the pages.

  Raises:
    InputError: an image is not there, or cannot be read.
  """
  pages = _geneval_pages(images, rows, readings) if benchmark == 'geneval' else _dpg_pages(images, rows, readings)
  folder = os.path.join(directory, FOLDER)
  os.makedirs(folder, exist_ok=True)
  paths = []
  for name, (title, sections) in pages.items():
    paths.append(os.path.join(folder, f'{name}.html'))
    write_text(paths[-1], page(title, sections))
  return paths


Pages = dict[str, tuple[str, list[tuple[str, Sequence[Html]]]]]  # Name of a file -> title, sections.


def _geneval_pages(images: str, rows: Sequence[Row], readings: Sequence[Mapping[str, Any]]) -> Pages:
  """A page per skill, on it the images of each prompt in a row."""
  skills: dict[str, dict[str, list[Html]]] = {}
  right: dict[str, list[bool]] = {}
  for number, (row, reading) in enumerate(zip(rows, readings, strict=True), 1):
    metadata = read_metadata(row, number)
    is_right = reading['score'] == 1
    right.setdefault(metadata['tag'], []).append(is_right)
    found = seen_boxes(row, metadata)
    names = list(dict.fromkeys(clause['class'] for clause in metadata.get('include', [])))
    image = draw_boxes(load_image(find_image(images, str(row['index']))), found, names)
    counts = ', '.join(f'{name} {len(boxes)}' for name, boxes in found.items()) or 'nothing'
    lines = [
      element('div', f'found: {counts}'),
      *(element('i', line, element('br')) for line in _lines(reading['read'])),
    ]
    shown = _figure(image, metadata['prompt'], is_right, lines)
    skills.setdefault(metadata['tag'], {}).setdefault(metadata['prompt'], []).append(shown)
  pages: Pages = {}
  for skill, prompts in skills.items():
    title = f'{skill}: {sum(right[skill])} of {len(right[skill])} images right'
    pages[skill] = title, [(prompt, [element('div', *shown, class_='row')]) for prompt, shown in prompts.items()]
  return pages


def _lines(text: str | None) -> list[str]:
  return text.splitlines() if text else []


def draw_boxes(image: Image.Image, found: Mapping[str, Sequence[Box]], names: Sequence[str]) -> Image.Image:
  """An image SIDE pixels wide with the boxes of named classes, each with its colour, where known, class and score."""
  scale = SIDE / image.width
  small = image.resize((SIDE, round(image.height * scale)))
  draw, font = ImageDraw.Draw(small), ImageFont.load_default(FONT)
  for name, colour in zip(names, COLOURS[1:]):
    for box, seen_colour in found.get(name, ()):
      x0, y0, x1, y1 = (float(value) * scale for value in box[:4])
      draw.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=colour, width=2)
      label = ' '.join(filter(None, (seen_colour, name, f'{box[4]:.2f}')))
      at = max(min(x0, SIDE - draw.textlength(label, font)), 0), max(y0, 0)
      draw.rectangle(draw.textbbox(at, label, font), fill=colour)
      draw.text(at, label, 'white', font)
  return small


def _dpg_pages(images: str, rows: Sequence[Row], readings: Sequence[Mapping[str, Any]]) -> Pages:
  """One page, the worst images first, with the questions whose answer was not yes and the crops it was about."""
  found = []
  for row, reading in sorted(zip(rows, readings, strict=True), key=lambda pair: pair[1]['score']):
    image = load_image(find_image(images, row['index']))
    small = image.resize((SIDE, round(image.height * SIDE / image.width)))
    questions = row['questions'] or []
    failed = {question['text']: _failed_crops(row, question['text']) for question in questions}
    lines = [element('li', f'{text} ({", ".join(crops)})') for text, crops in failed.items() if crops]
    prompt = questions[0]['prompt'] if questions else ''
    title = f'{row["prompt"]}: {100 * reading["score"]:.1f}'
    shown = _figure(small, row['prompt'], reading['score'] == 1, ())
    found.append((title, [element('div', shown, element('div', prompt, element('ul', *lines)), class_='row')]))
  about = note(
    'Questions whose answer was not yes, and of which images (1 2 above 3 4). One that depends on such a question '
    'counts as failed, too.'
  )
  return {'dpg': (f'DPG-Bench: {len(rows)} images', [('', [about]), *found])}


def _failed_crops(row: Row, question: str) -> list[str]:
  crops = (answers.get(question, ()) for answers in row['crops'])
  return [str(number) for number, answers in enumerate(crops, 1) if any(answer != 'yes' for answer in answers)]


def _figure(image: Image.Image, alt: str, right: bool, lines: Sequence[Html]) -> Html:
  return element('figure', photo_tag(image, alt, right), element('figcaption', *lines), style=f'width: {SIDE}px')


def find_image(directory: str, name: str) -> Path:
  """The file below a directory with the longest end of a path: a judge may have seen it in another place."""
  parts = [part for part in Path(name).parts if part not in (os.sep, os.pardir)]
  for number in range(len(parts)):
    if (path := Path(directory, *parts[number:])).is_file():
      return path
  raise InputError(f'{directory}: no {name}: expected the images that were judged')
