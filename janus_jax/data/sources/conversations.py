"""Conversations and documents with images in them: text in which a placeholder stands for each image, and the images.

As lenient as LLaVA's own reader (`preprocess` in `llava/train/train.py`): a first turn that is not the user's is left
out, and so is a last question without an answer.
"""

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from janus_jax.data.prompts import with_placeholders
from janus_jax.data.sources.values import listed, parsed, string
from janus_jax.data.tokenizer import IMAGE_PLACEHOLDER
from janus_jax.errors import RecordError, shown

SYSTEM, USER, ASSISTANT = 'system', 'user', 'assistant'
# Speakers in the data of LLaVA, ShareGPT, Vicuna, OpenAI and Janus, in small letters.
ROLES: Mapping[str, str] = {
  **dict.fromkeys(('system', 'developer'), SYSTEM),
  **dict.fromkeys(('human', 'user', '<|user|>'), USER),
  **dict.fromkeys(('gpt', 'assistant', 'model', 'chatgpt', 'bing', 'bard', '<|assistant|>'), ASSISTANT),
}
EXPECTED = {USER: 'human or user', ASSISTANT: 'gpt or assistant'}
IMAGE_PARTS = ('image', 'image_url', 'input_image')


class Said(NamedTuple):
  """Text with a placeholder for each of its images; None for one that is to be taken from the item's own."""

  text: str
  images: Sequence[Any]


def conversation(value: Any, images: Any, name: str) -> tuple[list[str], Sequence[Any]]:
  """Question, answer, ..., with placeholders, and the images they stand for; all images where there are none.

  Args:
    value: turns, as `Fields.conversations` has them.
    images: the images of the item: one, a list, or none.
    name: name of the field.

  Raises:
    RecordError: 'conversation', 'text' or 'wrong type'; 'no image' or 'image count' where images do not match.
  """
  if isinstance(value, bytes | str):
    with contextlib.suppress(RecordError):  # Tables and tars may have them as JSON.
      value = parsed(value, name)
  if not isinstance(value, list | tuple | np.ndarray):
    raise RecordError('conversation', f'{name}: a {type(value).__name__}: expected a list of turns')
  turns = [_turn(turn, f'{name}[{number}]') for number, turn in enumerate(value)]
  roles, said = [role for role, _ in turns], [said for _, said in turns]
  start = roles.count(SYSTEM)
  if set(roles[:start]) - {SYSTEM}:
    raise RecordError('conversation', f'{name}: a turn of the system after others: expected it first')
  if roles[start : start + 1] == [ASSISTANT]:
    start += 1
  kept = range(start, start + (len(turns) - start) // 2 * 2)
  for number, expected in zip(range(start, len(turns)), itertools.cycle((USER, ASSISTANT))):
    if roles[number] not in (None, expected):
      speaker = shown(_speaker(value[number]))
      raise RecordError('conversation', f'{name}[{number}]: said by {speaker}: expected {EXPECTED[expected]}')
    if number in kept and not said[number].text.strip():
      raise RecordError('conversation', f'{name}[{number}]: empty: expected text')
  if not kept:
    raise RecordError('conversation', f'{name}: {len(turns)} turns: expected a question and its answer')
  others = listed(images)
  placed = _placed(said, others, name, kept) if any(len(turn.images) for turn in said) else others
  return [said[number].text for number in kept], placed


def document(value: Any, images: Any, name: str) -> tuple[str, Sequence[Any]]:
  """Text of a document, with a placeholder for each image, and the images in that order.

  Args:
    value: text or parts, as `Fields.interleaved` has them.
    images: the images of the item, for the placeholders without an image of their own.
    name: name of the field.

  Raises:
    RecordError: as `conversation`.
  """
  said = _said(value, name, between='')
  return said.text, _placed([said], listed(images), name, range(1))


def _turn(turn: Any, where: str) -> tuple[str | None, Said]:
  """The role of the speaker, None where turns are plain strings, and what is said."""
  if not isinstance(turn, Mapping):
    return None, _text_of(turn, where)
  speaker = _speaker(turn)
  role = ROLES.get(speaker.strip().lower()) if isinstance(speaker, str) else None
  if role is None:
    raise RecordError('conversation', f'{where}: said by {shown(speaker)}: expected {" or ".join(EXPECTED.values())}')
  content = turn.get('value') if turn.get('value') is not None else turn.get('content')
  if content is None:
    raise RecordError('conversation', f'{where}: nothing said: expected value or content')
  return role, _said(content, where, between='\n')


def _speaker(turn: Any) -> Any:
  return turn.get('from') if turn.get('from') is not None else turn.get('role')


def _text_of(value: Any, name: str) -> Said:
  text = with_placeholders(string(value, name))
  return Said(text, [None] * text.count(IMAGE_PLACEHOLDER))


def _said(value: Any, name: str, between: str) -> Said:
  """A text, or a list of parts: {'type': 'text', 'text': ...} and {'type': 'image'}, with an image or without."""
  if not isinstance(value, list | tuple | np.ndarray):
    return _text_of(value, name)
  texts, images = [], []
  for number, part in enumerate(value):
    where = f'{name}[{number}]'
    kind = part.get('type') if isinstance(part, Mapping) else None
    if kind in ('text', 'input_text', 'output_text'):
      text, found = _text_of(part.get('text'), where)
    elif kind in IMAGE_PARTS:
      text, found = IMAGE_PLACEHOLDER, [_own_image(part)]
    else:
      raise RecordError('wrong type', f'{where}: {shown(kind)}: expected a part of type text or image')
    texts.append(text.strip(between) if between else text)
    images += found
  return Said(between.join(texts), images)


def _own_image(part: Mapping[str, Any]) -> Any:
  """The image of a part, under any of the names that chat formats have for it; None if it has none."""
  for name in ('image', 'image_url', 'url', 'path', 'bytes'):
    value = part.get(name)
    if name == 'image_url' and isinstance(value, Mapping):
      value = value.get('url')
    if listed(value):
      return value
  return None


def _placed(said: Sequence[Said], others: Sequence[Any], name: str, kept: range) -> list[Any]:
  """The images of the turns that are kept. Placeholders without an image of their own take the item's, in their order.

  The item may have images for all turns, or for those alone that are kept.
  """
  for numbers in (range(len(said)), kept):
    missing = sum(image is None for number in numbers for image in said[number].images)
    if missing == len(others):
      rest = iter(others)
      images = {number: [next(rest) if image is None else image for image in said[number].images] for number in numbers}
      return [image for number in kept for image in images[number]]
  reason = 'image count' if len(others) else 'no image'
  raise RecordError(reason, f'{name}: {missing} placeholders for {len(others)} images: expected one for each')
