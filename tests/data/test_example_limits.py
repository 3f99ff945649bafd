"""Records that are too long or bad, and what is made of the long ones."""

import dataclasses

import numpy as np
import pytest
from conversion.fixtures import IMAGE
from data.single_examples import (
  GENERATION_SIZE,
  NUM_CODES,
  SIZE,
  image,
  make,
  make_all,
  make_spec,
)

from janus_jax.data import examples
from janus_jax.errors import InputError, RecordError


@pytest.fixture
def spec(tmp_path):
  return make_spec(tmp_path)


@pytest.mark.parametrize('beyond', [-1, 0, 1, 2, 3])
def test_each_token_of_a_long_document_is_a_target_once(beyond, spec):
  """Pieces of T tokens; what the last position of one predicts is the first token of the next. By hand at the ends:
  2 T + 1 tokens need no third piece, whose one token nothing is left to predict after.
  """
  T = 50
  digits = ''.join(map(str, np.random.default_rng(0).integers(0, 10, 2 * T + beyond - 2)))  # A token each.
  record = {'text': digits}
  tokens = make('text', record, spec).tokens
  assert len(tokens) == 2 * T + beyond
  pieces = make_all('text', record, dataclasses.replace(spec, max_length=T))
  assert len(pieces) == (3 if beyond > 1 else 2)
  for k, piece in enumerate(pieces):
    assert piece.tokens.tolist() == tokens[k * T : (k + 1) * T].tolist()
    assert piece.pixels.shape == (0, SIZE, SIZE, 3)
  predicted = [piece.targets[piece.loss_ids == examples.TEXT_LOSS] for piece in pieces]
  assert np.concatenate(predicted).tolist() == tokens[1:].tolist()
  assert [piece.targets[-1] for piece in pieces[:-1]] == [tokens[k * T] for k in range(1, len(pieces))]
  assert all(np.array_equal(piece.weights, piece.loss_ids == examples.TEXT_LOSS) for piece in pieces)


LONG_TURNS = [
  *(f'{IMAGE} What is it?', 'A cat.'),
  *('Sure?', 'Yes. ' * 10),
  *(f'And {IMAGE} or {IMAGE}?', 'A dog.'),
  *(f'{IMAGE}?', 'No.'),
]


@pytest.mark.parametrize('kept', [1, 2, 3, 4])
def test_a_long_conversation_keeps_the_first_turns_that_fit_with_their_images(kept, spec):
  record = {'images': [image(i) for i in range(4)], 'turns': LONG_TURNS}
  num_images = (1, 1, 3, 4)[kept - 1]
  expected = make('understanding', {'images': record['images'][:num_images], 'turns': LONG_TURNS[: 2 * kept]}, spec)
  longer = len(make('understanding', {**record, 'turns': LONG_TURNS}, spec).tokens) - 1
  room = len(expected.tokens) if kept < 4 else longer + 1
  assert not expected.cut
  cut = make('understanding', {**record, 'long': 'cut'}, dataclasses.replace(spec, max_length=room))
  for field in ('tokens', 'token_types', 'targets', 'loss_ids', 'weights', 'pixels'):
    np.testing.assert_array_equal(getattr(cut, field), getattr(expected, field))
  assert cut.cut == (kept < 4)
  # As long as it gets before one more pair fits; without a word about it conversations are cut.
  if kept < 4:
    more = make('understanding', {'images': record['images'], 'turns': LONG_TURNS}, spec)
    after = np.flatnonzero(more.tokens == spec.tokenizer.special.eos)[kept]
    same = make('understanding', record, dataclasses.replace(spec, max_length=after))
    assert same.tokens.tolist() == expected.tokens.tolist()


def test_images_without_a_place_stay_with_the_first_question(spec):
  record = {'images': [image(1), image(2)], 'turns': ['Same?', 'No.', 'Why?', 'Colour. ' * 20]}
  first = make('understanding', {**record, 'turns': record['turns'][:2]}, spec)
  cut = make('understanding', record, dataclasses.replace(spec, max_length=len(first.tokens) + 5))
  assert cut.tokens.tolist() == first.tokens.tolist()
  assert cut.pixels[:, 0, 0, 0].tolist() == [1, 2]


@pytest.mark.parametrize(
  ('kind', 'record'),
  [
    ('understanding', {'images': [image()], 'turns': ['Hm?', 'No.', 'Hm?', 'No.'], 'long': 'skip'}),
    ('understanding', {'images': [image()], 'turns': ['a ' * 40, 'b', 'c', 'd'], 'long': 'cut'}),
    ('understanding', {'images': [image()], 'text': 'cat ' * 40}),
    ('text', {'turns': ['Hm?', 'No.', 'Hm?', 'No.'], 'long': 'skip'}),
    ('text', {'text': 'cat ' * 40, 'long': 'skip'}),
    ('generation', {'prompt': 'cat ' * 40, 'image': image(0, GENERATION_SIZE)}),
  ],
)
def test_what_is_too_long_says_so_and_where_to_change_it(kind, record, spec):
  """A reason of its own: such records are not bad."""
  message = (
    r'the example has \d+ tokens: expected at most 30, which is sequence_length \(see data\.sources\.NAME\.long\)'
  )
  with pytest.raises(RecordError, match=f'^{message}$') as caught:
    make(kind, record, dataclasses.replace(spec, max_length=30))
  assert caught.value.reason == 'long'


@pytest.mark.parametrize(
  ('kind', 'record', 'message'),
  [
    ('text', None, 'the record is a NoneType: expected a dict'),
    ('text', {}, r'text: missing: the record has \[\]'),
    ('text', {'text': b'cat'}, 'text: a bytes: expected str'),
    ('text', {'text': ' \n'}, 'text: empty'),
    ('text', {'text': f'a {IMAGE}'}, f'text: {IMAGE} in the text'),
    ('text', {'text': 'cat \udc80'}, 'valid Unicode'),
    ('understanding', {'turns': ['a', 'b']}, 'images: missing'),
    ('understanding', {'images': [], 'turns': []}, 'turns: 0 of them'),
    ('understanding', {'images': [], 'turns': ['a']}, 'turns: 1 of them'),
    ('understanding', {'images': [], 'turns': ['a', ' ']}, r"turns\[1\]: ' ': expected text"),
    ('understanding', {'images': [], 'turns': ['', 'b']}, r"turns\[0\]: '': expected text"),
    ('understanding', {'images': [], 'turns': ['a', None]}, r'turns\[1\]: None'),
    ('understanding', {'images': [], 'turns': 'ab'}, 'turns: a str: expected list or tuple'),
    ('understanding', {'images': [], 'turns': [f'{IMAGE} a', 'b']}, 'in the text but 0 images'),
    ('understanding', {'images': [image()], 'turns': ['a', f'{IMAGE}']}, f'turns: {IMAGE} in an answer'),
    ('understanding', {'images': [image(), None], 'turns': ['a', 'b']}, r'images\[1\]: a NoneType'),
    (
      'understanding',
      {'images': [image(0, 5)], 'turns': ['a', 'b']},
      r'images\[0\]: uint8\[5, 5, 3\]: expected uint8\[6',
    ),
    ('understanding', {'images': [image() / 255], 'turns': ['a', 'b']}, r'images\[0\]: float64'),
    ('understanding', {'images': [image()], 'turns': ['a ' * 2000, 'b']}, 'expected at most 2000'),
    ('understanding', {'images': [image()], 'text': f'{IMAGE} '}, 'text: empty: expected text beside the images'),
    ('understanding', {'images': [image()], 'text': f'{IMAGE} or {IMAGE}'}, 'in the text but 1 images'),
    ('generation', {'image': image(0, GENERATION_SIZE)}, 'prompt: missing'),
    ('generation', {'prompt': '\t', 'image': image(0, GENERATION_SIZE)}, 'prompt: empty'),
    ('generation', {'prompt': 'a'}, 'image: missing'),
    ('generation', {'prompt': 'a', 'codes': np.zeros(NUM_CODES, np.int32)}, 'image: missing'),
    ('generation', {'prompt': 'a', 'image': image(0, SIZE)}, r'image: uint8\[6, 6, 3\]: expected uint8\[4, 4, 3\]'),
    ('generation', {'prompt': 'a ' * 2000, 'image': image(0, GENERATION_SIZE)}, 'expected at most 2000'),
  ],
)
def test_bad_records_name_the_field(kind, record, message, spec):
  with pytest.raises(InputError, match=message) as caught:
    make(kind, record, spec)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('codes', 'message'),
  [
    (None, 'codes: a NoneType: expected ndarray'),
    (np.zeros(4, np.int32), r'codes: int32\[4\]: expected int32\[5\]'),
    (np.zeros(5), r'codes: float64\[5\]'),
    (np.array([0, 0, 50, 0, 0]), 'codes: from 0 to 50: expected 0 to 49'),
    (np.array([0, -1, 0, 0, 0]), 'codes: from -1 to 0'),
  ],
)
def test_bad_codes(codes, message, spec):
  with pytest.raises(InputError, match=message):
    make('generation', {'prompt': 'a', 'codes': codes}, dataclasses.replace(spec, generation_size=None))


def test_the_limit_is_inclusive(spec):
  record = {'prompt': 'a cat', 'image': image(0, GENERATION_SIZE)}
  n = len(make('generation', record, spec).tokens)
  make('generation', record, dataclasses.replace(spec, max_length=n))
  with pytest.raises(RecordError, match=f'{n} tokens: expected at most {n - 1}, '):
    make('generation', record, dataclasses.replace(spec, max_length=n - 1))
