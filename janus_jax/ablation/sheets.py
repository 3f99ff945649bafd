"""Generated images of several variants side by side: the same prompts, the same sampling seeds."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from janus_jax.ablation.paths import SweepPaths
from janus_jax.ablation.variants import PlannedRun
from janus_jax.conversion.checkpoint import read_json
from janus_jax.reporting.image_grid import JudgedImage, image_grid

# Of each skill, from the group of prompts in new wordings where it has one; and seeds of a variant.
PROMPTS_SHOWN, SEEDS_SHOWN = 2, 3
LONGEST_PROMPT = 34  # Letters, in an image.


@dataclasses.dataclass(frozen=True, eq=False)
class Sheet:
  """Generated images by prompt and variant.

  Attributes:
    variants: columns.
    rows: (skill, prompt, {variant: images}).
  """

  variants: tuple[str, ...]
  rows: tuple[tuple[str, str, Mapping[str, tuple[JudgedImage, ...]]], ...]


def read_sheet(places: SweepPaths, runs: Sequence[PlannedRun]) -> Sheet | None:
  """What finished runs generated; None where nothing was.

  Args:
    places: of the sweep.
    runs: finished ones.
  """
  scored = [run for run in runs if os.path.exists(places.of('scores', run.name, 'scores.json'))]
  variants = tuple(dict.fromkeys(run.variant for run in scored))
  shown = [run for name in variants for run in [run for run in scored if run.variant == name][:SEEDS_SHOWN]]
  if not shown:
    return None
  cases = {run.name: read_json(places.of('scores', run.name, 'scores.json'))['drawing_cases'] for run in shown}
  pixels = {}
  for run in shown:
    with np.load(places.of('scores', run.name, 'pictures.npz')) as file:
      pixels[run.name] = file['drawings']
  rows = []
  for index in _chosen(cases[shown[0].name]):
    images: dict[str, tuple[JudgedImage, ...]] = {}
    for run in shown:
      case = cases[run.name][index]
      about = f'seed {run.seed}' + ('' if case['right'] else f': {case["reason"]}')
      image = JudgedImage(pixels[run.name][index], case['right'], about)
      images[run.variant] = (*images.get(run.variant, ()), image)
    first = cases[shown[0].name][index]
    rows.append((first['skill'].replace('_', ' '), first['prompt'], images))
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
  """uint8[h, w, 3], as `image_grid` gives it."""
  rows = [
    (f'{skill}\n{prompt[:LONGEST_PROMPT]}', [images.get(name, ()) for name in sheet.variants])
    for skill, prompt, images in sheet.rows
  ]
  return image_grid(rows, sheet.variants)
