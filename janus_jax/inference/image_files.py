"""Files around drawing: prompts, pictures that say how they were made (so that a run can go on), a contact sheet.

Apart from the command, whose flags can be defined only once in a process.
"""

import json
import logging
import math
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from janus_jax.data.images import contact_sheet, load_image, read_png_text, save_png
from janus_jax.data.sources.files import read_text
from janus_jax.data.text_encodings import split_lines
from janus_jax.errors import InputError

SHEET = 'sheet.png'
PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
PNG_END = b'IEND\xaeB`\x82'
SHEET_LIMIT = 100  # Pictures; what a person still looks at, and small enough for any viewer.


def read_prompts(path: str) -> list[str]:
  """The prompts of a file: one a line; of one called .jsonl, {"prompt": text} a line; of .json, a list of texts or of
  such objects. Blank lines are skipped.

  Raises:
    InputError: no such file, no text (`text_encodings`), not JSON where its name says so, something else than prompts,
      or no prompt.
  """
  text = read_text(path)
  lines = [(number, line.strip()) for number, line in enumerate(split_lines(text), start=1) if line.strip()]
  ending = os.path.splitext(path)[1].lower()
  if ending == '.json' and lines:
    records = _from_json(text, path)
    if not isinstance(records, list):
      raise InputError(f'{path}: a {type(records).__name__}: expected a list of prompts')
    prompts = [_prompt_of(record, f'{path} item {number}') for number, record in enumerate(records)]
  elif ending == '.jsonl':
    wheres = [f'{path} line {number}' for number, _ in lines]
    prompts = [_prompt_of(_from_json(line, where), where) for where, (_, line) in zip(wheres, lines)]
  else:
    prompts = [line for _, line in lines]
  if not prompts:
    raise InputError(f'{path}: empty: expected prompts, one per line')
  return prompts


def _from_json(text: str, where: str) -> Any:
  try:
    return json.loads(text)
  except ValueError as error:
    raise InputError(f'{where}: not JSON ({error})') from None


def _prompt_of(record: Any, where: str) -> str:
  prompt = record.get('prompt') if isinstance(record, dict) else record
  if not isinstance(prompt, str) or not prompt.strip():
    raise InputError(f'{where}: expected {{"prompt": "..."}} or a text')
  return prompt


def prepare_directory(path: str) -> None:
  """Creates the directory; raises OSError now, and not after an hour's work, if nothing can be written there."""
  os.makedirs(path, exist_ok=True)
  with tempfile.TemporaryFile(dir=path):
    pass


def finished_codes(path: str, settings: dict[str, str], overwrite: bool) -> list[int] | None:
  """The codes of a picture made earlier with the same settings; None if it is yet to be drawn, or is damaged.

  Args:
    path: of the PNG.
    settings: text chunks it must have.
    overwrite: whether any other file there counts as yet to be drawn.

  Raises:
    InputError: a picture of other settings, or another file, is in the way.
  """
  if not os.path.lexists(path):
    return None
  is_png, is_cut = _begins_and_is_cut(path)
  if is_cut:
    return None
  try:
    found = read_png_text(path)
  except InputError:
    if is_png or overwrite:
      return None
    raise
  expected = {**settings, 'codes': found.get('codes', 'those of the picture')}
  different = [key for key, value in expected.items() if found.get(key) != value]
  if different and not overwrite:
    key = different[0]
    raise InputError(f'{path}: has {key} {found.get(key)!r}: expected {expected[key]!r}; --overwrite replaces it')
  return None if different else [int(code) for code in found['codes'].split()]


def _begins_and_is_cut(path: str) -> tuple[bool, bool]:
  """Whether a file begins as PNGs do (one of 0 bytes does), and whether it then lacks their end."""
  if not os.path.isfile(path):
    return False, False
  with open(path, 'rb') as file:
    content = file.read()
  is_png = content.startswith(PNG_SIGNATURE) or PNG_SIGNATURE.startswith(content)
  return is_png, is_png and not content.endswith(PNG_END)


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
