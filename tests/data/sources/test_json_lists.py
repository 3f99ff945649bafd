"""Where the items of a JSON list lie, as the json module finds them."""

import json
import random

import pytest

from janus_jax.data.sources import json_lists
from janus_jax.data.sources.json_lists import find_items
from janus_jax.errors import InputError

CHARACTERS = '"\\[]{},:a é三🙂\n\0'


def random_value(rng: random.Random, depth: int = 3):
  """Any JSON value, of many brackets, quotes and backslashes."""
  text = ''.join(rng.choices(CHARACTERS, k=rng.randrange(8)))
  if rng.random() < 0.5 or not depth:
    return rng.choice([None, True, -1.5, 7, text, text])
  inner = [random_value(rng, depth - 1) for _ in range(rng.randrange(4))]
  return inner if rng.random() < 0.5 else {f'{text}{number}': value for number, value in enumerate(inner)}


def found(path, content: bytes) -> list[bytes]:
  path.write_bytes(content)
  bounds = find_items(str(path), 'x')
  assert bounds[:, 2].tolist() == list(range(len(bounds)))
  return [content[begin:end] for begin, end, _ in bounds.tolist()]


@pytest.mark.parametrize('chunk', [1, 2, 3, 7, 1 << 24])
def test_items_are_those_that_json_finds(chunk, tmp_path, monkeypatch):
  monkeypatch.setattr(json_lists, 'CHUNK', chunk)
  rng = random.Random(chunk)
  for _ in range(60):
    items = [random_value(rng) for _ in range(rng.randrange(6))]
    indent = rng.choice([None, 0, 3, '\t'])
    content = json.dumps(items, ensure_ascii=rng.random() < 0.5, indent=indent).encode()
    assert [json.loads(item) for item in found(tmp_path / 'x.json', content)] == items


@pytest.mark.parametrize('chunk', [1, 2, 5, 1 << 24])
def test_marks_space_and_backslashes(chunk, tmp_path, monkeypatch):
  monkeypatch.setattr(json_lists, 'CHUNK', chunk)
  content = b'\xef\xbb\xbf \r\n[ {"a": "\\\\\\"],"}\t,\n"\\\\" ]\n\n'
  assert list(map(json.loads, found(tmp_path / 'x', content))) == [{'a': '\\"],'}, '\\']
  assert found(tmp_path / 'x', b' [ \n ] ') == []


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', r'^x: empty: expected a JSON list, \[\.\.\.\]$'),
    (b'\xef\xbb\xbf \n', r'^x: empty: expected a JSON list'),
    (b'\0\0', r"^x: begins with '\\x00': expected a JSON list"),
    (b'\xff[]', r"^x: begins with '\\xff': expected a JSON list"),
    (b'{"a": 1}\n{"a": 2}', r"^x: begins with '{': expected a JSON list, \[\.\.\.\]; an object .* 'json_lines'$"),
    (b'"[]"', r"^x: begins with '\"': expected a JSON list"),
    (b'[', r'^x: ends within item 0, which begins at offset 1: expected a whole JSON list$'),
    (b'[' * 100_000, r'^x: ends within item 0, which'),
    (b'[{"a": 1}, {"a": 2', r'^x: ends within item 1, which begins at offset 10: expected'),
    (b'[{"a": 1}, {"a": "2}, {"a": "3"}]', r'^x: ends within item 1, which begins at offset 10: expected'),
    (b'[{"a": 1}, {"a": "2}, {"b,": "]}, {}', r'^x: item 1: .*, at offset 10: expected a JSON list$'),
    (b'[{"a": 1}}', r"^x: '}' at offset 9: expected the end of a JSON list, \]$"),
    (b'[1, 2] [3]', r'^x: more at offset 7, after the end of the list: expected one JSON list$'),
    (b'[1, 2]\0\0', r'^x: more at offset 6, after'),
  ],
)
@pytest.mark.parametrize('chunk', [1, 4, 1 << 24])
def test_what_is_no_list_says_where(content, message, chunk, tmp_path, monkeypatch):
  monkeypatch.setattr(json_lists, 'CHUNK', chunk)
  with pytest.raises(InputError, match=message):
    found(tmp_path / 'x', content)
