"""Drawings of several variants side by side: the same prompts, the same seeds of drawing."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from janus_jax.ablation.paths import SweepPaths
from janus_jax.ablation.variants import PlannedRun
from janus_jax.conversion.checkpoint import read_json
from janus_jax.toy.scoring import RIGHT, WRONG

# Of each skill, from the group of prompts in new wordings where it has one; and seeds of a variant.
PROMPTS_SHOWN, SEEDS_SHOWN = 2, 3
SIDE, BORDER, GAP, LABEL = 72, 3, 6, 250  # Of the image, in pixels.


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
  """A drawing.

  Attributes:
    pixels: uint8[size, size, 3].
    right: whether it shows what the prompt asks for.
    reason: what is wrong with it.
    seed: of the run.
  """

  pixels: np.ndarray
  right: bool
  reason: str
  seed: int


@dataclasses.dataclass(frozen=True, eq=False)
class Sheet:
  """Pictures by prompt and variant.

  Attributes:
    variants: columns.
    rows: (skill, prompt, {variant: pictures}).
  """

  variants: tuple[str, ...]
  rows: tuple[tuple[str, str, Mapping[str, tuple[Picture, ...]]], ...]


def read_sheet(places: SweepPaths, runs: Sequence[PlannedRun]) -> Sheet | None:
  """What finished runs drew; None where nothing was.

  Args:
    places: of the sweep.
    runs: finished ones.
  """
  drawn = [run for run in runs if os.path.exists(places.of('scores', run.name, 'scores.json'))]
  variants = tuple(dict.fromkeys(run.variant for run in drawn))
  shown = [run for name in variants for run in [run for run in drawn if run.variant == name][:SEEDS_SHOWN]]
  if not shown:
    return None
  cases = {run.name: read_json(places.of('scores', run.name, 'scores.json'))['drawing_cases'] for run in shown}
  pixels = {}
  for run in shown:
    with np.load(places.of('scores', run.name, 'pictures.npz')) as file:
      pixels[run.name] = file['drawings']
  rows = []
  for index in _chosen(cases[shown[0].name]):
    pictures: dict[str, tuple[Picture, ...]] = {}
    for run in shown:
      case = cases[run.name][index]
      picture = Picture(pixels[run.name][index], case['right'], case['reason'], run.seed)
      pictures[run.variant] = (*pictures.get(run.variant, ()), picture)
    first = cases[shown[0].name][index]
    rows.append((first['skill'].replace('_', ' '), first['prompt'], pictures))
  return Sheet(variants, tuple(rows))


def _chosen(cases: Sequence[Mapping[str, Any]]) -> list[int]:
  """The first prompts of each skill."""
  of: dict[str, list[int]] = {}
  for index, case in enumerate(cases):
    of.setdefault(case['skill'], []).append(index)
  chosen = []
  for members in of.values():
    new = [index for index in members if cases[index]['group'] == 'new_wording']
    chosen += (new or members)[:PROMPTS_SHOWN]
  return chosen


def to_image(sheet: Sheet) -> np.ndarray:
  """uint8[h, w, 3]. Right drawings have a whole green frame, wrong ones a red one with gaps."""
  seeds = max(len(pictures) for _, _, of in sheet.rows for pictures in of.values())
  cell = seeds * (SIDE + GAP) + 2 * GAP
  image = Image.new('RGB', (LABEL + cell * len(sheet.variants), 30 + (SIDE + GAP) * len(sheet.rows)), 'white')
  draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
  for column, name in enumerate(sheet.variants):
    draw.text((LABEL + column * cell, 8), name, 'black', font)
  for row, (skill, prompt, of) in enumerate(sheet.rows):
    top = 30 + row * (SIDE + GAP)
    draw.multiline_text((8, top + 16), f'{skill}\n{prompt[:34]}', 'black', font)
    for column, name in enumerate(sheet.variants):
      for number, picture in enumerate(of.get(name, ())):
        _paste(image, picture, LABEL + column * cell + number * (SIDE + GAP), top)
  return np.asarray(image)


def _paste(image: Image.Image, picture: Picture, left: int, top: int) -> None:
  draw, far = ImageDraw.Draw(image), SIDE - BORDER
  length, step = (SIDE, SIDE) if picture.right else (6, 11)
  for at in range(0, SIDE - 5, step):
    for side in (0, far):
      size = (length - 1, BORDER - 1)
      for x, y, dx, dy in ((at, side, *size), (side, at, *size[::-1])):
        draw.rectangle((left + x, top + y, left + x + dx, top + y + dy), RIGHT if picture.right else WRONG)
  inner = Image.fromarray(picture.pixels).resize((SIDE - 2 * BORDER,) * 2, Image.Resampling.NEAREST)
  image.paste(inner, (left + BORDER, top + BORDER))
