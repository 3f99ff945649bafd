"""Conversations in all the forms people have them, and what LLaVA's own reader makes of odd ones."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from janus_jax.data.sources.conversations import conversation
from janus_jax.data.sources.records import Fields, UnderstandingRecord
from janus_jax.errors import RecordError

MARK = '<image_placeholder>'


def llava(*said: str) -> list[dict]:
  """'human: What?' as LLaVA has it."""
  return [dict(zip(('from', 'value'), turn.split(': ', 1))) for turn in said]


@pytest.mark.parametrize(
  ('turns', 'expected'),
  [
    (llava('human: a', 'gpt: b'), ['a', 'b']),
    (llava('gpt: Hello!', 'human: a', 'gpt: b'), ['a', 'b']),  # LLaVA: `source = source[1:]`.
    (llava('human: a', 'gpt: b', 'human: c'), ['a', 'b']),
    (llava('gpt: Hello!', 'human: a', 'gpt: b', 'human: c'), ['a', 'b']),
    (llava('system: s', 'gpt: Hello!', 'human: a', 'gpt: b'), ['a', 'b']),
    (llava('Human: a', 'GPT: b', 'USER: c', 'ASSISTANT: d'), ['a', 'b', 'c', 'd']),
    (llava('<|User|>: a', '<|Assistant|>: b'), ['a', 'b']),
    (llava('human: a', 'chatgpt: b', 'user: c', 'model: d'), ['a', 'b', 'c', 'd']),
    (['a', 'b', 'c'], ['a', 'b']),
    ('[{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]', ['a', 'b']),
    ([{'role': role, 'content': role} for role in ('developer', 'user', 'assistant')], ['user', 'assistant']),
    ([{'from': None, 'role': role, 'value': None, 'content': 'a'} for role in ('user', 'assistant')], ['a', 'a']),
  ],
)  # fmt: skip
def test_turns_are_those_that_llava_trains_on(turns, expected):
  assert conversation(turns, None, 'chat') == (expected, [])


@pytest.mark.parametrize(
  ('turns', 'images', 'expected', 'kept'),
  [
    (llava('human: <image>\na', 'gpt: b'), 'A', [f'{MARK}\na', 'b'], ['A']),
    (llava('human: a', 'gpt: b'), 'A', ['a', 'b'], ['A']),
    (llava('human: a', 'gpt: b', 'human: c'), ['A', 'B'], ['a', 'b'], ['A', 'B']),
    # Images go with the turns that are left out, where there are that many.
    (llava('human: <image>a', 'gpt: b', 'human: <image>c'), ['A', 'B'], [f'{MARK}a', 'b'], ['A']),
    (llava('gpt: <image>', 'human: <image>a', 'gpt: b'), ['A', 'B'], [f'{MARK}a', 'b'], ['B']),
    (llava('gpt: <image>', 'human: <image>a', 'gpt: b'), ['B'], [f'{MARK}a', 'b'], ['B']),
    *(
      ([{'role': 'user', 'content': content}, {'role': 'assistant', 'content': [{'type': 'text', 'text': 'b'}]}],
       images, expected, kept)
      for content, images, expected, kept in (
        ([{'type': 'text', 'text': 'a'}], None, ['a', 'b'], []),
        ([{'type': 'image'}, {'type': 'text', 'text': 'a'}], 'A', [f'{MARK}\na', 'b'], ['A']),
        ([{'type': 'text', 'text': 'a\n'}, {'type': 'image'}], ['A'], [f'a\n{MARK}', 'b'], ['A']),
        ([{'type': 'image'}, {'type': 'image'}, {'type': 'text', 'text': 'a'}], ['A', 'B'],
         [f'{MARK}\n{MARK}\na', 'b'], ['A', 'B']),
        ([{'type': 'image_url', 'image_url': {'url': 'x.png'}}, {'type': 'text', 'text': 'a'}], None,
         [f'{MARK}\na', 'b'], ['x.png']),
        ([{'type': 'image', 'image': 'x.png'}, {'type': 'image', 'text': None}, {'type': 'text', 'text': 'a'}], 'A',
         [f'{MARK}\n{MARK}\na', 'b'], ['x.png', 'A']),
        ([{'type': 'text', 'text': '<image>a'}], 'A', [f'{MARK}a', 'b'], ['A']),
      )
    ),
  ],
)  # fmt: skip
def test_images_go_where_the_turns_have_them(turns, images, expected, kept):
  assert conversation(turns, images, 'chat') == (expected, kept)


@pytest.mark.parametrize(
  ('turns', 'images', 'reason', 'message'),
  [
    (llava('gpt: Hello!'), None, 'conversation', r'chat: 1 turns: expected a question and its answer'),
    (llava('human: a'), None, 'conversation', r'chat: 1 turns: expected a question'),
    ([], None, 'conversation', r'chat: 0 turns'),
    (llava('human: a', 'human: b'), None, 'conversation', r"chat\[1\]: said by 'human': expected gpt or assistant"),
    (llava('gpt: a', 'gpt: b', 'human: c'), None, 'conversation', r"chat\[1\]: said by 'gpt': expected human or user"),
    (llava('human: a', 'tool: b'), None, 'conversation', r"chat\[1\]: said by 'tool': expected human or user or gpt"),
    (llava('human: a', 'gpt: b', 'system: c'), None, 'conversation', r'chat: a turn of the system after others'),
    ([{'value': 'a'}, {'value': 'b'}], None, 'conversation', r'chat\[0\]: said by None'),
    ([{'from': ['human'], 'value': 'a'}], None, 'conversation', r"chat\[0\]: said by \['human'\]"),
    (llava('human: a', 'gpt:  '), None, 'conversation', r'chat\[1\]: empty: expected text'),
    ([{'from': 'human'}, {'from': 'gpt', 'value': 'b'}], None, 'conversation', r'chat\[0\]: nothing said'),
    (7, None, 'conversation', r'chat: a int: expected a list of turns'),
    (llava('human: <image>a', 'gpt: b'), '', 'no image', r'chat: 1 placeholders for 0 images: expected one for each'),
    (llava('human: <image>a', 'gpt: b'), ['A', 'B'], 'image count', r'chat: 1 placeholders for 2 images'),
    ([{'role': 'user', 'content': [{'type': 'audio'}]}], None, 'wrong type', r"chat\[0\]\[0\]: 'audio': expected"),
    ('no json', None, 'conversation', 'chat: a str: expected a list of turns'),
    (['a', 3], None, 'wrong type', r'chat\[1\]: a int: expected text'),
    (['a', 'half of \ud83d'], None, 'text', r'chat\[1\]: surrogates not allowed'),
  ],
)  # fmt: skip
def test_conversations_that_are_none_say_why(turns, images, reason, message):
  with pytest.raises(RecordError, match=message) as caught:
    conversation(turns, images, 'chat')
  assert caught.value.reason == reason


@pytest.mark.parametrize('image', ['', ' ', None, [], [''], [None], {'bytes': None, 'path': None}])
def test_an_image_that_is_none_is_no_image(image):
  transform = UnderstandingRecord(Fields(), 24)
  item = {'image': image, 'conversations': llava('human: a', 'gpt: b')}
  assert transform.random_map(('x', item), np.random.default_rng(0))['images'] == []


def test_an_image_may_be_a_url_of_its_content():
  file = io.BytesIO()
  Image.new('RGB', (24, 24), (9, 9, 9)).save(file, 'PNG')
  url = 'data:image/png;base64,' + base64.b64encode(file.getvalue()).decode()
  content = [{'type': 'image_url', 'image_url': {'url': url}}, {'type': 'text', 'text': 'a'}]
  item = {'messages': [{'role': 'user', 'content': content}, {'role': 'assistant', 'content': 'b'}]}
  record = UnderstandingRecord(Fields(conversations='messages'), 24).random_map(('x', item), np.random.default_rng(0))
  assert (record['images'][0] == 9).all()
