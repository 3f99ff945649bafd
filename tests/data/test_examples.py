"""Layout of examples, most of them by hand."""

import dataclasses

import numpy as np
import pytest
from conversion.fixtures import ASSISTANT, BOI, EOS, IMAGE, PAD, USER
from data.single_examples import (
  GENERATION_SIZE,
  NUM_CODES,
  NUM_IMAGE_TOKENS,
  ids_of,
  image,
  make,
  make_spec,
)

from janus_jax.data import examples, prompts
from janus_jax.data.examples import make_examples

SYSTEM = prompts.SYSTEM_PROMPT
# Starts that a tokenizer might merge with the colon or the space before an answer; spaces that the template strips.
ANSWERS = ['A cat.', '(two) dogs', '13 circles', ':-)', '... or not', ' \n a\n\nlist ', '熊は蜂蜜', "'s", '<b>: no']
QUESTIONS = ['What is it?', '  How many?\n', '1 + 1 =', 'Describe: ']


@pytest.fixture
def spec(tmp_path):
  return make_spec(tmp_path)


def test_a_conversation_by_hand(spec):
  """As the reference lays a conversation out."""
  turns = ['What is it?', ' A cat. ', 'And here?', '13 dogs']
  example = make('understanding', {'images': [image(7)], 'turns': turns}, spec)
  text = (
    f'{SYSTEM}\n\n{USER}: {IMAGE}\nWhat is it?\n\n{ASSISTANT}: A cat.{EOS}'
    f'{USER}: And here?\n\n{ASSISTANT}: 13 dogs{EOS}'
  )
  expected = ids_of(spec, text)
  np.testing.assert_array_equal(example.tokens, expected)
  np.testing.assert_array_equal(example.token_types == examples.IMAGE, np.array(expected) == ids_of(spec, IMAGE)[2])
  assert (example.token_types == examples.IMAGE).sum() == NUM_IMAGE_TOKENS
  supervised = example.loss_ids == examples.UNDERSTANDING_LOSS
  answers = spec.tokenizer.encode(f' A cat.{EOS} 13 dogs{EOS}', add_bos=False)
  np.testing.assert_array_equal(example.targets[supervised], answers)
  np.testing.assert_array_equal(example.targets[supervised], example.tokens[1:][supervised[:-1]])
  np.testing.assert_array_equal(example.weights, supervised)
  assert not example.targets[~supervised].any()
  assert not example.loss_ids[~supervised].any()
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
    starts = np.flatnonzero(np.diff(example.loss_ids.astype(int), prepend=0) == 1)
    assert len(starts) == num_turns
    for number, start in enumerate(starts):
      prompt = prompts.understanding_ids(
        spec.tokenizer,
        spec.template,
        turns[: 2 * number + 1],
        num_images=num_images,
        num_image_tokens=NUM_IMAGE_TOKENS,
        max_length=10**6,
      )
      assert example.tokens[: start + 1].tolist() == prompt


@pytest.mark.parametrize('kind', ['understanding', 'text'])
@pytest.mark.parametrize('system', ['', 'Answer in verse.'])
def test_a_record_says_what_its_conversation_begins_with(kind, system, spec):
  record = {'images': [], 'turns': ['Tea?', 'Yes.', 'Milk?', 'No.'], 'system': system}
  example = make(kind, record, spec)
  begin = f'{system}\n\n' if system else ''
  expected = f'{begin}{USER}: Tea?\n\n{ASSISTANT}: Yes.{EOS}{USER}: Milk?\n\n{ASSISTANT}: No.{EOS}'
  assert example.tokens.tolist() == ids_of(spec, expected)
  prompt = spec.tokenizer.encode(prompts.render_prompt(spec.template, [*record['turns'][:3], ''], system))
  assert example.tokens[: len(prompt)].tolist() == prompt


def test_images_go_where_the_questions_say(spec):
  turns = ['First?', 'No.', f'{IMAGE} or {IMAGE}?', 'The second.']
  example = make('understanding', {'images': [image(1), image(2)], 'turns': turns}, spec)
  text = f'{SYSTEM}\n\n{USER}: First?\n\n{ASSISTANT}: No.{EOS}'
  text += f'{USER}: {IMAGE} or {IMAGE}?\n\n{ASSISTANT}: The second.{EOS}'
  np.testing.assert_array_equal(example.tokens, ids_of(spec, text))
  assert example.pixels[:, 0, 0, 0].tolist() == [1, 2]


def test_every_token_of_a_text_is_predicted(spec):
  example = make('text', {'text': ' Three circles.\n'}, spec)
  expected = spec.tokenizer.encode(f' Three circles.\n{EOS}')
  assert example.tokens.tolist() == expected
  assert example.targets[:-1].tolist() == expected[1:]
  assert example.loss_ids.tolist() == [examples.TEXT_LOSS] * (len(expected) - 1) + [0]
  assert example.weights.tolist() == [1.0] * (len(expected) - 1) + [0.0]
  assert set(example.token_types) == {examples.TEXT}


def test_a_conversation_as_text_supervises_its_answers_in_the_loss_of_text(spec):
  """It has no images, so nothing says that the user provides visual content."""
  turns = ['Tea?', 'Yes.', 'Milk?', 'No.']
  text = make('text', {'turns': turns}, spec)
  same = make('understanding', {'images': [], 'turns': turns, 'system': ''}, spec)
  for name in ('tokens', 'targets', 'weights'):
    np.testing.assert_array_equal(getattr(text, name), getattr(same, name))
  np.testing.assert_array_equal(text.loss_ids, np.where(text.weights > 0, examples.TEXT_LOSS, examples.NO_LOSS))


def block(spec):
  special = spec.tokenizer.special
  return [special.begin_of_image, *[special.image_placeholder] * NUM_IMAGE_TOKENS, special.end_of_image]


def test_an_image_and_its_caption_by_hand(spec):
  """Janus paper, Stage I: `<image><text>`."""
  example = make('understanding', {'images': [image(7)], 'text': 'A cat.'}, spec)
  said = spec.tokenizer.encode(f'A cat.{EOS}', add_bos=False)
  assert example.tokens.tolist() == [spec.tokenizer.special.bos, *block(spec), *said]
  # The end of the image predicts the first token of the caption.
  assert example.targets.tolist() == [*[0] * (NUM_IMAGE_TOKENS + 2), *said, 0]
  assert example.loss_ids.tolist() == [*[0] * (NUM_IMAGE_TOKENS + 2), *[examples.UNDERSTANDING_LOSS] * len(said), 0]
  assert np.flatnonzero(example.token_types == examples.IMAGE).tolist() == list(range(2, 2 + NUM_IMAGE_TOKENS))
  np.testing.assert_array_equal(example.pixels, image(7)[None])


def test_a_document_with_images_in_it_by_hand(spec):
  text = f'One.{IMAGE}Two.{IMAGE}{IMAGE}'
  example = make('understanding', {'images': [image(1), image(2), image(3)], 'text': text}, spec)
  one, two = (spec.tokenizer.encode(word, add_bos=False) for word in ('One.', 'Two.'))
  bos, eos = spec.tokenizer.special.bos, spec.tokenizer.special.eos
  tokens = [bos, *one, *block(spec), *two, *block(spec), *block(spec), eos]
  no_text = [0] * (NUM_IMAGE_TOKENS + 2)
  # What comes after a text and is an image is not predicted.
  targets = [*one, *no_text, *two, *no_text, *no_text, eos, 0]
  assert example.tokens.tolist() == tokens
  assert example.targets.tolist() == targets
  assert (example.loss_ids > 0).tolist() == [target > 0 for target in targets]
  assert example.pixels[:, 0, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize('given', ['image', 'codes'])
def test_an_image_to_generate_by_hand(given, spec):
  """Begin-of-image predicts the first code; the last code is no input."""
  if given == 'codes':
    spec = dataclasses.replace(spec, generation_size=None)
    codes = np.array([9, 49, 0, 9, 3], np.uint16)
    example = make('generation', {'prompt': 'a cat', 'codes': codes}, spec)
    assert len(example.generation_pixels) == 0
  else:
    codes = np.arange(NUM_CODES)
    pixels = image(3, GENERATION_SIZE)
    example = make('generation', {'prompt': 'a cat', 'image': pixels}, spec)
    np.testing.assert_array_equal(example.generation_pixels, pixels[None])
  ids = spec.tokenizer.encode(f'{USER}: a cat\n\n{ASSISTANT}:{BOI}')
  assert ids == prompts.generation_ids(spec.tokenizer, spec.template, 'a cat', max_length=99)
  n = len(ids)
  assert example.tokens.tolist() == [*ids, *codes[:-1]]
  assert example.token_types.tolist() == [examples.TEXT] * n + [examples.CODE] * (NUM_CODES - 1)
  assert example.targets.tolist() == [0] * (n - 1) + list(codes)
  assert example.loss_ids.tolist() == [0] * (n - 1) + [examples.GENERATION_LOSS] * NUM_CODES
  assert example.weights.tolist() == [0.0] * (n - 1) + [1.0] * NUM_CODES
  dtypes = [getattr(example, field).dtype.name for field in ('tokens', 'targets', 'token_types', 'loss_ids', 'weights')]
  assert dtypes == ['int32', 'int32', 'uint8', 'uint8', 'float32']


@pytest.mark.parametrize('dropout', [0.0, 1.0])
def test_a_caption_alone_before_its_image_by_hand(dropout, spec):
  """Janus paper, Stages I and II: `<category_name><image>` and `<caption><image>`."""
  spec = dataclasses.replace(spec, generation_size=None)
  codes = np.array([9, 49, 0, 9, 3], np.int32)
  record = {'prompt': ' a cat\n', 'codes': codes, 'template': 'raw'}
  example = make('generation', record, spec, guidance_dropout=dropout)
  special, said = spec.tokenizer.special, spec.tokenizer.encode('a cat', add_bos=False)
  said = [special.pad] * len(said) if dropout else said
  assert example.tokens.tolist() == [special.bos, *said, special.begin_of_image, *codes[:-1]]
  assert example.targets.tolist() == [0] * (len(said) + 1) + codes.tolist()
  assert example.loss_ids.tolist() == [0] * (len(said) + 1) + [examples.GENERATION_LOSS] * NUM_CODES


def test_guidance_dropout_leaves_first_and_last_id(spec):
  record = {'prompt': 'three red circles', 'image': image(0, GENERATION_SIZE)}
  kept = make('generation', record, spec)
  dropped = make('generation', record, spec, guidance_dropout=1.0)
  n = np.flatnonzero(kept.token_types == examples.CODE)[0]
  pad = spec.tokenizer.encode(PAD)[1]
  assert dropped.tokens[:n].tolist() == [kept.tokens[0], *[pad] * (n - 2), kept.tokens[n - 1]]
  assert kept.tokens[0] == spec.tokenizer.special.bos
  assert kept.tokens[n - 1] == spec.tokenizer.special.begin_of_image
  # Nothing else changes: the pads are attended to, the codes are still the target.
  for field in ('token_types', 'targets', 'loss_ids', 'weights', 'generation_pixels'):
    np.testing.assert_array_equal(getattr(dropped, field), getattr(kept, field))
  np.testing.assert_array_equal(dropped.tokens[n:], kept.tokens[n:])


def test_fraction_of_guidance_dropout(spec):
  record = {'prompt': 'a cat', 'image': image(0, GENERATION_SIZE)}
  rng = np.random.default_rng(0)
  pad = spec.tokenizer.special.pad
  dropped = sum(pad in make_examples('generation', record, spec, rng, 0.1)[0].tokens for _ in range(4000))
  assert abs(dropped - 400) < 4 * np.sqrt(4000 * 0.1 * 0.9)
  for kind, other in (('text', {'text': 'a'}), ('understanding', {'images': [image()], 'turns': ['a', 'b']})):
    assert pad not in make(kind, other, spec, guidance_dropout=1.0).tokens
