"""Generated images of several variants side by side: the same prompts, the same sampling seeds."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from janus_jax.ablation.preparing import SweepPaths
from janus_jax.ablation.variants import PlannedRun
from janus_jax.conversion.checkpoint import read_json
from janus_jax.reporting.image_grid import JudgedImage, image_grid
from janus_jax.toy.scores import IMAGES_FILE

# Prompts of each skill, from the group of new phrasings where it has one; and seeds of a variant.
PROMPTS_SHOWN, SEEDS_SHOWN = 2, 3
LONGEST_PROMPT = 34  # Letters, in an image.


@dataclasses.dataclass(frozen=True, eq=False)
class Sheet:
  """Generated images by prompt and variant: rows are (skill, prompt, the images of each variant)."""

  variants: tuple[str, ...]
  rows: Sequence[tuple[str, str, Sequence[Sequence[JudgedImage]]]]


def read_sheet(paths: SweepPaths, runs: Sequence[PlannedRun]) -> Sheet | None:
  """Images that finished runs generated; None where there are none."""
  shown: dict[str, list[tuple[PlannedRun, Any, np.ndarray]]] = {}
  for run in runs:
    path = paths.of('scores', run.name, 'scores.json')
    if os.path.exists(path) and len(shown.setdefault(run.variant, [])) < SEEDS_SHOWN:
      with np.load(paths.of('scores', run.name, IMAGES_FILE)) as file:
        shown[run.variant].append((run, read_json(path)['generation_cases'], file['generations']))
  if not shown:
    return None

  cases = next(iter(shown.values()))[0][1]
  rows = []
  for index in _chosen(cases):
    images = [[_judged(run.seed, own[index], pixels[index]) for run, own, pixels in found] for found in shown.values()]
    rows.append((cases[index]['skill'].replace('_', ' '), cases[index]['prompt'], images))
  return Sheet(tuple(shown), rows)


def _judged(seed: int, case: Mapping[str, Any], pixels: np.ndarray) -> JudgedImage:
  return JudgedImage(pixels, case['right'], f'seed {seed}' + ('' if case['right'] else f': {case["reason"]}'))


def _chosen(cases: Sequence[Mapping[str, Any]]) -> list[int]:
  """The first prompts of each skill."""
  by_skill: dict[str, list[int]] = {}
  for index, case in enumerate(cases):
    by_skill.setdefault(case['skill'], []).append(index)
  chosen = []
  for members in by_skill.values():
    new = [index for index in members if cases[index]['group'] == 'new_phrasing']
    chosen += (new or members)[:PROMPTS_SHOWN]
  return chosen


def to_image(sheet: Sheet) -> np.ndarray:
  """uint8[h, w, 3], as `image_grid` gives it."""
  rows = [(f'{skill}\n{prompt[:LONGEST_PROMPT]}', images) for skill, prompt, images in sheet.rows]
  return image_grid(rows, sheet.variants)
