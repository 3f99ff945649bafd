"""Answers questions about images: whole requests, cut into batches. Re-exported: `janus_jax.answer`.

Questions that begin alike, up to the end of the same images, have that beginning run once for all of them.
"""

import collections
import dataclasses
import functools
import itertools
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from janus_jax.data import prompts as prompts_lib
from janus_jax.data.images import understanding_pixels
from janus_jax.data.prompts import Template, left_pad
from janus_jax.data.tokenizer import SpecialIds, Tokenizer
from janus_jax.errors import InputError
from janus_jax.inference.batching import Group, bucket_length, device_batch_size, plan_batches
from janus_jax.inference.decoder import Decoder
from janus_jax.inference.requests import AnswerSettings, LoadedJanus, decoder_for, request_keys
from janus_jax.inference.text import CHUNK, TextPrompts, generate_text
from janus_jax.models.config import JanusConfig

Turns = str | Sequence[str]  # A question, or question, answer, question, ..., question.


@dataclasses.dataclass(frozen=True)
class Answer:
  """An answer."""

  text: str
  token_ids: list[int]  # Without the end token; there was none if the answer was cut at its longest.


@dataclasses.dataclass(frozen=True)
class Question:
  """A conversation as the decoder takes it.

  Attributes:
    ids: the whole prompt.
    pixels: uint8[I, size, size, 3] in the order they are mentioned.
    seen: number of ids up to the end of the last image; 0 without images.
  """

  ids: list[int]
  pixels: np.ndarray
  seen: int


def prepare_question(
  config: JanusConfig, images: Sequence[Image.Image], turns: Turns, tokenizer: Tokenizer, template: Template
) -> Question:
  """Renders a question and resizes its images.

  `data.prompts.place_images` says where the images, RGB, of the whole conversation go; LLaVA's `<image>` is as good as
  Janus's placeholder, as in training.

  Raises:
    InputError: an empty question, placeholders that do not match the images, longer than the decoder's positions.
  """
  ids = prompts_lib.understanding_ids(
    tokenizer,
    template,
    [prompts_lib.with_placeholders(turn) for turn in ([turns] if isinstance(turns, str) else turns)],
    num_images=len(images),
    num_image_tokens=config.num_image_tokens,
    max_length=config.language_model.max_positions,
  )
  size = config.image_size
  pixels = [understanding_pixels(image, size) for image in images]
  seen = max((i + 1 for i, token in enumerate(ids) if token == config.image_token_id), default=0)
  return Question(ids, np.stack(pixels) if pixels else np.zeros((0, size, size, 3), np.uint8), seen)


def prepare_questions(
  config: JanusConfig,
  images: Sequence[Sequence[Image.Image]],
  questions: Sequence[Turns],
  tokenizer: Tokenizer,
  template: Template,
) -> list[Question]:
  """`prepare_question` for each question and its images, whose InputErrors get the question's number.

  Raises InputError also for one string in place of a list, or not one list of images per question.
  """
  if isinstance(questions, str):
    raise InputError(f'questions is the string {questions[:40]!r}: expected a list')
  if len(images) != len(questions):
    raise InputError(f'{len(images)} lists of images for {len(questions)} questions: expected one for each')
  prepared = []
  for number, pair in enumerate(zip(images, questions), start=1):
    try:
      prepared.append(prepare_question(config, *pair, tokenizer, template))
    except InputError as error:
      raise InputError(f'question {number} of {len(questions)}: {error}') from None
  return prepared


def group_questions(questions: Sequence[Question]) -> list[Group]:
  """Questions by their beginning: the same ids up to the end of the same images. Without images, each alone."""
  members = collections.defaultdict(list)
  for index, question in enumerate(questions):
    beginning = (tuple(question.ids[: question.seen]), question.pixels.tobytes()) if question.seen else index
    members[beginning].append(index)
  groups = []
  for indices in members.values():
    first, longest = questions[indices[0]], max(len(questions[i].ids) for i in indices)
    shared = longest if len(indices) == 1 else first.seen
    groups.append(Group(tuple(indices), bucket_length(shared), bucket_length(longest - shared), len(first.pixels)))
  return groups


def stream_tokens(
  decoder: Decoder,
  questions: Sequence[Question],
  indices: Sequence[int],
  special: SpecialIds,
  settings: AnswerSettings,
  share: int = 1,
) -> Iterator[list[list[int]]]:
  """Answers questions of one shape as one batch, a few tokens at a time.

  Args:
    decoder: weights.
    questions: with equally many images each.
    indices: the questions' in the whole request; with the seed they decide what is sampled.
    special: ids of the tokenizer.
    settings: all but `batch_size`, `weights` and `cache_dtype`.
    share: each so many consecutive questions begin alike (`group_questions`), with images; 1 where they do not.

  Yields:
    per question, the ids that its answer goes on with; none once it has ended. No end tokens.
  """
  ids, first = [question.ids for question in questions], questions[::share]
  pixels = np.concatenate([question.pixels for question in first])
  rest = None
  if share > 1:
    rest = _padded([question.ids[question.seen :] for question in questions], special.pad)
    ids = [question.ids[: question.seen] for question in first]
  prompts = TextPrompts(*_padded(ids, special.pad), pixels if len(pixels) else None, rest)
  keys = request_keys(settings.seed, [(index,) for index in indices])
  # The last token is sampled but never fed.
  positions = decoder.config.language_model.max_positions
  limits = [min(settings.max_new_tokens, positions - len(question.ids) + 1) for question in questions]
  options = {'eos_id': special.eos, 'max_new_tokens': max(limits), 'sampling': settings.sampling}
  is_text = functools.partial(operator.ne, special.eos)  # A row that has ended goes on with end tokens.
  for chunk in generate_text(decoder, prompts, keys, **options):
    yield [list(itertools.takewhile(is_text, row[:limit])) for row, limit in zip(chunk.tolist(), limits)]
    limits = [max(limit - chunk.shape[1], 0) for limit in limits]


def _padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
  """`left_pad` to the bucket of the longest."""
  return left_pad(rows, pad_id, bucket_length(max(map(len, rows))))


def answer_questions(
  decoder: Decoder, questions: Sequence[Question], tokenizer: Tokenizer, settings: AnswerSettings
) -> list[Answer]:
  """`answer` to prepared questions with prepared weights (`decoder_for`)."""
  groups, longest = group_questions(questions), settings.max_new_tokens
  batch_size = settings.batch_size or device_batch_size(decoder, groups, longest)
  answers: list[list[int]] = [[] for _ in questions]
  # Nobody knows how long answers get; most end within a chunk.
  for batch in plan_batches(groups, batch_size, output=min(longest, CHUNK)):
    rows = [questions[i] for i in batch.rows]
    for new in stream_tokens(decoder, rows, batch.rows, tokenizer.special, settings, batch.share):
      for index, row in batch.row_of.items():
        answers[index] += new[row]
  return [Answer(tokenizer.decode(ids), ids) for ids in answers]


def answer(
  janus: LoadedJanus,
  images: Sequence[Sequence[Image.Image]],
  questions: Sequence[Turns],
  settings: AnswerSettings | None = None,
  **changes: Any,
) -> list[Answer]:
  """Answers questions, each about its own images. An answer does not depend on what else is asked.

  Questions about the same images are cheap together: the images are run once for all of them, or once per batch.

  Args:
    janus: from `janus_jax.load`; computes in what its parameters are stored in.
    images: per question, its images (RGB, `data.images.load_image`), none or several.
    questions: each a text, or turns: question, answer, question, ..., question.
    settings: None takes the defaults.
    **changes: fields of `AnswerSettings` that differ from `settings`.

  Raises:
    InputError: what `prepare_questions` raises, a setting out of range, a tokenizer of another checkpoint or none.
  """
  settings = dataclasses.replace(settings or AnswerSettings(), **changes)
  tokenizer, template = janus.tokenizer_and_template()
  prepared = prepare_questions(janus.config, images, questions, tokenizer, template)
  decoder = decoder_for(janus, settings.weights, settings.cache_dtype)
  return answer_questions(decoder, prepared, tokenizer, settings)
