"""Files around drawing: prompts, pictures that say how they were made (so that a run can go on), a contact sheet.

Apart from the command, whose flags can be defined only once in a process.
"""

import json
import logging
import math
import os
import tempfile
from collections.abc import Sequence

import numpy as np

from janus_jax.data.images import contact_sheet, load_image, read_png_text, save_png
from janus_jax.data.sources.files import read_text
from janus_jax.data.text_encodings import split_lines
from janus_jax.errors import InputError

SHEET = 'sheet.png'
SHEET_LIMIT = 100  # Pictures; what a person still looks at, and small enough for any viewer.


def read_prompts(path: str) -> list[str]:
  """The prompts of a text file (one per line) or, by its name, of a .jsonl file. Blank lines are skipped.

  Raises:
    InputError: no such file, no text (`text_encodings`), a line that is not {"prompt": text}, or no prompt at all.
  """
  found = split_lines(read_text(path))
  lines = [(number, line.strip()) for number, line in enumerate(found, start=1) if line.strip()]
  if not lines:
    raise InputError(f'{path}: empty: expected prompts, one per line')
  if not path.endswith('.jsonl'):
    return [line for _, line in lines]
  return [_prompt_of(line, f'{path} line {number}') for number, line in lines]


def _prompt_of(line: str, where: str) -> str:
  try:
    record = json.loads(line)
  except json.JSONDecodeError as error:
    raise InputError(f'{where}: not JSON ({error})') from None
  prompt = record.get('prompt') if isinstance(record, dict) else None
  if not isinstance(prompt, str) or not prompt.strip():
    raise InputError(f'{where}: expected {{"prompt": "..."}}')
  return prompt


def prepare_directory(path: str) -> None:
  """Creates the directory; raises OSError now, and not after an hour's work, if nothing can be written there."""
  os.makedirs(path, exist_ok=True)
  with tempfile.TemporaryFile(dir=path):
    pass


def finished_codes(path: str, settings: dict[str, str], overwrite: bool) -> list[int] | None:
  """The codes of a picture made earlier with the same settings; None if it is yet to be drawn.

  Args:
    path: of the PNG.
    settings: text chunks it must have.
    overwrite: whether any other file there counts as yet to be drawn.

  Raises:
    InputError: a picture of other settings, or another file, is in the way.
  """
  if not os.path.lexists(path):
    return None
  try:
    found = read_png_text(path)
    different = [key for key, value in settings.items() if found.get(key) != value]
    if different:
      key = different[0]
      raise InputError(f'{path}: has {key} {found.get(key)!r}: expected {settings[key]!r}; --overwrite replaces it')
    return [int(code) for code in found['codes'].split()]
  except InputError:
    if overwrite:
      return None
    raise


def save_picture(path: str, pixels: np.ndarray, codes: Sequence[int], settings: dict[str, str]) -> None:
  """Writes uint8[h, w, 3] as a PNG whose text chunks hold the settings and the codes, for `finished_codes`."""
  save_png(path, pixels, {**settings, 'codes': ' '.join(map(str, codes))})


def write_sheet(directory: str, paths: list[str], num_images: int) -> None:
  """A row per prompt, or a square of all pictures where each prompt has one. At most `SHEET_LIMIT` pictures."""
  shown = paths[:SHEET_LIMIT]
  if len(shown) < len(paths):
    logging.info('%s shows the first %d of %d pictures', SHEET, len(shown), len(paths))
  columns = num_images if 1 < num_images < len(paths) else math.ceil(math.sqrt(len(shown)))
  pictures = [np.asarray(load_image(path)) for path in shown]
  save_png(os.path.join(directory, SHEET), contact_sheet(pictures, columns), {})
