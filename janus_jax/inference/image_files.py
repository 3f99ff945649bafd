"""Files of image generation: prompts, images that say how they were made (so that a run can go on), a contact sheet."""

import json
import logging
import math
import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from janus_jax.data.images import contact_sheet, load_image, read_png_text, save_png
from janus_jax.data.sources.files import read_text
from janus_jax.data.text_encodings import split_lines
from janus_jax.errors import InputError
from janus_jax.inference.requests import ImageSettings

SHEET_NAME = 'sheet.png'
PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
PNG_END = b'IEND\xaeB`\x82'
OPTIONAL = ('size', 'grid', 'refiner')  # Settings that images made without them do not name.
SHEET_LIMIT = 100  # Images: as many as a person still looks at, and small enough for any viewer.


def read_prompts(path: str) -> list[dict[str, Any]]:
  """Records {'prompt': text, ...} of a file's prompts: a text a line; of one called .jsonl, such an object a line; of
  .json, a list of texts or of objects. Blank lines are skipped.

  Raises:
    InputError: no such file, no text (`text_encodings`), not JSON where its name says so, something else than prompts,
      or no prompt.
  """
  text, ending = read_text(path), os.path.splitext(path)[1].lower()
  records = {f'{path} line {number}': line.strip() for number, line in enumerate(split_lines(text), 1) if line.strip()}
  if ending == '.json' and records:
    items = _from_json(text, path)
    if not isinstance(items, list):
      raise InputError(f'{path}: a {type(items).__name__}: expected a list of prompts')
    records = {f'{path} item {number}': item for number, item in enumerate(items)}
  elif ending == '.jsonl':
    records = {where: _from_json(line, where) for where, line in records.items()}
  if not records:
    raise InputError(f'{path}: empty: expected prompts, one per line')
  return [_prompt_of(record, where) for where, record in records.items()]


def _from_json(text: str, where: str) -> Any:
  try:
    return json.loads(text)
  except ValueError as error:
    raise InputError(f'{where}: not JSON ({error})') from None


def _prompt_of(record: Any, where: str) -> dict[str, Any]:
  found = record if isinstance(record, dict) else {'prompt': record}
  prompt = found.get('prompt')
  if not isinstance(prompt, str) or not prompt.strip():
    raise InputError(f'{where}: expected {{"prompt": "..."}} or a text')
  return found


def prepare_directory(path: str) -> None:
  """Creates the directory; raises OSError now, and not after an hour's work, if nothing can be written there."""
  os.makedirs(path, exist_ok=True)
  with tempfile.TemporaryFile(dir=path):
    pass


def finished_codes(path: str, settings: dict[str, str], overwrite: bool) -> list[int] | None:
  """The codes of an image made earlier with the same settings; None if it is yet to be generated, or is damaged.

  Args:
    path: PNG.
    settings: text chunks it must have.
    overwrite: whether any other file there counts as yet to be generated.

  Raises:
    InputError: an image of other settings, or another file, is in the way.
  """
  if not os.path.lexists(path):
    return None
  content = pathlib.Path(path).read_bytes() if os.path.isfile(path) else None
  is_png = content is not None and content[: len(PNG_SIGNATURE)] == PNG_SIGNATURE[: len(content)]  # 0 bytes too.
  if is_png and not content.endswith(PNG_END):
    return None
  try:
    found = read_png_text(path)
  except InputError:
    if is_png or overwrite:
      return None
    raise
  expected = {**dict.fromkeys(OPTIONAL), **settings, 'codes': found.get('codes', 'those of the image')}
  different = [key for key, value in expected.items() if found.get(key) != value]
  if different and not overwrite:
    key = different[0]
    wanted = 'none' if expected[key] is None else repr(expected[key])
    raise InputError(f'{path}: has {key} {found.get(key)!r}: expected {wanted}; --overwrite replaces it')
  return None if different else [int(code) for code in found['codes'].split()]


def image_settings(
  prompt: str, indices: tuple[int, int], settings: ImageSettings, dtype: str, checkpoint: str, size: int | None = None
) -> dict[str, str]:
  """Everything a generated image depends on, for the text chunks of its PNG.

  Args:
    prompt: as it was given.
    indices: of the prompt among the prompts, and of the image among the prompt's.
    settings: of the request.
    dtype: what is computed in.
    checkpoint: its path or name.
    size: pixels along a side, where it is not the checkpoint's.
  """
  return {
    'prompt': prompt.strip(),
    'prompt_index': str(indices[0]),
    'image_index': str(indices[1]),
    **{name: str(getattr(settings, name)) for name in ('seed', 'cfg_weight', 'temperature', 'top_k')},
    'dtype': dtype,
    'weights': settings.weights,
    'cache_dtype': settings.cache_dtype or dtype,
    'checkpoint': checkpoint,
    **({'size': str(size)} if size else {}),
  }


def save_image(path: str, pixels: np.ndarray, codes: Sequence[int], settings: dict[str, str]) -> None:
  """Writes uint8[h, w, 3] as a PNG whose text chunks hold the settings and the codes, for `finished_codes`."""
  save_png(path, pixels, {**settings, 'codes': ' '.join(map(str, codes))})


def write_sheet(directory: str, paths: list[str], num_images: int) -> None:
  """Writes a row per prompt, or a square of all images where each prompt has one; at most `SHEET_LIMIT` images."""
  shown = paths[:SHEET_LIMIT]
  if len(shown) < len(paths):
    logging.info('%s shows the first %d of %d images', SHEET_NAME, len(shown), len(paths))
  columns = num_images if 1 < num_images < len(paths) else math.ceil(math.sqrt(len(shown)))
  images = [np.asarray(load_image(path)) for path in shown]
  save_png(os.path.join(directory, SHEET_NAME), contact_sheet(images, columns), {})
