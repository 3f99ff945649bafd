"""Odd tokenizers, made from a seed: each encodes rightly, or is refused in one line."""

import gzip
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from conversion.fixtures import ASSISTANT, BOI, BOS, EOI, EOS, IMAGE, JANUS_TOKENS, PAD, USER, make_tokenizer
from data.odd_data import LFS_POINTER, png, refused

from janus_jax.data.tokenizer import Tokenizer


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
