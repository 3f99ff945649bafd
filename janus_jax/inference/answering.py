"""Answers questions about images: a compiled loop over tokens, and whole requests, cut into batches. Re-exported:
`janus_jax.answer`.

Questions that begin alike, up to the end of the same images, have that beginning run once for all of them. A chunk of
steps is one compiled loop that ends early when every row has ended. Between chunks the host sees the new tokens, so
that text can be streamed; within one there is no traffic with the host.
"""

import collections
import dataclasses
import functools
import itertools
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from janus_jax.data import prompts as prompts_lib
from janus_jax.data.prompts import Template, left_pad
from janus_jax.data.tiles import with_tiles
from janus_jax.data.tokenizer import SpecialIds, Tokenizer
from janus_jax.errors import InputError, shown
from janus_jax.inference.batching import Group, bucket_length, device_batch_size, plan_batches
from janus_jax.inference.cache import KVCache
from janus_jax.inference.decoder import COMPILER_OPTIONS, Decoder, prompt_positions
from janus_jax.inference.requests import AnswerSettings, LoadedJanus, decoder_for, request_keys
from janus_jax.inference.sampling import Sampling, sample
from janus_jax.models.config import JanusConfig

STEPS_PER_CHUNK = 32  # A chunk is one compiled call.
# Slots of a block of the cache after the prompt: what is read grows by this much, and so do the loops to compile. A
# multiple of STEPS_PER_CHUNK, so that a chunk writes into one block.
STEPS_PER_BLOCK = 4 * STEPS_PER_CHUNK
Turns = str | Sequence[str]  # A question, or question, answer, question, ..., question.


@flax.struct.dataclass
class TextPrompts:
  """Prompts of B rows. A beginning that rows share, as questions about one image do, is run once for all of them.

  Attributes:
    tokens: int32[U, T], left-padded: the beginning that the prompts of B / U consecutive rows share; image placeholders
      hold `config.image_token_id`.
    mask: bool[U, T], False on left padding.
    pixels: uint8[I, size, size, 3] in the order `tokens` mention them, or None where they mention none.
    rest: the text after the beginning of each row's prompt: int32[B, S], left-padded, and bool[B, S], False on left
      padding. None where `tokens` are whole prompts: then there is one pass, not two.
  """

  tokens: jax.Array
  mask: jax.Array
  pixels: jax.Array | None = None
  rest: tuple[jax.Array, jax.Array] | None = None


@flax.struct.dataclass
class TextState:
  """State of generation between chunks."""

  cache: KVCache
  token: jax.Array  # int32[B], sampled last and not fed yet.
  position: jax.Array  # int32[B] of `token`.
  done: jax.Array  # bool[B], rows that have sampled an end-of-text token.
  step: jax.Array  # int32 scalar, how many tokens have been sampled.


@functools.partial(jax.jit, static_argnames=('max_new_tokens', 'sampling'), compiler_options=COMPILER_OPTIONS)
def prefill(
  decoder: Decoder, prompts: TextPrompts, keys: jax.Array, eos_id: jax.Array, *, max_new_tokens: int, sampling: Sampling
) -> TextState:
  """Runs the prompts and samples the first token of each row. Arguments as in `generate_text`."""
  tokens, mask, rest, B = prompts.tokens, prompts.mask, prompts.rest, len(keys)
  fed = max_new_tokens - 1  # The last token is sampled but never fed.
  blocks = [min(STEPS_PER_BLOCK, fed - start) for start in range(0, fed, STEPS_PER_BLOCK)]
  cache = decoder.empty_cache((mask,) if rest is None else (mask, rest[1]), B, blocks)
  embed = ('embed_text', tokens) if prompts.pixels is None else ('embed_prompt', tokens, prompts.pixels)
  positions = prompt_positions(mask)
  hidden, cache = decoder.hidden(decoder.method(*embed), positions, cache)
  hidden, after = (jnp.repeat(x[:, -1:], B // len(tokens), axis=0) for x in (hidden, positions + 1))
  if rest is not None:
    positions = after + prompt_positions(rest[1])
    hidden, cache = decoder.hidden(decoder.method('embed_text', rest[0]), positions, cache.writing(1))
    after = positions[:, -1:] + 1
  token = decoder.whole(sample(decoder.method('text_logits', hidden[:, -1]), keys, 0, sampling))
  return TextState(cache, token, after[:, 0], token == eos_id, jnp.ones((), jnp.int32))


@functools.partial(
  jax.jit, static_argnames=('steps', 'sampling'), donate_argnames=('state',), compiler_options=COMPILER_OPTIONS
)
def decode_chunk(
  decoder: Decoder, state: TextState, keys: jax.Array, eos_id: jax.Array, *, steps: int, sampling: Sampling
) -> tuple[TextState, jax.Array]:
  """Up to `steps` more tokens. Returns the new state and int32[B, steps]; after a row's end it holds `eos_id`."""
  B = len(state.token)

  def step(carry: tuple[jax.Array, TextState, jax.Array]) -> tuple[jax.Array, TextState, jax.Array]:
    i, state, sampled = carry
    x = decoder.method('embed_text', state.token[:, None])
    hidden, cache = decoder.hidden(x, state.position[:, None], state.cache)
    token = decoder.whole(sample(decoder.method('text_logits', hidden[:, -1]), keys, state.step, sampling))
    token = jnp.where(state.done, eos_id, token)
    done = state.done | (token == eos_id)
    return i + 1, TextState(cache, token, state.position + 1, done, state.step + 1), sampled.at[:, i].set(token)

  start = (jnp.zeros((), jnp.int32), state, jnp.full((B, steps), eos_id, jnp.int32))
  _, state, sampled = jax.lax.while_loop(lambda carry: (carry[0] < steps) & ~carry[1].done.all(), step, start)
  return state, sampled


def generate_text(
  decoder: Decoder,
  prompts: TextPrompts,
  keys: jax.Array,
  *,
  eos_id: int,
  max_new_tokens: int,
  sampling: Sampling,
  steps_per_chunk: int = STEPS_PER_CHUNK,
) -> Iterator[np.ndarray]:
  """Yields the new tokens of all rows, int32[B, n], a chunk at a time; ends when every row has ended.

  A row that has ended goes on with `eos_id`. The cache has room for `max_new_tokens`; keys: key[B]. `steps_per_chunk`
  divides STEPS_PER_BLOCK.
  """
  eos = jnp.asarray(eos_id, jnp.int32)
  state = prefill(decoder, prompts, keys, eos, max_new_tokens=max_new_tokens, sampling=sampling)
  prompt_blocks = len(state.cache.prompt_masks)
  yield np.asarray(state.token)[:, None]
  for fed in range(0, max_new_tokens - 1, steps_per_chunk):
    if np.asarray(state.done).all():
      return
    block = min(fed // STEPS_PER_BLOCK, len(state.cache.generated_blocks) - 1)
    state = state.replace(cache=state.cache.writing(prompt_blocks + block))
    steps = min(steps_per_chunk, max_new_tokens - 1 - fed)
    state, chunk = decode_chunk(decoder, state, keys, eos, steps=steps, sampling=sampling)
    yield np.asarray(chunk)


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
  config: JanusConfig,
  images: Sequence[Image.Image],
  turns: Turns,
  tokenizer: Tokenizer,
  template: Template,
  system: str = prompts_lib.SYSTEM_PROMPT,
  tiles: int = 1,
) -> Question:
  """Renders a question and resizes its images, which `tiles` cuts into (`data.tiles`).

  `data.prompts.place_images` says where the images, RGB, of the whole conversation go; LLaVA's `<image>` is as good as
  Janus's placeholder, as in training.

  Raises:
    InputError: an empty question, placeholders that do not match the images, longer than the decoder's positions.
  """
  size = config.image_size
  turns = [prompts_lib.with_placeholders(turn) for turn in ([turns] if isinstance(turns, str) else turns)]
  prompts_lib.check_turns(turns)  # Before images make an empty one longer.
  turns, pixels = with_tiles(turns, images, size, tiles)
  ids = prompts_lib.understanding_ids(
    tokenizer,
    template,
    turns,
    num_images=len(pixels),
    num_image_tokens=config.num_image_tokens,
    max_length=config.language_model.max_positions,
    system=system,
  )
  seen = max((i + 1 for i, token in enumerate(ids) if token == config.image_token_id), default=0)
  return Question(ids, np.stack(pixels) if pixels else np.zeros((0, size, size, 3), np.uint8), seen)


def prepare_questions(
  config: JanusConfig,
  images: Sequence[Sequence[Image.Image]],
  questions: Sequence[Turns],
  tokenizer: Tokenizer,
  template: Template,
  tiles: int = 1,
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
    if not isinstance(pair[0], Sequence) or not all(isinstance(image, Image.Image) for image in pair[0]):
      raise InputError(f'images of question {number} are {shown(pair[0])}: expected a list of PIL images')
    try:
      prepared.append(prepare_question(config, *pair, tokenizer, template, tiles=tiles))
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
  rows_per_prompt: int = 1,
  steps_per_chunk: int = STEPS_PER_CHUNK,
) -> Iterator[list[list[int]]]:
  """Answers questions of one shape as one batch, a few tokens at a time.

  Args:
    decoder: weights.
    questions: with equally many images each.
    indices: the questions' in the whole request; with the seed they decide what is sampled.
    special: ids of the tokenizer.
    settings: all but `batch_size`, `weights` and `cache_dtype`.
    rows_per_prompt: so many consecutive questions begin alike (`group_questions`), with images; 1 where they do not.
    steps_per_chunk: tokens at a time, a divisor of STEPS_PER_BLOCK; the answers do not depend on it.

  Yields:
    per question, the ids that its answer goes on with; none once it has ended. No end tokens.
  """
  ids, first = [question.ids for question in questions], questions[::rows_per_prompt]
  pixels = np.concatenate([question.pixels for question in first])
  rest = None
  if rows_per_prompt > 1:
    rest = _padded([question.ids[question.seen :] for question in questions], special.pad)
    ids = [question.ids[: question.seen] for question in first]
  prompts = TextPrompts(*_padded(ids, special.pad), pixels if len(pixels) else None, rest)
  keys = request_keys(settings.seed, [(index,) for index in indices])
  # The last token is sampled but never fed.
  positions = decoder.config.language_model.max_positions
  limits = [min(settings.max_new_tokens, positions - len(question.ids) + 1) for question in questions]
  options = {'max_new_tokens': max(limits), 'sampling': settings.sampling, 'steps_per_chunk': steps_per_chunk}
  is_text = functools.partial(operator.ne, special.eos)  # A row that has ended goes on with end tokens.
  for chunk in generate_text(decoder, prompts, keys, eos_id=special.eos, **options):
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
  for batch in plan_batches(groups, batch_size, output=min(longest, STEPS_PER_CHUNK)):
    rows = [questions[i] for i in batch.rows]
    for new in stream_tokens(decoder, rows, batch.rows, tokenizer.special, settings, batch.rows_per_prompt):
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
  prepared = prepare_questions(janus.config, images, questions, tokenizer, template, settings.tiles)
  decoder = decoder_for(janus, settings.weights, settings.cache_dtype)
  return answer_questions(decoder, prepared, tokenizer, settings)
