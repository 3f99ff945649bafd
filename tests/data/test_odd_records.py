"""Odd records and files of JSON and text, made from a seed: each is read rightly, or refused in one line."""

import copy
import gzip
import json
import pathlib
import random
from collections.abc import Iterator
from typing import Any

import pytest
from conversion.fixtures import ASSISTANT, BOI, BOS, EOS, IMAGE
from data.odd_data import LFS_POINTER, make_spec, png, read_all

from janus_jax.data.examples import ExampleSpec

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
  return make_spec(tmp_path_factory.mktemp('tokenizer'))


@pytest.fixture
def root(tmp_path) -> pathlib.Path:
  """A directory with some images, of which one is good."""
  (tmp_path / 'cat.png').write_bytes(png())
  (tmp_path / 'broken.png').write_bytes(png()[:40])
  (tmp_path / 'text.png').write_text('<html>not found</html>')
  return tmp_path


def spots(value: Any) -> Iterator[tuple[Any, Any]]:
  """Every value within a nested value: (container, key)."""
  pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
  for key, inner in list(pairs):
    yield value, key
    yield from spots(inner)


def mutated(record: dict[str, Any], chance: random.Random) -> dict[str, Any]:
  """The record with one to three things wrong, or merely unusual."""
  record = copy.deepcopy(record)
  for _ in range(chance.randint(1, 3)):
    found = list(spots(record))
    if not found:
      break
    container, key = chance.choice(found)
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
