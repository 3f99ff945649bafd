"""Checks of what is made of odd data: each item is read rightly, or refused in one line. Imported by its tests."""

import io
import pathlib
import re
import traceback
from typing import Any

import numpy as np
from conversion.fixtures import BOI, BOS, EOI, EOS, IMAGE, JANUS_TOKENS, make_tokenizer
from PIL import Image

from janus_jax.data import prompts
from janus_jax.data.examples import CODE, NO_LOSS, TEXT, Example, ExampleSpec, make_examples
from janus_jax.data.examples import IMAGE as IMAGE_POSITION
from janus_jax.data.sources.build import ImageSizes, open_sources, read_specs
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import InputError

SIZE, GENERATION_SIZE, NUM_IMAGE_TOKENS, NUM_CODES, MAX_LENGTH = 6, 4, 3, 5, 400
LFS_POINTER = b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 12345\n'
LONGEST_MESSAGE = 300
# A message has to name one of these: the file, the item, or the field.
FIELDS = r'item \d|conversations|turns|image|text|prompt|answer|interleaved|codes|caption|jpg|txt|\.json|\.tar|document'
# Text of a raw record that is not supervised.
MARKS = re.compile('|'.join(map(re.escape, (IMAGE, BOI, EOI))))


def make_spec(directory: pathlib.Path) -> ExampleSpec:
  """The examples of a small tokenizer, which is written to a directory."""
  (directory / 'tokenizer.json').write_bytes(make_tokenizer((BOS, EOS, *JANUS_TOKENS)))
  tokenizer, template = Tokenizer.from_directory(directory), prompts.TEMPLATES['deepseek']
  sizes = NUM_IMAGE_TOKENS, NUM_CODES, SIZE, GENERATION_SIZE
  return ExampleSpec(tokenizer, template, *sizes, max_length=MAX_LENGTH, system='Be brief.', num_code_ids=50)


def png() -> bytes:
  file = io.BytesIO()
  Image.new('RGB', (9, 7), (200, 10, 10)).save(file, 'PNG')
  return file.getvalue()


def check(example: Example, spec: ExampleSpec, record: dict[str, Any]) -> None:
  """Asserts what holds for every example, and what is supervised in this one."""
  n = len(example.tokens)
  assert 0 < n <= spec.max_length
  assert {len(values) for values in (example.token_types, example.targets, example.loss_ids, example.weights)} == {n}
  table = spec.tokenizer._backend.get_vocab_size()
  code = example.token_types == CODE
  assert example.tokens.min() >= 0
  assert (example.tokens[~code] < table).all()
  assert (example.tokens[code] < spec.num_code_ids).all()
  assert example.pixels.shape[1:] == (SIZE, SIZE, 3)
  assert (example.token_types == IMAGE_POSITION).sum() == NUM_IMAGE_TOKENS * len(example.pixels)
  supervised = example.loss_ids != NO_LOSS
  assert supervised.any()
  assert (example.weights == supervised).all()
  assert (example.targets[~supervised] == 0).all()
  if 'prompt' in record:
    assert list(example.targets[supervised]) in (list(range(NUM_CODES)), list(record.get('codes', [])))
  else:
    # The last position of a piece of a document predicts what the next piece begins with.
    assert (example.targets[:-1][supervised[:-1]] == example.tokens[1:][supervised[:-1]]).all()
    said = spec.tokenizer.decode(example.targets[supervised], skip_special=False)
    if 'turns' in record:
      answers = ''.join(f' {answer.strip()}{EOS}' for answer in record['turns'][1::2])
      assert said == answers or (example.cut and answers.startswith(said))
    else:
      assert said in (MARKS.sub('', record['text']) if 'images' in record else record['text']) + EOS
  assert TEXT in example.token_types


def refused(error: Exception, path: pathlib.Path) -> str:
  """The fault of an error as an answer to bad input in a file; '' if it has none."""
  text = str(error).replace(f'{path.parent}/', '')
  if not isinstance(error, InputError):
    return f'{type(error).__name__}: {text[:200]}'
  if len(text) > LONGEST_MESSAGE:
    return f'{len(text)} characters: {text[:200]}'
  if '\n' in text or not text.isprintable():
    return f'not one plain line: {text!r}'
  return '' if path.name in text or re.search(FIELDS, text) else f'names neither file nor field: {text}'


def read_all(entry: dict[str, Any], path: pathlib.Path, spec: ExampleSpec) -> tuple[list[str], list[str]]:
  """Reads a source to examples. Returns for each item 'read' or 'refused', and the faults."""
  root = path.parent
  entry = {**entry, 'path': str(path)} | ({'image_folder': str(root)} if entry['kind'] != 'text' else {})
  found, wrong = [], []
  try:
    opened = open_sources(read_specs({'odd': entry}), ImageSizes(SIZE, GENERATION_SIZE), 0, str(root / 'index'))
    (source,) = opened['train'][entry['kind']].values()
  except Exception as error:
    return ['refused'], [fault] if (fault := refused(error, path)) else []
  for number in range(len(source)):
    record = None
    try:
      record = source[number]
      examples = make_examples(entry['kind'], record, spec, np.random.default_rng(number), 0.0)
      assert examples
      for example in examples:
        check(example, spec, record)
      found.append('read')
    except AssertionError as error:
      shown = {name: value for name, value in record.items() if name not in ('images', 'image')}
      failed = traceback.extract_tb(error.__traceback__)[-1].line
      wrong.append(f'item {number}: a wrong example: {failed} {str(shown)[:300]}')
    except Exception as error:
      found.append('refused')
      if fault := refused(error, path):
        wrong.append(f'item {number}: {fault}')
  return found, wrong
