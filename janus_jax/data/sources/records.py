"""Records that `data.examples` takes, made of items of any format.

An item is a dict as its format has it: strings or UTF-8 bytes, images as file content, arrays or paths, lists of them.
The run's config names its fields (`Fields`). Choices (one of several captions, one of the questions, whether a caption
is cut) are sampled anew in each epoch.
"""

import abc
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np

from janus_jax.data.aspects import nearest_bucket
from janus_jax.data.images import covering_pixels, generation_pixels, understanding_pixels
from janus_jax.data.resizing import Resize, pillow
from janus_jax.data.sources import values
from janus_jax.data.sources.conversations import conversation, document
from janus_jax.data.tiles import with_tiles
from janus_jax.errors import InputError, RecordError, shown

# A sentence ends at the first of these that is followed by space: 'a 1.5 m dog. It barks.'
SENTENCE_END = re.compile(r'(?<=[.!?])\s')
# Fields by which items call themselves: in LLaVA's lists, and in what `janus_jax.tokenize` writes.
NAMED_BY = ('id', 'key')


@dataclasses.dataclass(frozen=True)
class Fields:
  """Names of an item's fields, as `values.find` takes them ('captions/text', 'jpg;png'), and uses of their values.

  Attributes:
    image: content, array or path of the image, or a list of them; '' for items without.
    image_folder: root of relative paths of images.
    text: the document of a text source.
    prompt: the caption or class of a generation source, or a list of them, one of which is sampled.
    codes: uint16 bytes of a generation source whose images are encoded already (`janus_jax.tokenize`); '' for pixels.
    grid: rows and columns of the codes of each image, where they were made with `tokenize --aspects`; '' for squares.
    answer: the answer of an understanding source with one question per image.
    conversations: turns of an understanding or a text source, as LLaVA or ShareGPT have them ({'from', 'value'}), as
      chat messages ({'role', 'content'}, the content being text or parts as in `interleaved`), or as plain strings,
      question first. Turns of a system are left out: the source has its own. '' for items without, and for the field
      'conversations' of an understanding source.
    interleaved: a document with images of an understanding source, either a text in which `<image>` or
      `<image_placeholder>` stands for each of the images in `image`, or a list of parts, {'type': 'text', 'text': ...}
      and {'type': 'image', 'image': ...}. An image part without an image of its own stands for one of those in `image`.
    questions: asked where `answer` is given; one is sampled. In a raw source they stand between image and answer.
    prompt_templates: phrasings with '{}' for the prompt; one is sampled.
    names: a text file whose line n is the name of class n, where the prompt is a number or its digits.
    tiles: parts that a large image is shown in beside the whole, at most (`data.tiles`); 1: none.
    first_sentence: fraction of the prompts that are cut after their first sentence (0.25 in the Janus paper).
  """

  image: str = 'image'
  image_folder: str = ''
  text: str = 'text'
  prompt: str = 'prompt'
  codes: str = ''
  grid: str = ''
  answer: str = ''
  conversations: str = ''
  interleaved: str = ''
  questions: tuple[str, ...] = ('Describe the image in detail.',)
  prompt_templates: tuple[str, ...] = ('{}',)
  names: str = ''
  tiles: int = 1
  first_sentence: float = 0.0

  def __post_init__(self):
    if not 0 <= self.first_sentence <= 1:
      raise InputError(f'first_sentence is {self.first_sentence}: expected a fraction from 0 to 1')
    if self.tiles < 1:
      raise InputError(f'tiles is {self.tiles}: expected 1 (none) or more')
    if self.grid and not self.codes:
      raise InputError(f'grid is {self.grid!r}: expected codes beside it, as images to generate are square')
    for template in self.prompt_templates:
      if template.count('{}') != 1:
        raise InputError(f'prompt_templates: {template!r}: expected one {{}} in it')
    if not self.questions or not self.prompt_templates:
      raise InputError('questions and prompt_templates: expected at least one of each')


class Numbered:
  """Items of a source with their names in messages, (str, item): 'data/llava.json: item 7 (id 0007)'."""

  def __init__(self, items: Sequence[Mapping[str, Any]]):
    self._items = items

  def __len__(self) -> int:
    return len(self._items)

  def __getitem__(self, index: int) -> tuple[str, Mapping[str, Any]]:
    where = where_of(self._items, index)
    try:
      item = self._items[index]
    except RecordError as error:
      raise error.at(where) from None
    except (InputError, OSError, ValueError) as error:  # What readers of damaged files raise.
      raise RecordError('unreadable', str(error)).at(where) from None
    return _with_own_name(where, item), item


def where_of(items: Sequence[Mapping[str, Any]], index: int) -> str:
  """The name of an item in messages, without reading it: from the source's `where(index)`, else its number."""
  return items.where(index) if hasattr(items, 'where') else f'item {index}'


def _with_own_name(where: str, item: Any) -> str:
  names = [name for name in NAMED_BY if name in item] if isinstance(item, Mapping) else []
  name = shown(item[names[0]]).strip("'") if names else ''
  known = not names or (names[0] == 'key' and where.endswith(name))  # Folders and tars have it in the path.
  return where if known else f'{where} ({names[0]} {name})'


class _RecordOfItem(grain.transforms.RandomMap):
  """Makes a record of a `Numbered` item: with its name as 'where', or an error that begins with the name."""

  def random_map(self, located: tuple[str, Mapping[str, Any]], rng: np.random.Generator) -> dict[str, Any]:
    where, item = located
    try:
      return {**self.record(item, rng), 'where': where}
    except RecordError as error:
      raise error.at(where) from None

  @abc.abstractmethod
  def record(self, item: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """The item as a record. Raises RecordError."""


@dataclasses.dataclass(frozen=True)
class UnderstandingRecord(_RecordOfItem):
  """An item to {'images': [uint8[size, size, 3]], 'turns': [question, answer, ...]}, or with 'text' for the turns.

  Template 'chat' makes turns. 'raw' makes a text: the question, if there is one, and the answer; of conversations,
  which must have one question each, the answer alone.
  """

  fields: Fields
  size: int
  resize: Resize = pillow
  template: str = 'chat'

  def record(self, item: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    fields = self.fields
    image_name, found = values.find(item, fields.image)
    if fields.interleaved:
      name, value = values.required(item, fields.interleaved)
      text, found = document(value, found, name)
      (text,), images = self._seen([text], image_name, found, separator='')
      return {'images': images, 'text': text}
    if fields.answer:
      question = fields.questions[rng.integers(len(fields.questions))]
      said = [question, values.sampled_text(item, fields.answer, rng).strip()]
    else:
      name, value = values.required(item, fields.conversations or 'conversations')
      said, found = conversation(value, found, name)
    found = values.listed(found)
    if self.template == 'chat':
      said, images = self._seen(said, image_name, found)
      return {'images': images, 'turns': said}
    if len(said) != 2:
      raise RecordError(
        'conversation', f'{name}: {len(said)} turns: expected a question and its answer in a raw source'
      )
    (text,), images = self._seen([''.join(said) if fields.answer else said[1]], image_name, found, separator='')
    return {'images': images, 'text': text}

  def _seen(
    self, texts: Sequence[str], name: str, found: Sequence[Any], separator: str = '\n'
  ) -> tuple[Sequence[str], list[np.ndarray]]:
    """The texts and the squares that the encoder takes, with tiles where there are any."""
    images = [values.image(value, name, self.fields.image_folder) for value in found]
    if self.fields.tiles == 1:
      return texts, [understanding_pixels(image, self.size, resize=self.resize) for image in images]
    try:
      return with_tiles(texts, images, self.size, self.fields.tiles, separator, self.resize)
    except InputError as error:
      raise RecordError('conversation', str(error)) from None


@dataclasses.dataclass(frozen=True)
class GenerationRecord(_RecordOfItem):
  """An item to {'prompt': str, 'image': uint8[size, size, 3]}, or with 'codes': int32[P] in place of the image.

  Where `fields` names a grid, 'grid': (rows, columns) comes with the codes. Where `shapes` are given, (height, width)
  in pixels, the image has the one that cuts least of it away.
  """

  fields: Fields
  size: int
  resize: Resize = pillow
  shapes: tuple[tuple[int, int], ...] = ()

  def record(self, item: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    prompt = _prompt(item, self.fields, rng)
    if self.fields.codes:
      name, value = values.required(item, self.fields.codes)
      record = {'prompt': prompt, 'codes': values.codes(value, name)}
      if self.fields.grid:
        name, value = values.required(item, self.fields.grid)
        record['grid'] = values.grid(value, name)
      return record
    name, value = values.required(item, self.fields.image, 'no image')
    found = values.listed(value)
    if len(found) != 1:
      reason = 'image count' if found else 'no image'
      raise RecordError(reason, f'{name}: {len(found)} images: expected one to generate')
    image = values.image(found[0], name, self.fields.image_folder)
    if not self.shapes:
      return {'prompt': prompt, 'image': generation_pixels(image, self.size, self.resize)}
    return {'prompt': prompt, 'image': covering_pixels(image, nearest_bucket(*image.size, self.shapes), self.resize)}


@dataclasses.dataclass(frozen=True)
class TextRecord(_RecordOfItem):
  """An item to {'text': str}, or to {'turns': [question, answer, ...]}."""

  fields: Fields

  def record(self, item: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    if self.fields.conversations:
      name, value = values.required(item, self.fields.conversations)
      return {'turns': conversation(value, None, name)[0]}
    return {'text': values.sampled_text(item, self.fields.text, rng)}


class ToEncode:
  """Items of a generation source as `janus_jax.tokenize` takes them: {'image', 'prompt': str, 'key': str}.

  Choices that training samples are not made: of several captions the first is kept, uncut and without a template.
  """

  def __init__(self, items: Sequence[Mapping[str, Any]], fields: Fields):
    self._items, self._fields = items, fields

  def __len__(self) -> int:
    return len(self._items)

  def where(self, index: int) -> str:
    """The name of an item in messages."""
    return where_of(self._items, index)

  def __getitem__(self, index: int) -> dict[str, Any]:
    item, fields = self._items[index], self._fields
    _, image = values.required(item, fields.image, 'no image')
    name, prompt = values.required(item, fields.prompt)
    if isinstance(image, str) and not image.startswith('data:'):
      image = os.path.join(fields.image_folder, image)
    if fields.names:
      prompt = values.class_name(fields.names, prompt)
    elif isinstance(prompt, list | tuple | np.ndarray) and len(prompt):
      prompt = prompt[0]
    return {'image': image, 'prompt': values.string(prompt, name), 'key': str(item.get('__key__', index))}


def _prompt(item: Mapping[str, Any], fields: Fields, rng: np.random.Generator) -> str:
  if fields.names:
    text = values.class_name(fields.names, values.required(item, fields.prompt)[1])
  else:
    text = values.sampled_text(item, fields.prompt, rng)
  if rng.random() < fields.first_sentence:
    text = SENTENCE_END.split(text.strip(), maxsplit=1)[0]
  return fields.prompt_templates[rng.integers(len(fields.prompt_templates))].format(text)


KIND_FIELDS: Mapping[str, Sequence[str]] = {
  'understanding': ('image', 'image_folder', 'answer', 'conversations', 'interleaved', 'questions', 'tiles'),
  'text': ('text', 'conversations'),
  'generation': ('image', 'image_folder', 'prompt', 'codes', 'grid', 'prompt_templates', 'names', 'first_sentence'),
}
