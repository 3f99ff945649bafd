"""Values of an item's fields: texts, class names, images, codes. A value is as its format has it."""

import base64
import functools
import io
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from janus_jax.data.images import decode_image
from janus_jax.data.sources.files import open_file, read_text
from janus_jax.data.text_encodings import decode_text, split_lines
from janus_jax.errors import InputError, RecordError, shown


def find(item: Mapping[str, Any], names: str) -> tuple[str, Any]:
  """The first of the named fields that the item has, and its value; None if it has none of them.

  Names have ';' between them ('jpg;png'); '/' reaches into a dict, or into JSON ('json/caption').
  """
  for name in names.split(';'):
    value: Any = item
    for depth, part in enumerate(name.split('/')):
      if isinstance(value, bytes | str) and depth:
        value = parsed(value, '/'.join(name.split('/')[:depth]))
      if not isinstance(value, Mapping) or part not in value:
        break
      value = value[part]
    else:
      if value is not None:
        return name, value
  return names, None


def required(item: Mapping[str, Any], names: str, reason: str = 'missing field') -> tuple[str, Any]:
  """`find` of a field that must be there. Raises RecordError for the given reason."""
  name, value = find(item, names)
  if value is None:
    raise RecordError(reason, f'{names}: missing: the item has {", ".join(sorted(map(str, item)))}')
  return name, value


def parsed(value: bytes | str, name: str) -> Any:
  """JSON that a field holds as text. Raises RecordError."""
  try:
    return json.loads(value)
  except (ValueError, RecursionError) as error:
    raise RecordError('text', f'{name}: {error}: expected JSON') from None


def string(value: Any, name: str) -> str:
  """Text that UTF-8 can hold; bytes are of any form that `text_encodings` knows. Raises RecordError."""
  try:
    if isinstance(value, bytes):
      return decode_text(value, name)
    if isinstance(value, str):
      value.encode()
      return value
  except UnicodeError as error:  # Half of a surrogate pair is what JSON can hold and UTF-8 cannot.
    raise RecordError('text', f'{name}: {error.reason} at {error.start}: expected UTF-8') from None
  raise RecordError('wrong type', f'{name}: a {type(value).__name__}: expected text')


def sampled_text(item: Mapping[str, Any], names: str, rng: np.random.Generator) -> str:
  """A text, or one of a list of texts, that is not blank. Raises RecordError."""
  name, value = required(item, names)
  if isinstance(value, list | tuple | np.ndarray):
    if not len(value):
      raise RecordError('text', f'{name}: an empty list: expected at least one text')
    value = value[rng.integers(len(value))]
  text = string(value, name)
  if not text.strip():
    raise RecordError('text', f'{name}: empty: expected text')
  return text


@functools.lru_cache(maxsize=16)
def _names(path: str) -> tuple[str, ...]:
  return tuple(line.strip() for line in split_lines(read_text(path)))


def class_name(path: str, value: Any) -> str:
  """The name of a class: a line of a text file, by the class number or its digits (as in `.cls` members of tars).

  Raises:
    RecordError: there is no such class, or its line is blank.
  """
  names, number = _names(path), value
  if isinstance(value, str | bytes) and value.strip().isdigit():
    number = int(value)
  if not isinstance(number, int | np.integer) or isinstance(number, bool) or not 0 <= number < len(names):
    expected = f'expected a number below {len(names)}, the lines of {path}'
    raise RecordError('class', f'class {shown(value)}: {expected}')
  if not names[number].strip():
    raise RecordError('class', f'class {number}: line {number + 1} of {path} is blank: expected its name')
  return names[number]


def listed(value: Any) -> Sequence[Any]:
  """The images of a field: a list of them, one, or none, which is also what '' and a null among others are."""
  values = value if isinstance(value, list | tuple) else [value]
  return [part for part in values if not _is_none(part)]


def _is_none(value: Any) -> bool:
  if isinstance(value, Mapping):  # HuggingFace's {'bytes', 'path'}.
    return not value.get('bytes') and not value.get('path')
  return value is None or (isinstance(value, str) and not value.strip())


def image(value: Any, name: str, folder: str) -> Image.Image:
  """An image as RGB.

  Args:
    value: content, a path, a `data:` URL, HuggingFace's {'bytes', 'path'}, or uint8[h, w, 1 or 3].
    name: name of the field.
    folder: root of a relative path.

  Raises:
    RecordError: 'image missing', 'image damaged', 'image too large', or 'wrong type'.
  """
  if isinstance(value, Mapping):
    value = value.get('bytes') or value.get('path')
  if isinstance(value, str) and value.startswith('data:'):
    value = _content_of_url(value, name)
  if isinstance(value, bytes):
    return decode_image(io.BytesIO(value), name)
  if isinstance(value, str):
    path = os.path.join(folder, value)
    try:
      with open_file(path) as file:
        return decode_image(file, f'{name}: {path}')
    except RecordError:
      raise
    except (InputError, OSError, ValueError) as error:
      why = str(error).removeprefix(f'{path}: ')
      raise RecordError('image missing', f'{name}: {shown(path)[1:-1]}: {why.replace(path, shown(path))}') from None
  if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] in (1, 3):
    return Image.fromarray(np.broadcast_to(value, (*value.shape[:2], 3)))
  raise RecordError('wrong type', f'{name}: a {type(value).__name__}: expected an image, its bytes or its path')


def _content_of_url(url: str, name: str) -> bytes:
  kind, _, content = url.partition(',')
  try:
    if not kind.endswith(';base64'):
      raise ValueError('not base64')
    return base64.b64decode(content, validate=True)
  except ValueError as error:
    raise RecordError('image damaged', f'{name}: {shown(url)}: {error}: expected data:image/...;base64') from None


def grid(value: Any, name: str) -> tuple[int, int]:
  """Two integers, rows and columns of codes. Raises RecordError."""
  found = value.tolist() if isinstance(value, np.ndarray) else value
  if not isinstance(found, list | tuple) or len(found) != 2 or not all(type(part) is int for part in found):
    raise RecordError('codes', f'{name}: {shown(value)}: expected rows and columns')
  return found[0], found[1]


def codes(value: Any, name: str) -> np.ndarray:
  """Little-endian uint16 bytes, or integers, to int32[P]. Raises RecordError."""
  if isinstance(value, bytes) and len(value) % 2 == 0:
    return np.frombuffer(value, '<u2').astype(np.int32)
  try:
    return np.asarray(value).astype(np.int32, casting='same_kind')
  except (TypeError, ValueError):
    raise RecordError('codes', f'{name}: a {type(value).__name__}: expected codes') from None
