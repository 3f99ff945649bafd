"""Records to training examples: token ids, what each position holds, what it predicts, and in which loss.

The layouts are Janus's. What inference would encode as a prompt is exactly a prefix of the training ids, because prompt
and answer are tokenised apart here: no token straddles the two.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from janus_jax.data import prompts
from janus_jax.data import tokenizer as tokenizer_lib
from janus_jax.data.aspects import Grid, aspect_buckets
from janus_jax.data.prompts import Template
from janus_jax.data.tokenizer import IMAGE_PLACEHOLDER, Tokenizer
from janus_jax.errors import InputError, RecordError, shown

# The order of every und:text:gen ratio.
TASKS = ('understanding', 'text', 'generation')
# What an input position holds.
PAD, TEXT, IMAGE, CODE = range(4)
# Which loss a target counts in.
NO_LOSS, UNDERSTANDING_LOSS, TEXT_LOSS, GENERATION_LOSS = range(4)


@dataclasses.dataclass(frozen=True)
class ExampleSpec:
  """Sizes, limits and texts by which records become examples.

  Attributes:
    tokenizer: the checkpoint's.
    template: names of the speakers.
    num_image_tokens: features per understanding image (576 in the released models).
    num_codes: P, codes per generated image (576), at most so many where it is not square.
    image_size: side of the understanding images in pixels (384).
    generation_size: side of the generation images (384); None if records hold codes in place of images.
    max_length: the longest example, in tokens, images included.
    system: comes before the conversations of understanding whose records name no other.
    num_code_ids: size of the codebook (16384), to refuse what lies outside.
  """

  tokenizer: Tokenizer
  template: Template
  num_image_tokens: int
  num_codes: int
  image_size: int
  generation_size: int | None
  max_length: int
  system: str = prompts.SYSTEM_PROMPT
  num_code_ids: int = 16384


@dataclasses.dataclass(frozen=True)
class Example:
  """n positions that are trained on as one sequence: a record, or a piece of a long document.

  Attributes:
    tokens: int32[n]; a text id, or where `token_types` is CODE a code (its index in the image, if given as pixels).
    token_types: uint8[n]; TEXT, IMAGE or CODE.
    targets: int32[n]; what the position predicts, 0 where nothing is supervised.
    loss_ids: uint8[n]; NO_LOSS, UNDERSTANDING_LOSS, TEXT_LOSS or GENERATION_LOSS.
    weights: float32[n]; 1 on supervised positions, 0 elsewhere.
    pixels: uint8[j, size, size, 3]; understanding images in reading order.
    generation_pixels: uint8[g, size, size, 3]; the image to generate; g is 0 if codes were given.
    cut: True if turns of the conversation were left out, because they did not fit.
    where: what messages call the record that it is made of; '' if the record does not say.
  """

  tokens: np.ndarray
  token_types: np.ndarray
  targets: np.ndarray
  loss_ids: np.ndarray
  weights: np.ndarray
  pixels: np.ndarray
  generation_pixels: np.ndarray
  cut: bool = False
  where: str = ''


def make_examples(
  kind: str, record: Mapping[str, Any], spec: ExampleSpec, rng: np.random.Generator, guidance_dropout: float = 0.0
) -> list[Example]:
  """Turns a record into one example, or into the pieces of a long document in their order.

  Args:
    kind: one of `TASKS`.
    record: fields of that task:
      understanding: 'images', a list of uint8[size, size, 3], and either 'turns', [question, answer, ...], of which the
        answers are supervised, or 'text', all of which is. A placeholder in the text stands for an image; where there
        is none, the images come first.
      text: 'turns', or 'text'.
      generation: 'prompt', and 'image', uint8[size, size, 3], or 'codes', int32[P]; or int32[rows * columns] with
        'grid', (rows, columns), one of the `aspect_buckets`. Where 'template' is 'raw' the prompt stands alone, without
        roles.
      'system' comes before the turns: by default `spec.system` for understanding, nothing for text. 'long' says what
      becomes of more than `spec.max_length` tokens: of turns, 'cut' keeps the first that fit (the default) and 'skip'
      none; of the text of a text record, 'split' makes several examples (the default) and 'skip' none. What else is
      too long is skipped. 'where' is what messages call the record, 'source' its source.
    spec: how records become examples.
    rng: decides about guidance dropout.
    guidance_dropout: probability that a prompt becomes pads, which are attended to (classifier-free guidance).

  Raises:
    RecordError: a field is missing, empty or of a wrong type, shape or range; for the reason 'long': the record is too
      long, and nothing of it is to be trained on.
  """
  if not isinstance(record, Mapping):
    raise RecordError('wrong type', f'the record is a {type(record).__name__}: expected a dict')
  where = record.get('where', '')
  try:
    if kind == 'generation':
      examples = [_generation_example(record, spec, rng, guidance_dropout)]
    elif kind == 'understanding':
      examples = [_understanding_example(record, spec)]
    elif 'turns' in record:
      examples = [_conversation(record, (), TEXT_LOSS, '', spec)]
    else:
      examples = _document_pieces(record, spec)
  except RecordError as error:
    raise error.at(where) if where else error from None
  return [dataclasses.replace(example, where=where) for example in examples] if where else examples


def _understanding_example(record: Mapping[str, Any], spec: ExampleSpec) -> Example:
  images = _field(record, 'images', list, tuple, np.ndarray)
  for number, image in enumerate(images):
    _check_image(image, f'images[{number}]', spec.image_size)
  if 'text' in record:
    return _text_with_images(record, images, spec)
  return _conversation(record, images, UNDERSTANDING_LOSS, spec.system, spec)


def _conversation(
  record: Mapping[str, Any], images: Sequence[np.ndarray], loss: int, default_system: str, spec: ExampleSpec
) -> Example:
  """Supervises what comes after each `Assistant:`, up to the end-of-sentence token, and nothing else."""
  turns = _place_images(_turns(record), len(images))
  if any(IMAGE_PLACEHOLDER in answer for answer in turns[1::2]):
    raise RecordError('conversation', f'turns: {IMAGE_PLACEHOLDER} in an answer: expected images in questions only')
  may_cut = record.get('long', 'cut') == 'cut'
  ids, answered, kept = [], [], 0
  for question, answer in zip(turns[::2], turns[1::2]):
    # An end-of-sentence token comes between turns, so that tokenising turn by turn gives the ids of the whole text.
    system = '' if kept else record.get('system', default_system)
    prompt = spec.tokenizer.encode(prompts.render_prompt(spec.template, [question, ''], system), add_bos=not kept)
    prompt = prompts.expand_images(prompt, spec.tokenizer.special, spec.num_image_tokens)
    reply = spec.tokenizer.encode(f' {answer.strip()}{tokenizer_lib.EOS}', add_bos=False)
    if may_cut and kept and len(ids) + len(prompt) + len(reply) > spec.max_length:
      break
    ids += prompt + reply
    answered += [False] * len(prompt) + [True] * len(reply)
    kept += 2
  _check_length(len(ids), spec, record)
  images = images[: sum(turn.count(IMAGE_PLACEHOLDER) for turn in turns[:kept])]
  example = _text_example(np.array(ids, np.int32), np.array([*answered[1:], False]), loss, images, spec)
  return dataclasses.replace(example, cut=kept < len(turns))


def _text_with_images(record: Mapping[str, Any], images: Sequence[np.ndarray], spec: ExampleSpec) -> Example:
  """Supervises all text, but neither images nor the tokens that enclose them."""
  text = _field(record, 'text', str)
  if not text.replace(IMAGE_PLACEHOLDER, '').strip():
    raise RecordError('text', 'text: empty: expected text beside the images')
  special = spec.tokenizer.special
  ids = spec.tokenizer.encode(_place_images([text], len(images), separator='')[0])
  tokens = np.array([*prompts.expand_images(ids, special, spec.num_image_tokens), special.eos], np.int32)
  _check_length(len(tokens), spec, record)
  said = ~np.isin(tokens, (special.begin_of_image, special.image_placeholder, special.end_of_image))
  return _text_example(tokens, np.append(said[1:], False), UNDERSTANDING_LOSS, images, spec)


def _document_pieces(record: Mapping[str, Any], spec: ExampleSpec) -> list[Example]:
  """Supervises every token but the first (BOS), in one of the pieces: the last position of a piece predicts the first
  token of the next. A piece that would hold the end-of-sentence token alone predicts nothing and is left out.
  """
  tokens = np.array([*spec.tokenizer.encode(_text(record, 'text')), spec.tokenizer.special.eos], np.int32)
  if record.get('long') == 'skip':
    _check_length(len(tokens), spec, record)
  whole = _text_example(tokens, np.arange(len(tokens)) < len(tokens) - 1, TEXT_LOSS, (), spec)
  spans = [slice(start, start + spec.max_length) for start in range(0, len(tokens) - 1, spec.max_length)]
  names = ('tokens', 'token_types', 'targets', 'loss_ids', 'weights')
  return [dataclasses.replace(whole, **{name: getattr(whole, name)[span] for name in names}) for span in spans]


def _text_example(
  tokens: np.ndarray, supervised: np.ndarray, loss: int, images: Sequence[np.ndarray], spec: ExampleSpec
) -> Example:
  token_types = np.where(tokens == spec.tokenizer.special.image_placeholder, IMAGE, TEXT).astype(np.uint8)
  pixels = np.stack(images) if len(images) else no_images(spec.image_size)
  return predicting(tokens, token_types, supervised, loss, pixels, no_images(spec.generation_size or 1))


def _generation_example(
  record: Mapping[str, Any], spec: ExampleSpec, rng: np.random.Generator, guidance_dropout: float
) -> Example:
  """Supervises the codes: begin-of-image predicts the first one, each code but the last the next."""
  drop = rng.random() < guidance_dropout
  template = None if record.get('template') == 'raw' else spec.template
  grid = _grid(record, spec)
  ids = spec.tokenizer.encode(prompts.generation_text(template, _text(record, 'prompt'), grid))
  if spec.generation_size is None:
    codes, pixels = _codes(record, grid, spec), no_images(1)
  else:
    image = _field(record, 'image', np.ndarray)
    _check_image(image, 'image', spec.generation_size)
    codes, pixels = np.arange(spec.num_codes, dtype=np.int32), image[None]
  _check_length(len(ids) + len(codes) - 1, spec, record)
  if drop:
    ids = prompts.unconditional_ids(ids, spec.tokenizer.special.pad)
  return generation_example(np.array(ids, np.int32), codes, no_images(spec.image_size), pixels)


def generation_example(
  prompt: np.ndarray, codes: np.ndarray, pixels: np.ndarray, generation_pixels: np.ndarray
) -> Example:
  """An image to generate: prompt int32[n] ending in begin-of-image, codes int32[P]; other arrays as in `Example`."""
  n, P = len(prompt), len(codes)
  loss_ids = np.repeat(np.array([NO_LOSS, GENERATION_LOSS], np.uint8), (n - 1, P))
  return Example(
    tokens=np.concatenate([prompt, codes[:-1]]),
    token_types=np.repeat(np.array([TEXT, CODE], np.uint8), (n, P - 1)),
    targets=np.concatenate([np.zeros(n - 1, np.int32), codes]),
    loss_ids=loss_ids,
    weights=(loss_ids > 0).astype(np.float32),
    pixels=pixels,
    generation_pixels=generation_pixels,
  )


def predicting(
  tokens: np.ndarray,
  token_types: np.ndarray,
  supervised: np.ndarray,
  loss: int,
  pixels: np.ndarray,
  generation_pixels: np.ndarray,
) -> Example:
  """A sequence of which the supervised positions (bool[n]) predict the next token; other arrays as in `Example`."""
  return Example(
    tokens=tokens,
    token_types=token_types,
    targets=np.append(tokens[1:], np.int32(0)) * supervised,
    loss_ids=np.where(supervised, loss, NO_LOSS).astype(np.uint8),
    weights=supervised.astype(np.float32),
    pixels=pixels,
    generation_pixels=generation_pixels,
  )


def no_images(size: int) -> np.ndarray:
  """uint8[0, size, size, 3]."""
  return np.zeros((0, size, size, 3), np.uint8)


def _place_images(turns: Sequence[str], num_images: int, separator: str = '\n') -> list[str]:
  try:
    return prompts.place_images(turns, num_images, separator)
  except InputError as error:
    raise RecordError('image count' if num_images else 'no image', str(error)) from None


def _field(record: Mapping[str, Any], name: str, *types: type) -> Any:
  if name not in record:
    raise RecordError('missing field', f'{name}: missing: the record has {sorted(record)}')
  if not isinstance(record[name], types):
    expected = ' or '.join(t.__name__ for t in types)
    raise RecordError('wrong type', f'{name}: a {type(record[name]).__name__}: expected {expected}')
  return record[name]


def _text(record: Mapping[str, Any], name: str) -> str:
  text = _field(record, name, str)
  if not text.strip():
    raise RecordError('text', f'{name}: empty: expected text')
  if IMAGE_PLACEHOLDER in text:
    raise RecordError('text', f'{name}: {IMAGE_PLACEHOLDER} in the text, but the record has no such image')
  return text


def _turns(record: Mapping[str, Any]) -> Sequence[str]:
  turns = _field(record, 'turns', list, tuple)
  if not turns or len(turns) % 2:
    expected = 'expected question, answer, ..., question, answer'
    raise RecordError('conversation', f'turns: {len(turns)} of them: {expected}')
  for number, turn in enumerate(turns):
    if not isinstance(turn, str) or not turn.strip():
      raise RecordError('conversation', f'turns[{number}]: {shown(turn)}: expected text')
  return turns


def _check_image(image: Any, name: str, size: int) -> None:
  is_array = isinstance(image, np.ndarray)
  if not is_array or image.dtype != np.uint8 or image.shape != (size, size, 3):
    found = f'{image.dtype}{list(image.shape)}' if is_array else f'a {type(image).__name__}'
    raise RecordError('wrong type', f'{name}: {found}: expected uint8[{size}, {size}, 3]')


def _grid(record: Mapping[str, Any], spec: ExampleSpec) -> Grid | None:
  """The grid that a record names; None where its codes are the model's square."""
  if 'grid' not in record:
    return None
  grid, buckets = record['grid'], aspect_buckets(math.isqrt(spec.num_codes))
  if grid not in buckets:
    expected = ', '.join(f'{rows} x {columns}' for rows, columns in buckets)
    raise RecordError('codes', f'grid: {shown(grid)}: expected one of {expected} (rows x columns)')
  return grid


def _codes(record: Mapping[str, Any], grid: Grid | None, spec: ExampleSpec) -> np.ndarray:
  codes, count = _field(record, 'codes', np.ndarray), math.prod(grid) if grid else spec.num_codes
  if codes.shape != (count,) or not np.issubdtype(codes.dtype, np.integer):
    raise RecordError('codes', f'codes: {codes.dtype}{list(codes.shape)}: expected int32[{count}]')
  if codes.min() < 0 or codes.max() >= spec.num_code_ids:
    found = f'from {codes.min()} to {codes.max()}'
    raise RecordError('codes', f'codes: {found}: expected 0 to {spec.num_code_ids - 1}')
  return codes.astype(np.int32)


def _check_length(length: int, spec: ExampleSpec, record: Mapping[str, Any]) -> None:
  if length > spec.max_length:
    source = record.get('source', 'NAME')
    limit = f'expected at most {spec.max_length}, which is sequence_length (see data.sources.{source}.long)'
    raise RecordError('long', f'the example has {length} tokens: {limit}')
