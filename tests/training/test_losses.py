"""Losses of a packed batch: positions of codes and images, tasks, a shared encoder."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training import batches
from training.batches import CONFIG

from janus_jax.data.examples import CODE, GENERATION_LOSS, IMAGE, TEXT
from janus_jax.data.packing import make_batch
from janus_jax.models.janus import Janus
from janus_jax.training.image_encoding import image_features, split_pixels, with_codes, with_understood_codes
from janus_jax.training.losses import batch_losses, embed
from janus_jax.training.step_config import StepConfig

ONES = np.ones(3, np.float32)
STEP, TWO_PARTS = StepConfig(CONFIG, loss_chunk=32), StepConfig(CONFIG, accumulation=2)


@pytest.fixture(scope='module')
def spec(tmp_path_factory):
  return batches.make_spec(tmp_path_factory.mktemp('tokenizer'), batches.GENERATION_SIZE)


@pytest.fixture(scope='module')
def apply():
  """The model with its parameters, compiled per method."""
  params = jax.tree.map(jnp.asarray, batches.params())
  run = jax.jit(lambda args, method: Janus(CONFIG).apply({'params': params}, *args, method=method), static_argnums=1)
  return lambda *args, method: run(args, method)


def both_forms(apply, spec) -> tuple[dict, dict]:
  """The same batch with images to generate as pixels, and as the codes that the tokenizer makes of them."""
  rng = np.random.default_rng(1)
  size = batches.GENERATION_SIZE
  pairs = batches.records()
  generated = [i for i, (kind, _) in enumerate(pairs) if kind == 'generation']
  generation_images = {i: rng.integers(0, 256, (size, size, 3), np.uint8) for i in generated}
  codes = dict(
    zip(generation_images, np.asarray(apply(np.stack(list(generation_images.values())), method='encode_pixels')))
  )
  assert len(np.unique(np.stack(list(codes.values())), axis=0)) == len(generation_images)
  with_pixels = [(kind, {**record, 'image': generation_images.get(i)}) for i, (kind, record) in enumerate(pairs)]
  examples = batches.make_examples(spec, with_pixels)
  as_pixels = batches.batch_of(examples, batches.ROWS, batches.GENERATION_SIZE)
  coded = [(kind, {**record, 'codes': codes.get(i)}) for i, (kind, record) in enumerate(pairs)]
  return as_pixels, batches.batch_of(batches.make_examples(as_codes(spec), coded), batches.ROWS)


def as_codes(spec):
  return dataclasses.replace(spec, generation_size=None)


def test_codes_stand_where_the_batch_says(spec):
  """With a tokenizer whose codes tell the image and the position."""
  pairs = [('generation', {'prompt': 'x', 'image': np.full((16, 16, 3), value, np.uint8)}) for value in (1, 2, 3)]
  batch = batches.batch_of(batches.make_examples(spec, pairs), (1, 0, 1), batches.GENERATION_SIZE)
  P = batches.NUM_CODES
  encoded = with_codes(batch, lambda pixels: 100 * pixels[:, 0, 0, :1].astype(jnp.int32) + jnp.arange(P))
  for row, segment, value in ((1, 1, 1), (0, 1, 2), (1, 2, 3)):
    codes = 100 * value + np.arange(P)
    here = batch['segments'][row] == segment
    np.testing.assert_array_equal(encoded['tokens'][row][here & (batch['token_types'][row] == CODE)], codes[:-1])
    np.testing.assert_array_equal(encoded['targets'][row][here & (batch['loss_ids'][row] == GENERATION_LOSS)], codes)
  is_text = batch['token_types'] == TEXT
  np.testing.assert_array_equal(encoded['tokens'][is_text], batch['tokens'][is_text])


def test_pixels_to_generate_cost_what_their_stored_codes_cost(apply, spec):
  as_pixels, coded = both_forms(apply, spec)
  params = batches.params()
  ours, expected = (
    jax.jit(lambda batch: batch_losses(params, batch, ONES, STEP)[1])(batch) for batch in (as_pixels, coded)
  )
  np.testing.assert_array_equal(ours.weights, expected.weights)
  np.testing.assert_allclose(ours.sums, expected.sums, rtol=1e-6)
  assert (expected.weights > 0).all()


def test_batches_without_room_for_images(apply, spec):
  """A stage of text only."""
  shape = dataclasses.replace(batches.SHAPE, images=0, generation_images=0)
  texts = [pair for pair in batches.records() if pair[0] == 'text']
  batch = make_batch(
    batches.make_examples(spec, texts),
    (0, 1),
    shape,
    num_codes=batches.NUM_CODES,
    image_size=batches.IMAGE_SIZE,
    generation_size=batches.GENERATION_SIZE,
  )
  encoded = with_codes(batch, functools.partial(apply, method='encode_pixels'))
  np.testing.assert_array_equal(encoded['tokens'], batch['tokens'])
  rows, pixels = split_pixels(encoded)
  assert pixels is None
  np.testing.assert_array_equal(embed(apply, rows, None), apply(batch['tokens'], method='embed_text'))


def embedded(apply, batch) -> np.ndarray:
  """The rows of a batch as the decoder sees them."""
  rows, pixels = split_pixels(batch)
  return np.asarray(embed(apply, rows, image_features(batches.params(), pixels, TWO_PARTS)))


@pytest.mark.parametrize('streams', [1, 2, 4])
def test_each_image_stands_where_its_row_has_it(streams, apply, spec):
  """Whether its stream has one row, or others have images before it; two images at a time, the last time one."""
  pairs = [pair for pair in batches.records() if pair[0] == 'understanding']
  examples = batches.make_examples(spec, pairs)
  shape = dataclasses.replace(batches.SHAPE, images=4)
  batch = batches.batch_of(examples, (1, 2, 1), batches.GENERATION_SIZE, streams=streams, shape=shape)
  x = embedded(apply, batch)
  assert (batch['token_types'] == IMAGE).sum() == 4 * CONFIG.vision_encoder.num_tokens
  for row, images in enumerate(batches.images_of_rows(batch)):
    found = np.flatnonzero(batch['token_types'][row] == IMAGE).reshape(-1, CONFIG.vision_encoder.num_tokens)
    for positions, features in zip(found, apply(images, method='embed_images')):
      np.testing.assert_allclose(x[row, positions], features, atol=1e-5)
  # More placeholders than images are a mistake that must not pass for the last image.
  batch['token_types'][:2, :] = IMAGE
  assert np.isnan(embedded(apply, batch)[:2]).any()


def test_tasks_of_one_batch_are_told_apart(monkeypatch, spec):
  """Heads that know nothing: log(vocabulary) per text target, log(codebook) per code."""
  batch = batches.batch_of(batches.make_examples(as_codes(spec), batches.records()), batches.ROWS)
  monkeypatch.setattr(Janus, 'text_logits', lambda self, hidden: jnp.zeros((*hidden.shape[:-1], 512)))
  monkeypatch.setattr(Janus, 'image_logits', lambda self, hidden: jnp.zeros((*hidden.shape[:-1], 128)))
  found = jax.jit(lambda batch: batch_losses(batches.params(), batch, ONES, STEP)[1])(batch)
  counts = [(batch['loss_ids'] == loss).sum() for loss in (1, 2, 3)]
  np.testing.assert_array_equal(found.weights, counts)
  np.testing.assert_allclose(found.sums, np.array(counts) * np.log([512, 512, 128]), rtol=1e-5)


SHARED = dataclasses.replace(CONFIG, shared_encoder=True)
SHARED_STEP = StepConfig(SHARED, loss_chunk=200)
LONG = dataclasses.replace(batches.SHAPE, length=200)


@pytest.fixture(scope='module')
def questions(spec):
  """A packed batch for a model with one encoder: images of the size that is generated, a position for each code."""
  rng = np.random.default_rng(1)
  size = (SHARED.image_size, SHARED.image_size, 3)
  records = [(1, ['What?', 'A red box.']), (2, ['Same?', 'No']), (1, ['Hm?', '13'])]
  spec = dataclasses.replace(
    spec, num_image_tokens=SHARED.num_image_tokens, image_size=SHARED.image_size, max_length=LONG.length
  )
  pairs = [
    ('understanding', {'images': [rng.integers(0, 256, size, np.uint8) for _ in range(n)], 'turns': turns})
    for n, turns in records
  ]
  sizes = {'shape': LONG, 'image_size': SHARED.image_size, 'generation_size': batches.GENERATION_SIZE}
  return batches.batch_of(batches.make_examples(spec, pairs), (1, 2, 1), **sizes)


def test_with_one_encoder_an_image_of_a_question_is_what_the_vq_makes_of_it(apply, questions):
  encode = functools.partial(apply, method='encode_pixels')
  seen = with_understood_codes(questions, encode)
  x = np.asarray(embed(apply, seen, None))
  is_image = questions['token_types'] == IMAGE
  assert is_image.sum() == 4 * batches.NUM_CODES
  for row, images in enumerate(batches.images_of_rows(questions, batches.NUM_CODES)):
    found = np.flatnonzero(is_image[row]).reshape(-1, batches.NUM_CODES)
    for positions, image in zip(found, images):
      codes = apply(image[None], method='encode_pixels')
      np.testing.assert_allclose(x[row, positions], apply(codes, method='embed_codes')[0], atol=1e-5)
  # Nothing else has changed.
  np.testing.assert_array_equal(np.asarray(seen['tokens'])[~is_image], questions['tokens'][~is_image])
  np.testing.assert_array_equal(np.asarray(seen['token_types'])[~is_image], questions['token_types'][~is_image])


def test_the_loss_with_one_encoder_is_that_of_the_model_which_answers(questions):
  """Inference fills placeholders of a single sequence in with `embed_prompt`; training packs and places codes."""
  params = batches.params()
  found = jax.jit(lambda batch: batch_losses(params, batch, ONES, SHARED_STEP)[1])(questions)
  run = jax.jit(lambda args, method: Janus(SHARED).apply({'params': params}, *args, method=method), static_argnums=1)
  total = 0.0
  for row, images in enumerate(map(iter, batches.images_of_rows(questions, batches.NUM_CODES))):
    segments = questions['segments'][row]
    for segment in sorted(set(segments) - {0}):
      here = np.flatnonzero(segments == segment)
      kinds, tokens = questions['token_types'][row, here], questions['tokens'][row, here]
      count = (kinds == IMAGE).sum() // batches.NUM_CODES
      pixels = np.stack([next(images) for _ in range(count)])
      tokens = np.where(kinds == IMAGE, SHARED.image_token_id, tokens)
      x = run((tokens[None], pixels), 'embed_prompt')
      hidden, _ = run((x, np.arange(len(here))[None]), 'hidden')
      logits = jax.nn.log_softmax(run((hidden,), 'text_logits'))[0]
      losses = -np.take_along_axis(np.asarray(logits), questions['targets'][row, here][:, None], -1)[:, 0]
      total += np.sum(losses * questions['weights'][row, here])
  assert total > 1
  np.testing.assert_allclose(found.sums[0], total, rtol=1e-5)


def test_with_one_encoder_siglip_takes_no_part_and_the_adaptor_of_generation_learns_from_questions(questions):
  gradient = jax.jit(jax.grad(lambda p: batch_losses(p, questions, ONES, SHARED_STEP)[0]))
  gradients = gradient(batches.params())
  for unused in ('vision_encoder', 'vision_aligner', 'vq'):
    assert not any(np.any(g) for g in jax.tree.leaves(gradients[unused])), unused
  for used in ('gen_embed', 'gen_aligner', 'language_model'):
    assert any(np.any(g) for g in jax.tree.leaves(gradients[used])), used
