"""What a stored item says: fields of any format to the records that `data.examples` takes.

An item is a dict as its format has it: strings or UTF-8 bytes, images as file content, arrays or paths, lists of them.
Which field means what stands in the run's config (`Fields`). What there is to choose (which of several captions, which
question, whether a caption is cut) is chosen anew in each epoch.
"""

import abc
import dataclasses
import functools
import io
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np
from PIL import Image

from janus_jax.data.images import decode_image, generation_pixels, understanding_pixels
from janus_jax.data.resizing import Resize, pillow
from janus_jax.data.sources.files import open_file, read_text
from janus_jax.data.text_encodings import decode_text, split_lines
from janus_jax.data.tokenizer import IMAGE_PLACEHOLDER
from janus_jax.errors import InputError, RecordError

QUESTIONERS, ANSWERERS = ('human', 'user', '<|User|>', 'User'), ('gpt', 'assistant', '<|Assistant|>', 'Assistant')
# What LLaVA writes where an image belongs.
LLAVA_IMAGE = '<image>'
# A sentence ends at the first of these that is followed by space: 'a 1.5 m dog. It barks.'
SENTENCE_END = re.compile(r'(?<=[.!?])\s')


@dataclasses.dataclass(frozen=True)
class Fields:
  """Which field of an item holds what. Names may reach into nested dicts: 'captions/text'.

  Attributes:
    image: content, array or path of the image, or a list of them; '' for items without.
    image_folder: what paths are relative to.
    text: of a text source: the document.
    prompt: of a generation source: the caption or class, or a list of which one is drawn.
    codes: of a generation source whose images are encoded already (`janus_jax.tokenize`): uint16 bytes; '' for pixels.
    answer: of an understanding source with one question per image: the answer.
    conversations: of an understanding or a text source: turns, as LLaVA or ShareGPT have them ({'from', 'value'}), as
      chat messages ({'role', 'content'}), or as plain strings, question first. Turns of a system are left out: the
      source has its own. '' for items without, and for the field 'conversations' of an understanding source.
    interleaved: of an understanding source: a document with images in it, either a text in which `<image>` or
      `<image_placeholder>` stands for each of the images in `image`, or a list of parts, {'type': 'text', 'text': ...}
      and {'type': 'image', 'image': ...}. An image part without an image of its own stands for one of those in `image`.
    questions: asked where `answer` is given; one is sampled. Of a raw source, what stands between image and answer.
    wordings: what a prompt is put into, '{}' being its place; one is sampled.
    names: a text file whose line n is the name of class n, where the prompt is a number.
    first_sentence: share of the prompts that are cut after their first sentence (0.25 in the Janus paper).
  """

  image: str = 'image'
  image_folder: str = ''
  text: str = 'text'
  prompt: str = 'prompt'
  codes: str = ''
  answer: str = ''
  conversations: str = ''
  interleaved: str = ''
  questions: tuple[str, ...] = ('Describe the image in detail.',)
  wordings: tuple[str, ...] = ('{}',)
  names: str = ''
  first_sentence: float = 0.0

  def __post_init__(self):
    if not 0 <= self.first_sentence <= 1:
      raise InputError(f'first_sentence is {self.first_sentence}: expected a share from 0 to 1')
    for wording in self.wordings:
      if wording.count('{}') != 1:
        raise InputError(f'wording {wording!r}: expected one {{}} in it')
    if not self.questions or not self.wordings:
      raise InputError('questions and wordings: expected at least one of each')


class Numbered:
  """Items with their numbers, (int, item), by which messages name them."""

  def __init__(self, items: Sequence[Mapping[str, Any]]):
    self._items = items

  def __len__(self) -> int:
    return len(self._items)

  def __getitem__(self, index: int) -> tuple[int, Mapping[str, Any]]:
    try:
      return index, self._items[index]
    except RecordError as error:
      raise RecordError(error.reason, f'item {index}: {error}') from None
    except (InputError, OSError, ValueError) as error:  # What readers of damaged files raise.
      raise RecordError('unreadable', f'item {index}: {error}') from None


class _RecordOfItem(grain.transforms.RandomMap):
  """Names the item in the message where it cannot be used."""

  def random_map(self, numbered: tuple[int, Mapping[str, Any]], rng: np.random.Generator) -> dict[str, Any]:
    number, item = numbered
    try:
      return self.record(item, rng)
    except RecordError as error:
      raise RecordError(error.reason, f'item {number}: {error}') from None

  @abc.abstractmethod
  def record(self, item: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """What the item becomes. Raises RecordError."""


@dataclasses.dataclass(frozen=True)
class UnderstandingRecord(_RecordOfItem):
  """An item to {'images': [uint8[size, size, 3]], 'turns': [question, answer, ...]}, or with 'text' for the turns.

  Attributes:
    fields: of the source.
    size: of the images.
    resize: how they get it.
    template: 'chat' for turns. 'raw' for a text: the question, if there is one, and the answer; of conversations, which
      must have one question each, the answer alone.
  """

  fields: Fields
  size: int
  resize: Resize = pillow
  template: str = 'chat'

  def record(self, item: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    fields = self.fields
    values = _optional(item, fields.image)
    if fields.interleaved:
      text, values = _interleaved(_required(item, fields.interleaved), values, fields.interleaved)
      return {'images': self._pixels(values), 'text': text}
    images = self._pixels(values)
    if fields.answer:
      said = [fields.questions[rng.integers(len(fields.questions))], _drawn_text(item, fields.answer, rng).strip()]
    else:
      name = fields.conversations or 'conversations'
      said = _turns(_required(item, name), name)
    if self.template == 'chat':
      return {'images': images, 'turns': said}
    if len(said) != 2:
      raise RecordError('turns', f'{name}: {len(said)} turns: expected a question and its answer in a raw source')
    return {'images': images, 'text': ''.join(said) if fields.answer else said[1]}

  def _pixels(self, values: Any) -> list[np.ndarray]:
    return [understanding_pixels(image, self.size, resize=self.resize) for image in _images(values, self.fields)]


@dataclasses.dataclass(frozen=True)
class GenerationRecord(_RecordOfItem):
  """An item to {'prompt': str, 'image': uint8[size, size, 3]}, or with 'codes': int32[P] in the image's place."""

  fields: Fields
  size: int
  resize: Resize = pillow

  def record(self, item: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    prompt = _prompt(item, self.fields, rng)
    if self.fields.codes:
      return {'prompt': prompt, 'codes': _codes(_required(item, self.fields.codes), self.fields.codes)}
    images = _images(_required(item, self.fields.image), self.fields)
    if len(images) != 1:
      raise RecordError('image', f'{self.fields.image}: {len(images)} images: expected one to draw')
    return {'prompt': prompt, 'image': generation_pixels(images[0], self.size, self.resize)}


@dataclasses.dataclass(frozen=True)
class TextRecord(_RecordOfItem):
  """An item to {'text': str}, or to {'turns': [question, answer, ...]}."""

  fields: Fields

  def record(self, item: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    if name := self.fields.conversations:
      return {'turns': _turns(_required(item, name), name)}
    return {'text': _drawn_text(item, self.fields.text, rng)}


class ToEncode:
  """Items of a generation source as `janus_jax.tokenize` takes them: {'image', 'prompt': str, 'key': str}.

  What training draws anew in each epoch is left to it: of several captions the first is kept, uncut and unworded.
  """

  def __init__(self, items: Sequence[Mapping[str, Any]], fields: Fields):
    self._items, self._fields = items, fields

  def __len__(self) -> int:
    return len(self._items)

  def __getitem__(self, index: int) -> dict[str, Any]:
    item, fields = self._items[index], self._fields
    image, prompt = _required(item, fields.image), _required(item, fields.prompt)
    if isinstance(image, str):
      image = os.path.join(fields.image_folder, image)
    if fields.names:
      prompt = _class_name(fields.names, prompt)
    elif isinstance(prompt, list | tuple | np.ndarray) and len(prompt):
      prompt = prompt[0]
    return {'image': image, 'prompt': _string(prompt, fields.prompt), 'key': str(item.get('__key__', index))}


def _prompt(item: Mapping[str, Any], fields: Fields, rng: np.random.Generator) -> str:
  if fields.names:
    text = _class_name(fields.names, _required(item, fields.prompt))
  else:
    text = _drawn_text(item, fields.prompt, rng)
  if rng.random() < fields.first_sentence:
    text = SENTENCE_END.split(text.strip(), maxsplit=1)[0]
  return fields.wordings[rng.integers(len(fields.wordings))].format(text)


def _optional(item: Mapping[str, Any], name: str) -> Any:
  """The value of a field, None if it is missing."""
  value: Any = item
  for part in name.split('/'):
    if not isinstance(value, Mapping) or part not in value:
      return None
    value = value[part]
  return value


def _required(item: Mapping[str, Any], name: str) -> Any:
  value = _optional(item, name)
  if value is None:
    raise RecordError('missing field', f'{name}: missing: the item has {", ".join(sorted(map(str, item)))}')
  return value


def _string(value: Any, name: str) -> str:
  if isinstance(value, bytes):
    return decode_text(value, name)
  if not isinstance(value, str):
    raise RecordError('wrong type', f'{name}: a {type(value).__name__}: expected text')
  return value


def _drawn_text(item: Mapping[str, Any], name: str, rng: np.random.Generator) -> str:
  """A text, or one of a list of texts."""
  value = _required(item, name)
  if isinstance(value, list | tuple | np.ndarray):
    if not len(value):
      raise RecordError('text', f'{name}: an empty list: expected at least one text')
    value = value[rng.integers(len(value))]
  text = _string(value, name)
  if not text.strip():
    raise RecordError('text', f'{name}: empty: expected text')
  return text


@functools.lru_cache(maxsize=16)
def _names(path: str) -> tuple[str, ...]:
  return tuple(line.strip() for line in split_lines(read_text(path)))


def _class_name(path: str, value: Any) -> str:
  names = _names(path)
  if not isinstance(value, int | np.integer) or not 0 <= value < len(names):
    raise RecordError('wrong type', f'class {value!r}: expected a number below {len(names)}, the lines of {path}')
  return names[value]


def _images(value: Any, fields: Fields) -> list[Image.Image]:
  """RGB images of a field's value; none for None."""
  if value is None:
    return []
  values = value if isinstance(value, list | tuple) else [value]
  return [_image(part, fields) for part in values]


def _image(value: Any, fields: Fields) -> Image.Image:
  if isinstance(value, Mapping):  # HuggingFace's {'bytes', 'path'}.
    value = value.get('bytes') or value.get('path')
  try:
    if isinstance(value, bytes):
      return decode_image(io.BytesIO(value), fields.image)
    if isinstance(value, str):
      path = os.path.join(fields.image_folder, value)
      with open_file(path) as file:
        return decode_image(file, path)
  except InputError as error:
    raise RecordError('image', str(error)) from None
  if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] in (1, 3):
    return Image.fromarray(np.broadcast_to(value, (*value.shape[:2], 3)))
  raise RecordError('wrong type', f'{fields.image}: a {type(value).__name__}: expected an image, its bytes or its path')


def _turns(value: Any, name: str) -> list[str]:
  """Question, answer, ... with Janus's placeholder where LLaVA's stands."""
  if not isinstance(value, list | tuple | np.ndarray):
    raise RecordError('wrong type', f'{name}: a {type(value).__name__}: expected a list of turns')
  turns: list[str] = []
  for number, turn in enumerate(value):
    where = f'{name}[{number}]'
    if isinstance(turn, Mapping):
      speaker, said = turn.get('from', turn.get('role')), turn.get('value', turn.get('content'))
      if speaker in ('system', 'System') and not turns:
        continue
      expected = ANSWERERS if len(turns) % 2 else QUESTIONERS
      if speaker not in expected:
        raise RecordError('turns', f'{where}: said by {speaker!r}: expected {" or ".join(expected[:2])}')
      turn = said
    turns.append(_string(turn, where).replace(LLAVA_IMAGE, IMAGE_PLACEHOLDER))
  return turns


def _interleaved(value: Any, images: Any, name: str) -> tuple[str, Sequence[Any]]:
  """A document's text, with a placeholder for each image, and the images in that order.

  Args:
    value: text or parts, as `Fields.interleaved` has them.
    images: a value or a list of values, None for none: of the places without an image of their own.
    name: of the field.
  """
  others = [] if images is None else images if isinstance(images, list | tuple | np.ndarray) else [images]
  if not isinstance(value, list | tuple | np.ndarray):
    text = _string(value, name).replace(LLAVA_IMAGE, IMAGE_PLACEHOLDER)
    found = [None] * text.count(IMAGE_PLACEHOLDER)
  else:
    text, found = '', []
    for number, part in enumerate(value):
      kind = part.get('type') if isinstance(part, Mapping) else None
      if kind == 'text':
        text += _string(part.get('text'), f'{name}[{number}]')
      elif kind == 'image':
        text += IMAGE_PLACEHOLDER
        found.append(part.get('image'))
      else:
        raise RecordError('wrong type', f'{name}[{number}]: {kind!r}: expected a part of type text or image')
  marks = sum(image is None for image in found)
  if marks != len(others):
    raise RecordError('images', f'{name}: {marks} places for {len(others)} images: expected one for each')
  rest = iter(others)
  return text, [next(rest) if image is None else image for image in found]


def _codes(value: Any, name: str) -> np.ndarray:
  """Little-endian uint16 bytes, or integers, to int32[P]."""
  if isinstance(value, bytes) and len(value) % 2 == 0:
    return np.frombuffer(value, '<u2').astype(np.int32)
  try:
    return np.asarray(value).astype(np.int32, casting='same_kind')
  except TypeError:
    raise RecordError('wrong type', f'{name}: a {type(value).__name__}: expected codes') from None


KIND_FIELDS: Mapping[str, Sequence[str]] = {
  'understanding': ('image', 'image_folder', 'answer', 'conversations', 'interleaved', 'questions'),
  'text': ('text', 'conversations'),
  'generation': ('image', 'image_folder', 'prompt', 'codes', 'wordings', 'names', 'first_sentence'),
}
