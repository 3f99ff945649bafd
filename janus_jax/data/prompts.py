"""Conversations to token ids, as Janus was trained on them. Strings and integers only; no model, no arrays of pixels.

Sources: `janus/utils/conversation.py` and `janus/models/processing_vlm.py` of DeepSeek's repository for the text and
its expansion, `generation_inference.py` for image generation.
"""

import dataclasses
import json
import os
from collections.abc import Sequence

import numpy as np

from janus_jax.data import tokenizer as tokenizer_lib
from janus_jax.data.aspects import Grid, with_grid
from janus_jax.data.sources.files import read_text
from janus_jax.data.tokenizer import IMAGE_PLACEHOLDER, SpecialIds, Tokenizer
from janus_jax.errors import InputError

SYSTEM_PROMPT = (
  'You are a helpful language and vision assistant. You are able to understand the visual content that the user '
  'provides, and assist the user with a variety of tasks using natural language.'
)
# LLaVA's placeholder of an image.
LLAVA_IMAGE = '<image>'
# Follow a user's turn and an assistant's turn.
SEPARATORS = ('\n\n', tokenizer_lib.EOS)


@dataclasses.dataclass(frozen=True)
class Template:
  """Names of the speakers that a checkpoint was taught. Others are accepted and ruin the answers."""

  user: str
  assistant: str


# Named as `sft_format` in processor_config.json names them: 'deepseek' is Janus-Pro's, 'deepseek_old' Janus-1.3B's.
TEMPLATES = {
  'deepseek': Template(tokenizer_lib.USER, tokenizer_lib.ASSISTANT),
  'deepseek_old': Template('User', 'Assistant'),
}


def find_template(directory: str | os.PathLike, tokenizer: Tokenizer) -> Template:
  """The template of the checkpoint in `directory`.

  `sft_format` decides where processor_config.json has it (`transformers` exports do not), but for one case: Janus-1.3B
  called its template "deepseek" until January 2025, so that "deepseek" without role tokens means 'deepseek_old'.

  Raises:
    InputError: processor_config.json is not JSON, or names a template that Janus does not have.
  """
  path = os.path.join(directory, 'processor_config.json')
  try:
    config = json.loads(read_text(path)) if os.path.exists(path) else {}
  except json.JSONDecodeError as error:
    raise InputError(f'{path}: expected JSON: {error}') from None
  if not isinstance(config, dict):
    raise InputError(f'{path}: holds a {type(config).__name__}: expected a JSON object')
  sft_format = config.get('sft_format')
  if sft_format not in (None, *TEMPLATES):
    raise InputError(f'{path}: sft_format is {sft_format!r}: expected one of {list(TEMPLATES)}')
  if tokenizer.special.user is None or tokenizer.special.assistant is None:
    return TEMPLATES['deepseek_old']
  return TEMPLATES[sft_format or 'deepseek']


def render_prompt(template: Template, turns: Sequence[str], system: str = '') -> str:
  """A conversation as text: the system prompt, unless empty, then what user, assistant, user, ... say, stripped.

  An empty turn leaves the speaker's cue alone, without a space or a separator: an empty last one asks for an answer.
  """
  text = system + SEPARATORS[0] if system else ''
  for index, turn in enumerate(turns):
    speaker = (template.user, template.assistant)[index % 2]
    content = turn.strip()
    text += f'{speaker}: {content}{SEPARATORS[index % 2]}' if content else f'{speaker}:'
  return text.strip()


def with_placeholders(text: str) -> str:
  """Text with Janus's placeholder where LLaVA's stands: in conversations, documents and questions alike."""
  return text.replace(LLAVA_IMAGE, IMAGE_PLACEHOLDER)


def place_images(turns: Sequence[str], num_images: int, separator: str = '\n') -> list[str]:
  """Turns with one placeholder per image.

  Placeholders already in the text stay and take the images in order. Where there are none, the images go in front of
  the first turn, each followed by the separator: in conversations, on a line of its own.

  Raises:
    InputError: the text has placeholders, but not one per image.
  """
  found = sum(turn.count(IMAGE_PLACEHOLDER) for turn in turns)
  if not found:
    return [f'{IMAGE_PLACEHOLDER}{separator}' * num_images + turns[0], *turns[1:]]
  if found != num_images:
    raise InputError(f'{found} {IMAGE_PLACEHOLDER} in the text but {num_images} images: expected one for each image')
  return list(turns)


def expand_images(ids: Sequence[int], special: SpecialIds, num_image_tokens: int) -> list[int]:
  """Each placeholder becomes begin-of-image, `num_image_tokens` placeholders (one per feature), end-of-image."""
  image = [special.begin_of_image, *[special.image_placeholder] * num_image_tokens, special.end_of_image]
  return [new for old in ids for new in (image if old == special.image_placeholder else [old])]


def understanding_ids(
  tokenizer: Tokenizer,
  template: Template,
  turns: Sequence[str],
  *,
  num_images: int,
  num_image_tokens: int,
  max_length: int,
  system: str = SYSTEM_PROMPT,
) -> list[int]:
  """Ids after which the model answers the last of `turns`.

  Args:
    tokenizer: the checkpoint's.
    template: the checkpoint's.
    turns: question, answer, question, ..., question. `place_images` says where the images go.
    num_images: images of the whole conversation.
    num_image_tokens: tokens per image, 576 in the released models.
    max_length: tokens, images included.
    system: the original always has `SYSTEM_PROMPT`, some benchmarks' harnesses another or none.

  Raises:
    InputError: an empty question, no question at the end, placeholders that do not match the images, or too long.
  """
  check_turns(turns)
  text = render_prompt(template, [*place_images(turns, num_images), ''], system)
  return _within(max_length, expand_images(tokenizer.encode(text), tokenizer.special, num_image_tokens))


def check_turns(turns: Sequence[str]) -> None:
  """Raises InputError for an empty question, or no question at the end."""
  if len(turns) % 2 == 0:
    raise InputError(f'{len(turns)} turns: expected an odd number: question, answer, ..., question')
  for number, question in enumerate(turns[::2], start=1):
    if not question.strip():
      raise InputError(f'question {number} of {len(turns[::2])} is empty: expected text')


def generation_text(template: Template | None, prompt: str, grid: Grid | None = None) -> str:
  """Text before the codes of an image: one turn, no system prompt, and begin-of-image last.

  Without a template the prompt stands alone, as Janus is pretrained (`<caption><image>`). A grid that is not square is
  stated at the end of the prompt (`aspects.with_grid`).
  """
  prompt = with_grid(prompt, grid)
  text = prompt.strip() if template is None else render_prompt(template, [prompt, ''])
  return text + tokenizer_lib.BEGIN_OF_IMAGE


def generation_ids(
  tokenizer: Tokenizer, template: Template, prompt: str, *, max_length: int, grid: Grid | None = None
) -> list[int]:
  """Ids after which the model generates an image, of codes in a square unless a grid is given.

  Raises:
    InputError: an empty prompt, or one longer than `max_length` tokens.
  """
  if not prompt.strip():
    raise InputError('the prompt is empty: expected text')
  return _within(max_length, tokenizer.encode(generation_text(template, prompt, grid)))


def _within(max_length: int, ids: list[int]) -> list[int]:
  if len(ids) > max_length:
    raise InputError(f'the prompt has {len(ids)} tokens: expected at most {max_length}')
  return ids


def unconditional_ids(ids: Sequence[int], pad_id: int) -> list[int]:
  """`generation_ids` without the prompt, for classifier-free guidance: all but the first and the last become pads.

  These pads are attended to and keep their positions, as in training, unlike those of `left_pad`.
  """
  return [ids[0], *[pad_id] * (len(ids) - 2), ids[-1]]


def left_pad(rows: Sequence[Sequence[int]], pad_id: int, length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
  """Makes one batch of B rows of unequal length, the last tokens aligned; T is `length`, else that of the longest.

  Returns:
    ids int32[B, T]; mask bool[B, T], False where `left_pad` filled.

  Raises:
    ValueError: a row is longer than `length`.
  """
  length = max(map(len, rows)) if length is None else length
  ids = np.full((len(rows), length), pad_id, np.int32)
  for index, row in enumerate(rows):
    if len(row) > length:
      raise ValueError(f'row {index} has {len(row)} ids: expected at most {length}')
    ids[index, length - len(row) :] = row
  return ids, np.arange(length) >= length - np.array([len(row) for row in rows])[:, None]
