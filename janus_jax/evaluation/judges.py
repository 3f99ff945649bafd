"""Judges from local weights: networks of `transformers` that say what is in images, and what they said, kept in a file.

torch and transformers are imported where a network is loaded (extra `judge`).
"""

import dataclasses
import json
import os
import types
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tqdm
from PIL import Image

from janus_jax.data.images import decode_image
from janus_jax.errors import InputError, one_line, shown
from janus_jax.evaluation.rows import Row, read_appended


@dataclasses.dataclass(frozen=True)
class Judge:
  """A judge of images.

  Attributes:
    names: its networks, by which every figure is named: class, directory, dtype and device of each.
    judge: (directory of images, what identifies a row) -> the rest of the row.
  """

  names: str
  judge: Callable[[str, Row], Row]


@dataclasses.dataclass(frozen=True)
class Images:
  """Images to judge.

  Attributes:
    directory: as `evaluate` writes it.
    data: rows of the benchmark's file, None where none is given.
    allow_partial: whether images may be missing.
  """

  directory: str
  data: Sequence[Row] | None
  allow_partial: bool


def transformers() -> types.ModuleType:
  """The package, which only says what goes wrong. Raises InputError where it or torch is not installed."""
  try:
    import torch  # noqa: F401
    import transformers
  except ImportError as error:
    raise InputError(f'judges are networks of transformers ({error}): pip install janus_jax[judge]') from None
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  return transformers


def find_device() -> str:
  """'cuda' where there is one, else 'cpu'."""
  import torch

  return 'cuda' if torch.cuda.is_available() else 'cpu'


def load(kind: Any, directory: str, **settings: Any) -> Any:
  """`kind.from_pretrained` of a directory; names on the hub are refused. Raises InputError where it fails."""
  from safetensors import SafetensorError

  if not os.path.isdir(directory):
    raise InputError(f'{directory}: no such directory: expected a checkpoint that was downloaded from the hub')
  try:
    return kind.from_pretrained(directory, local_files_only=True, **settings)
  except (OSError, ValueError, RuntimeError, LookupError, TypeError, ImportError, SafetensorError) as error:
    raise InputError(f'{directory}: {one_line(error)}') from None


def load_network(kind: Any, directory: str, dtype: Any) -> Any:
  """A network on the device, for inference. Raises InputError where parameters are missing, which would be random."""
  network, info = load(kind, directory, dtype=dtype, output_loading_info=True)
  if missing := sorted(info['missing_keys']):
    what = f'{type(network).__name__} lacks {len(missing)} parameters, such as {missing[0]}'
    raise InputError(f'{directory}: {what}: expected a checkpoint of this very class')
  return network.eval().to(find_device())


def name_of(network: Any, directory: str) -> str:
  """'Class directory (dtype, device)'."""
  dtype = str(network.dtype).removeprefix('torch.')
  return f'{type(network).__name__} {os.path.basename(os.path.abspath(directory))} ({dtype}, {network.device.type})'


def checksum(path: str) -> int:
  """CRC-32 of a file."""
  with open(path, 'rb') as file:
    return zlib.crc32(file.read())


def open_image(path: str) -> Image.Image:
  """An RGB image. Raises RecordError for a damaged one."""
  with open(path, 'rb') as file:
    return decode_image(file, path)


def judge_missing(path: str, wanted: Sequence[Row], key: Sequence[str], images: Images, judge: Judge) -> list[Row]:
  """Appends the rows that a file does not hold yet, with progress: the same call goes on where it was stopped.

  Args:
    path: .jsonl file.
    wanted: what identifies each row; a row of the file that differs in it is of other images or of another judge.
    key: columns that tell rows apart.
    images: where the images are.
    judge: says the rest of each row.

  Returns:
    All rows, in the order of `wanted`.

  Raises:
    InputError: the file holds rows of other images, or of another judge.
  """
  wanted_rows = {_key(row, key): {**row, 'judge': judge.names} for row in wanted}
  done = {_key(row, key): row for row in read_appended(path)}
  for name, row in done.items():
    differing = [column for column, value in wanted_rows.get(name, {}).items() if row.get(column) != value]
    if name not in wanted_rows or differing:
      about = f'{differing[0]} {shown(row.get(differing[0]))}' if differing else 'an image that is not here'
      raise InputError(f'{path} is of other images or of another judge: {name} has {about}: expected another --out')
  os.makedirs(os.path.dirname(path), exist_ok=True)
  bar = tqdm.tqdm(total=len(wanted_rows), initial=len(done), unit='row', dynamic_ncols=True)
  with open(path, 'a', encoding='utf-8') as file, bar:
    for name, row in wanted_rows.items():
      if name not in done:
        done[name] = {**row, **judge.judge(images.directory, row)}
        file.write(f'{json.dumps(done[name], ensure_ascii=False)}\n')
        file.flush()
        bar.update()
  return [done[name] for name in wanted_rows]


def _key(row: Mapping[str, Any], columns: Sequence[str]) -> str:
  return ' '.join(str(row.get(column)) for column in columns)
