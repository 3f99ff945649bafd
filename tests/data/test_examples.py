import dataclasses

import numpy as np
import pytest
from conversion.fixtures import ASSISTANT, BOI, BOS, EOI, EOS, IMAGE, JANUS_TOKENS, PAD, USER, make_tokenizer

from janus_jax.data import examples, prompts
from janus_jax.data.examples import ExampleSpec, make_example
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import InputError

SIZE, GENERATION_SIZE, NUM_IMAGE_TOKENS, NUM_CODES = 6, 4, 3, 5
# Starts that a tokenizer might merge with the colon or the space before an answer; spaces that the template strips.
ANSWERS = ['A cat.', '(two) dogs', '13 circles', ':-)', '... or not', ' \n a\n\nlist ', '熊は蜂蜜', "'s", '<b>: no']
QUESTIONS = ['What is it?', '  How many?\n', '1 + 1 =', 'Describe: ']


@pytest.fixture
def spec(tmp_path):
  (tmp_path / 'tokenizer.json').write_bytes(make_tokenizer((BOS, EOS, *JANUS_TOKENS)))
  return ExampleSpec(
    Tokenizer.from_directory(tmp_path),
    prompts.TEMPLATES['deepseek'],
    NUM_IMAGE_TOKENS,
    NUM_CODES,
    SIZE,
    GENERATION_SIZE,
    max_length=2000,
    system='Be brief.',
    num_code_ids=50,
  )


def image(value=0, size=SIZE):
  return np.full((size, size, 3), value, np.uint8)


def make(kind, record, spec, **options):
  return make_example(kind, record, spec, np.random.default_rng(0), **{'guidance_dropout': 0.0, **options})


def ids_of(spec, text):
  """Of a text that spells out everything but begin-of-sentence and the features of an image."""
  features = IMAGE * NUM_IMAGE_TOKENS
  return spec.tokenizer.encode(text.replace(IMAGE, f'{BOI}{features}{EOI}'))


def test_a_conversation_by_hand(spec):
  """MODEL_FACTS 3.4."""
  turns = ['What is it?', ' A cat. ', 'And here?', '13 dogs']
  example = make('understanding', {'images': [image(7)], 'turns': turns}, spec)
  text = (
    f'Be brief.\n\n{USER}: {IMAGE}\nWhat is it?\n\n{ASSISTANT}: A cat.{EOS}'
    f'{USER}: And here?\n\n{ASSISTANT}: 13 dogs{EOS}'
  )
  expected = ids_of(spec, text)
  np.testing.assert_array_equal(example.tokens, expected)
  np.testing.assert_array_equal(example.kinds == examples.IMAGE, np.array(expected) == ids_of(spec, IMAGE)[2])
  assert (example.kinds == examples.IMAGE).sum() == NUM_IMAGE_TOKENS
  supervised = example.losses == examples.UNDERSTANDING_LOSS
  answers = spec.tokenizer.encode(f' A cat.{EOS} 13 dogs{EOS}', add_bos=False)
  np.testing.assert_array_equal(example.targets[supervised], answers)
  np.testing.assert_array_equal(example.targets[supervised], example.tokens[1:][supervised[:-1]])
  np.testing.assert_array_equal(example.weights, supervised)
  assert not example.targets[~supervised].any()
  assert not example.losses[~supervised].any()
  np.testing.assert_array_equal(example.pixels, image(7)[None])
  assert example.generation_pixels.shape == (0, GENERATION_SIZE, GENERATION_SIZE, 3)


@pytest.mark.parametrize('template', sorted(prompts.TEMPLATES))
@pytest.mark.parametrize('num_images', [0, 1, 2])
def test_what_inference_encodes_is_a_prefix_of_what_was_trained(template, num_images, spec):
  spec = dataclasses.replace(spec, template=prompts.TEMPLATES[template])
  rng = np.random.default_rng(num_images)
  for _ in range(30):
    num_turns = rng.integers(1, 4)
    turns = [str(rng.choice(texts)) for _ in range(num_turns) for texts in (QUESTIONS, ANSWERS)]
    example = make('understanding', {'images': [image()] * num_images, 'turns': turns}, spec)
    starts = np.flatnonzero(np.diff(example.losses.astype(int), prepend=0) == 1)
    assert len(starts) == num_turns
    for number, start in enumerate(starts):
      prompt = prompts.understanding_ids(
        spec.tokenizer,
        spec.template,
        turns[: 2 * number + 1],
        num_images=num_images,
        num_image_tokens=NUM_IMAGE_TOKENS,
        max_length=10**6,
        system=spec.system,
      )
      assert example.tokens[: start + 1].tolist() == prompt


def test_images_go_where_the_questions_say(spec):
  turns = ['First?', 'No.', f'{IMAGE} or {IMAGE}?', 'The second.']
  example = make('understanding', {'images': [image(1), image(2)], 'turns': turns}, spec)
  text = (
    f'Be brief.\n\n{USER}: First?\n\n{ASSISTANT}: No.{EOS}{USER}: {IMAGE} or {IMAGE}?\n\n{ASSISTANT}: The second.{EOS}'
  )
  np.testing.assert_array_equal(example.tokens, ids_of(spec, text))
  assert example.pixels[:, 0, 0, 0].tolist() == [1, 2]


def test_every_token_of_a_text_is_predicted(spec):
  example = make('text', {'text': ' Three circles.\n'}, spec)
  expected = spec.tokenizer.encode(f' Three circles.\n{EOS}')
  assert example.tokens.tolist() == expected
  assert example.targets[:-1].tolist() == expected[1:]
  assert example.losses.tolist() == [examples.TEXT_LOSS] * (len(expected) - 1) + [0]
  assert example.weights.tolist() == [1.0] * (len(expected) - 1) + [0.0]
  assert set(example.kinds) == {examples.TEXT}


def test_a_conversation_as_text_supervises_its_answers_in_the_loss_of_text(spec):
  turns = ['Tea?', 'Yes.', 'Milk?', 'No.']
  text = make('text', {'turns': turns}, spec)
  same = make('understanding', {'images': [], 'turns': turns}, spec)
  for name in ('tokens', 'targets', 'weights'):
    np.testing.assert_array_equal(getattr(text, name), getattr(same, name))
  np.testing.assert_array_equal(text.losses, np.where(text.weights > 0, examples.TEXT_LOSS, examples.NO_LOSS))


def test_a_text_that_is_too_long_trains_a_stretch_at_a_time(spec):
  words = ' '.join(f'{n}' for n in range(100, 400))
  whole = make('text', {'text': words}, spec).tokens
  short, starts = dataclasses.replace(spec, max_length=len(whole) // 3), set()
  for seed in range(60):
    example = examples.make_example('text', {'text': words}, short, np.random.default_rng(seed))
    (start,) = [i for i in range(len(whole)) if whole[i : i + short.max_length].tolist() == example.tokens.tolist()]
    assert len(example.tokens) == short.max_length
    np.testing.assert_array_equal(example.targets[:-1], example.tokens[1:])
    starts.add(start)
  assert min(starts) < len(whole) / 8
  assert max(starts) > len(whole) / 2


@pytest.mark.parametrize('given', ['image', 'codes'])
def test_a_drawing_by_hand(given, spec):
  """MODEL_FACTS 3.5: begin-of-image predicts the first code; the last code is no input."""
  if given == 'codes':
    spec = dataclasses.replace(spec, generation_size=None)
    codes = np.array([9, 49, 0, 9, 3], np.uint16)
    example = make('generation', {'prompt': 'a cat', 'codes': codes}, spec)
    assert len(example.generation_pixels) == 0
  else:
    codes = np.arange(NUM_CODES)
    drawn = image(3, GENERATION_SIZE)
    example = make('generation', {'prompt': 'a cat', 'image': drawn}, spec)
    np.testing.assert_array_equal(example.generation_pixels, drawn[None])
  ids = spec.tokenizer.encode(f'{USER}: a cat\n\n{ASSISTANT}:{BOI}')
  assert ids == prompts.generation_ids(spec.tokenizer, spec.template, 'a cat', max_length=99)
  n = len(ids)
  assert example.tokens.tolist() == [*ids, *codes[:-1]]
  assert example.kinds.tolist() == [examples.TEXT] * n + [examples.CODE] * (NUM_CODES - 1)
  assert example.targets.tolist() == [0] * (n - 1) + list(codes)
  assert example.losses.tolist() == [0] * (n - 1) + [examples.GENERATION_LOSS] * NUM_CODES
  assert example.weights.tolist() == [0.0] * (n - 1) + [1.0] * NUM_CODES
  dtypes = [getattr(example, field).dtype.name for field in ('tokens', 'targets', 'kinds', 'losses', 'weights')]
  assert dtypes == ['int32', 'int32', 'uint8', 'uint8', 'float32']


def test_guidance_dropout_leaves_first_and_last_id(spec):
  record = {'prompt': 'three red circles', 'image': image(0, GENERATION_SIZE)}
  kept = make('generation', record, spec)
  dropped = make('generation', record, spec, guidance_dropout=1.0)
  n = np.flatnonzero(kept.kinds == examples.CODE)[0]
  pad = spec.tokenizer.encode(PAD)[1]
  assert dropped.tokens[:n].tolist() == [kept.tokens[0], *[pad] * (n - 2), kept.tokens[n - 1]]
  assert kept.tokens[0] == spec.tokenizer.special.bos
  assert kept.tokens[n - 1] == spec.tokenizer.special.begin_of_image
  # Nothing else changes: the pads are attended to, the codes are still the target.
  for field in ('kinds', 'targets', 'losses', 'weights', 'generation_pixels'):
    np.testing.assert_array_equal(getattr(dropped, field), getattr(kept, field))
  np.testing.assert_array_equal(dropped.tokens[n:], kept.tokens[n:])


def test_share_of_guidance_dropout(spec):
  record = {'prompt': 'a cat', 'image': image(0, GENERATION_SIZE)}
  rng = np.random.default_rng(0)
  pad = spec.tokenizer.special.pad
  dropped = sum(pad in make_example('generation', record, spec, rng, 0.1).tokens for _ in range(4000))
  assert abs(dropped - 400) < 4 * np.sqrt(4000 * 0.1 * 0.9)
  for kind, other in (('text', {'text': 'a'}), ('understanding', {'images': [image()], 'turns': ['a', 'b']})):
    assert pad not in make(kind, other, spec, guidance_dropout=1.0).tokens


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
  with pytest.raises(InputError, match=f'{n} tokens: expected at most {n - 1}'):
    make('generation', record, dataclasses.replace(spec, max_length=n - 1))
