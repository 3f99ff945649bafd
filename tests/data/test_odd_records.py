"""Odd records, files, tars and tokenizers, made from a seed: each is read rightly, or refused in one line."""

import copy
import gzip
import io
import json
import pathlib
import random
import re
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from conversion.fixtures import ASSISTANT, BOI, BOS, EOI, EOS, IMAGE, JANUS_TOKENS, PAD, USER, make_tokenizer
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
# What a message has to name one of: the file, the item, or the field.
FIELDS = r'item \d|conversations|turns|image|text|prompt|answer|interleaved|codes|caption|jpg|txt|\.json|\.tar|document'

# What the text of a raw record has that is not supervised.
MARKS = re.compile('|'.join(map(re.escape, (IMAGE, BOI, EOI))))
TEXTS = [
  *('', ' ', '\n\t', 'a cat', '<image>', '<image>\n<image>\nboth?', 'what is <image> in <image>', IMAGE, BOI, BOS, EOS),
  *(f'{ASSISTANT}: no', 'a' * 9000, 'wort ' * 300, '{}', '%s', "it's", '\r\n', '..', '/', 'no/such.png'),
  *('\x00\x07\x1b[31m', '\ud800', 'x\udcff', '\U0001f469\u200d\U0001f467', '\u202eabc\u202c', '\ufeffmark', '\u2028'),
  *('عربى', '熊は蜂蜜', 'cat.png', 'broken.png', 'text.png', 'data:image/png;base64,' + 'iVBORw0KGgo' * 2000),
]
VALUES = [
  *(None, True, False, 0, -1, 7, 10**30, 3.5, float('nan'), [], {}, [[]], [None], [1, 2, 3, 4, 5], [99, -1, 0, 0, 0]),
  *(['cat.png'], ['cat.png'] * 2, ['cat.png', None], [['cat.png']], ['a', 'b'], ['a', 3], {'path': 3}, {'bytes': 'x'}),
  *({'bytes': None, 'path': 'cat.png'}, {'type': 'text', 'text': 'hi'}, [{'type': 'text', 'text': 'hi'}]),
  *([{'type': 'image'}], [{'type': 'text'}], [{'text': 'hi'}], [{'type': 'audio'}]),
  *([{'type': 'image'}, {'type': 'text', 'text': 'hi'}], [{'type': 'image_url', 'image_url': {'url': 'cat.png'}}]),
]
ROLES = ['human', 'gpt', 'user', 'assistant', 'system', 'tool', 'function', 'Human', 'USER', '', None, 3, ['gpt'], {}]
EXTRA = ['id', 'image', 'images', 'weight', 'conversations', 'system', 'text', 'turns', 'template', 'long', '', ' ']


@pytest.fixture(scope='module')
def spec(tmp_path_factory) -> ExampleSpec:
  directory = tmp_path_factory.mktemp('tokenizer')
  (directory / 'tokenizer.json').write_bytes(make_tokenizer((BOS, EOS, *JANUS_TOKENS)))
  tokenizer, template = Tokenizer.from_directory(directory), prompts.TEMPLATES['deepseek']
  sizes = NUM_IMAGE_TOKENS, NUM_CODES, SIZE, GENERATION_SIZE
  return ExampleSpec(tokenizer, template, *sizes, max_length=MAX_LENGTH, system='Be brief.', num_code_ids=50)


@pytest.fixture
def root(tmp_path) -> pathlib.Path:
  """A directory with some images, of which one is good."""
  (tmp_path / 'cat.png').write_bytes(png())
  (tmp_path / 'broken.png').write_bytes(png()[:40])
  (tmp_path / 'text.png').write_text('<html>not found</html>')
  return tmp_path


def png() -> bytes:
  file = io.BytesIO()
  Image.new('RGB', (9, 7), (200, 10, 10)).save(file, 'PNG')
  return file.getvalue()


def check(example: Example, spec: ExampleSpec, record: dict[str, Any]) -> None:
  """What holds for every example, and of what is supervised in this one."""
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
  """What is wrong with an error as an answer to bad input in a file; '' if nothing is."""
  text = str(error).replace(f'{path.parent}/', '')
  if not isinstance(error, InputError):
    return f'{type(error).__name__}: {text[:200]}'
  if len(text) > LONGEST_MESSAGE:
    return f'{len(text)} characters: {text[:200]}'
  if '\n' in text or not text.isprintable():
    return f'not one plain line: {text!r}'
  return '' if path.name in text or re.search(FIELDS, text) else f'names neither file nor field: {text}'


def read_all(entry: dict[str, Any], path: pathlib.Path, spec: ExampleSpec) -> tuple[list[str], list[str]]:
  """Reads a source to examples. Returns for each item 'read' or 'refused', and what was wrong with them."""
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
      wrong.append(f'item {number}: a wrong example: {str(error)[:300]} {str(shown)[:300]}')
    except Exception as error:
      found.append('refused')
      if fault := refused(error, path):
        wrong.append(f'item {number}: {fault}')
  return found, wrong


def spots(value: Any) -> Iterator[tuple[Any, Any]]:
  """Every place in a nested value: (container, key)."""
  pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
  for key, inner in list(pairs):
    yield value, key
    yield from spots(inner)


def mutated(record: dict[str, Any], chance: random.Random) -> dict[str, Any]:
  """The record with one to three things wrong, or merely unusual."""
  record = copy.deepcopy(record)
  for _ in range(chance.randint(1, 3)):
    places = list(spots(record))
    if not places:
      break
    container, key = chance.choice(places)
    match chance.randrange(6):
      case 0:
        del container[key]
      case 1:
        container[key] = chance.choice(TEXTS)
      case 2:
        container[key] = copy.deepcopy(chance.choice(VALUES))
      case 3 if isinstance(container, dict):
        speaker = chance.choice([name for name in ('from', 'role', 'type') if name in container] or ['from'])
        container[speaker] = copy.deepcopy(chance.choice(ROLES))
      case 4 if isinstance(container, list):
        container.insert(key, copy.deepcopy(container[key]))
      case 5 if isinstance(container, list):
        chance.shuffle(container)
      case _:
        target = container if isinstance(container, dict) else record
        target[chance.choice(EXTRA)] = copy.deepcopy(chance.choice([*TEXTS, *VALUES]))
  return record


def said(speaker: str, text: str, names: tuple[str, str] = ('from', 'value')) -> dict[str, str]:
  return dict(zip(names, (speaker, text)))


CHAT = ('role', 'content')
# By name: the entry of the source, and good records to start from.
SOURCES: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
  'llava': (
    {'kind': 'understanding', 'image': 'image'},
    [
      {
        'id': '1',
        'image': 'cat.png',
        'conversations': [
          *(said('human', '<image>\nWhat is it?'), said('gpt', 'A cat.')),
          *(said('human', 'Sure?'), said('gpt', 'Yes.')),
        ],
      },
      {'image': ['cat.png'] * 2, 'conversations': [said('human', '<image> or <image>?'), said('gpt', 'Both.')]},
      {'id': 3, 'conversations': [said('human', 'And without?'), said('gpt', 'Nothing.')]},
    ],
  ),
  'chat': (
    {'kind': 'text', 'conversations': 'messages'},
    [
      {'messages': [said('system', 'Be kind.', CHAT), said('user', 'Hi', CHAT), said('assistant', 'Hello', CHAT)]},
      {'messages': [said('user', [{'type': 'text', 'text': 'Hi'}], CHAT), said('assistant', 'Hello', CHAT)]},
    ],
  ),
  'documents': (
    {'kind': 'text', 'text': 'text'},
    [{'text': 'wort ' * 200, 'meta': {'url': 'x'}}, {'text': ['a', 'b']}],
  ),
  'answers': (
    {'kind': 'understanding', 'image': 'image', 'answer': 'caption', 'template': 'raw'},
    [{'image': 'cat.png', 'caption': 'A cat.'}, {'image': {'path': 'cat.png'}, 'caption': ['A cat.', 'Red.']}],
  ),
  'interleaved': (
    {'kind': 'understanding', 'image': 'images', 'interleaved': 'text'},
    [
      {'images': ['cat.png', 'cat.png'], 'text': 'one <image> two <image> three'},
      {'images': [], 'text': [{'type': 'text', 'text': 'one'}, {'type': 'image', 'image': 'cat.png'}]},
    ],
  ),
  'prompts': (
    {'kind': 'generation', 'image': 'image', 'prompt': 'caption'},
    [{'image': 'cat.png', 'caption': 'A red cat.'}, {'image': 'cat.png', 'caption': ['one', 'two']}],
  ),
}


@pytest.mark.parametrize('form', ['json', 'json_lines'])
@pytest.mark.parametrize('name', SOURCES)
def test_odd_records(root, spec, name, form):
  entry, good = SOURCES[name]
  chance = random.Random(f'{name} {form}')
  records = [*good, *(mutated(chance.choice(good), chance) for _ in range(100))]
  path = root / f'odd.{form}'
  lines = [json.dumps(record) for record in records]
  path.write_text(f'[{",".join(lines)}]' if form == 'json' else '\n'.join(lines))
  found, wrong = read_all({**entry, 'format': form}, path, spec)
  assert not wrong, '\n'.join(wrong)
  assert len(found) == len(records)
  # Neither all nor nothing is refused: the odd ones are odd, and the good ones good.
  assert found[: len(good)] == ['read'] * len(good)
  assert {'read', 'refused'} == set(found)


GOOD_LINE = json.dumps(SOURCES['llava'][1][0]).encode()
FILES: dict[str, bytes] = {
  'empty': b'',
  'blank': b' \n\n\t\n',
  'null': b'null',
  'number': b'5',
  'text': b'"text"',
  'object': b'{}',
  'values': b'[1, null, "a", [], {}]',
  'cut': b'[' + GOOD_LINE + b', {"image": "ca',
  'cut_line': GOOD_LINE + b'\n' + GOOD_LINE[:30],
  'two_objects': GOOD_LINE + GOOD_LINE,
  'comma': b'[' + GOOD_LINE + b',]',
  'comments': b'// mine\n[' + GOOD_LINE + b']',
  'deep': b'[' * 100_000,
  'deep_value': b'{"image": ' + b'[' * 3000 + b']' * 3000 + b'}',
  'not_a_number': b'[{"image": NaN}]\n',
  'huge_number': b'{"image": ' + b'9' * 5000 + b'}',
  'bom': b'\xef\xbb\xbf' + GOOD_LINE,
  'utf16': GOOD_LINE.decode().encode('utf-16'),
  'latin': '{"image": "caf\xe9"}'.encode('latin-1'),
  'nul': b'\x00' * 64,
  'gzip': gzip.compress(GOOD_LINE, mtime=0),
  'cut_gzip': gzip.compress(GOOD_LINE, mtime=0)[:40],
  'zip': b'PK\x03\x04' + bytes(60),
  'lfs': LFS_POINTER,
  'html': b'<!doctype html><html><body>Entry not found</body></html>',
  'returns': b'\r\n'.join([GOOD_LINE] * 2) + b'\r\n',
  'twice': b'{"image": "a", "image": "b"}',
}


@pytest.mark.parametrize('form', ['json', 'json_lines', 'text'])
def test_odd_files(root, spec, form):
  wrong = []
  entry = SOURCES['llava'][0] if form != 'text' else {'kind': 'text', 'text': 'text'}
  for name, content in FILES.items():
    path = root / f'{name}.{form}'
    path.write_bytes(content)
    wrong += [f'{name}: {fault}' for fault in read_all({**entry, 'format': form}, path, spec)[1]]
  assert not wrong, '\n'.join(wrong)


KEYS = ['a/0', 'a/1', './b', 'c.d', '../e', '/abs/f', '', '.', '._0', 'sp ace', 'new\nline', 'ünï', 'x' * 80, 'a/0/']
ENDINGS = ['jpg', 'png', 'txt', 'json', 'cls', 'JPG', 'seg.png', '', 'jpg.', 'tar', 'npy', 'x' * 20]
CONTENTS = [
  *(
    b'',
    b'a cat',
    png(),
    png()[:30],
    b'\xff\xfe\x00',
    '\ufeffa cat'.encode(),
    b'{"caption": "a"}',
    b'{',
    b'\x00' * 600,
  ),
  *(b'[]', b'7', b'-1', LFS_POINTER, b'a ' * 3000, '\u202ex'.encode(), 'a cat'.encode('utf-16')),
]
TYPES = [tarfile.REGTYPE] * 12 + [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]


def odd_tar(chance: random.Random) -> bytes:
  """Good samples and up to six odd members in any order, then perhaps damage."""
  members = [(f'{key}.{end}', content, tarfile.REGTYPE)
             for key in ('a/0', 'z') for end, content in (('jpg', png()), ('txt', b'a cat'))]  # fmt: skip
  for _ in range(chance.randint(0, 6)):
    name = f'{chance.choice(KEYS)}.{chance.choice(ENDINGS)}'.rstrip('.')
    member = name, chance.choice(CONTENTS), chance.choice(TYPES)
    members.insert(chance.randint(0, len(members)), member)
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode='w', format=chance.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])) as tar:
    for name, content, kind in members:
      info = tarfile.TarInfo(name)
      info.type, info.linkname = kind, chance.choice(['0.jpg', 'a/0.jpg', 'z.txt', 'nowhere', '../../etc/passwd', name])
      info.size = len(content) if kind == tarfile.REGTYPE else 0
      tar.addfile(info, io.BytesIO(content))
  content = bytearray(file.getvalue())
  match chance.randrange(8):
    case 0:
      del content[chance.randrange(len(content)) :]
    case 1:
      content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    case 2:
      return gzip.compress(bytes(content))
    case 3:
      start = chance.randrange(0, len(content), 512)
      content[start : start + 512] = chance.randbytes(512)
  return bytes(content)


def test_odd_tars(root, spec):
  chance = random.Random(1)
  fixed = [b'', b'\x00' * 1024, b'\x00' * 100, LFS_POINTER, png(), b'<html>', chance.randbytes(5000)]
  tars = [*fixed, *(odd_tar(chance) for _ in range(150))]
  answers, wrong = set(), []
  entry = {'kind': 'generation', 'format': 'tars', 'image': 'jpg', 'prompt': 'txt'}
  for number, content in enumerate(tars):
    path = root / f'{number}.tar'
    path.write_bytes(content)
    found, faults = read_all(entry, path, spec)
    answers.update(found)
    wrong += [f'{number}.tar: {fault}' for fault in faults]
  assert not wrong, '\n'.join(wrong)
  assert answers == {'read', 'refused'}


def without(token: str) -> Callable[[dict], None]:
  """Takes a special token out of a tokenizer."""

  def change(content: dict) -> None:
    content['added_tokens'] = [entry for entry in content['added_tokens'] if entry['content'] != token]

  return change


def with_value(name: str, value: Any) -> Callable[[dict], None]:
  """Gives a field of a tokenizer another value."""

  def change(content: dict) -> None:
    content[name] = value

  return change


def doubled(content: dict) -> None:
  content['added_tokens'][1]['id'] = content['added_tokens'][0]['id']


def text_id(content: dict) -> None:
  content['added_tokens'][0]['id'] = 'seven'


def negative_id(content: dict) -> None:
  content['added_tokens'][0]['id'] = -1


CHANGES = [
  *(without(token) for token in (BOS, EOS, PAD, BOI, EOI, IMAGE, USER, ASSISTANT)),
  *(with_value('model', value) for value in (None, {}, [], {'type': 'BPE'}, {'type': 'Other', 'vocab': {}})),
  *(with_value('added_tokens', value) for value in (None, [], {}, [None], [{'content': 'x'}], 'x')),
  *(with_value('truncation', value) for value in (3, {'max_length': 1}, {})),
  *(with_value('pre_tokenizer', value) for value in (3, {'type': 'Other'}, None)),
  *(with_value('version', value) for value in (None, '2.0', 7)),
  *(doubled, text_id, negative_id),
]


def odd_tokenizers() -> Iterator[bytes]:
  good = make_tokenizer((BOS, EOS, *JANUS_TOKENS))
  chance = random.Random(2)
  yield good
  for change in CHANGES:
    content = json.loads(good)
    change(content)
    yield json.dumps(content).encode()
  yield from (good[: chance.randrange(len(good))] for _ in range(10))
  for _ in range(10):
    damaged = bytearray(good)
    damaged[chance.randrange(len(damaged))] = chance.randrange(256)
    yield bytes(damaged)
  yield from (b'', b' ', b'null', b'{}', b'[]', b'7', LFS_POINTER, b'<html>', bytes(99), gzip.compress(good))
  yield from (good.decode().encode('utf-16'), b'\xef\xbb\xbf' + good, good + good, b'[' * 100_000, png())


def test_odd_tokenizers(tmp_path):
  answers, wrong = set(), []
  for number, content in enumerate(odd_tokenizers()):
    path = tmp_path / f'{number}.json'
    path.write_bytes(content)
    try:
      tokenizer = Tokenizer(str(path))
      table = max(tokenizer._backend.get_vocab(with_added_tokens=True).values())
      for text in ('A red cat.', f'{IMAGE}\n{USER}: hi', '\U0001f469\u200d\U0001f467 عربى'):
        ids = tokenizer.encode(text)
        assert ids
        assert min(ids) >= 0
        assert max(ids) <= table
      answers.add('read')
    except AssertionError as error:
      wrong.append(f'{path.name}: wrong ids: {error}')
    except Exception as error:
      answers.add('refused')
      if fault := refused(error, path):
        wrong.append(f'{path.name}: {fault}')
  assert not wrong, '\n'.join(wrong)
  assert answers == {'read', 'refused'}
