"""Losses of a packed batch: chunks, places of codes and images, kinds."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from training import batches
from training.batches import CONFIG

from janus_jax.data.examples import CODE, GENERATION_LOSS, IMAGE, TEXT
from janus_jax.data.packing import make_batch
from janus_jax.models.config import ComputeConfig
from janus_jax.models.janus import Janus
from janus_jax.models.layers import Linear, wide_product
from janus_jax.sharding.mesh import ROW_AXES, make_mesh
from janus_jax.training.image_encoding import image_features, split_pixels, with_codes, with_understood_codes
from janus_jax.training.losses import Spread, batch_losses, cross_entropy, embed

B, T, D, V = 2, 23, 8, 50
ALL = np.ones((B, T), bool)
ONES = np.ones(3, np.float32)


def head_inputs(T=T):
  rng = np.random.default_rng(0)
  hidden, kernel = rng.normal(size=(B, T, D)).astype(np.float32), rng.normal(size=(V, D)).astype(np.float32)
  return hidden, kernel, rng.integers(0, V, (B, T)).astype(np.int32), rng.normal(size=(B, T)).astype(np.float32)


def head(weights, hidden):
  return hidden @ weights['kernel'].T


def weighted_loss(hidden, kernel, targets, weights, chunk):
  return cross_entropy(head, {'kernel': kernel}, hidden, targets, ALL, weights, chunk)[1]


def test_cross_entropy_is_minus_log_softmax_at_the_target():
  hidden, kernel, targets, weights = head_inputs()
  logits = hidden.astype(np.float64) @ kernel.T.astype(np.float64)
  expected = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
  for chunk in (T, 5):
    found, total = cross_entropy(head, {'kernel': kernel}, hidden, targets, ALL, weights, chunk)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(total, np.sum(weights * expected), rtol=1e-5)


@pytest.mark.parametrize('chunk', [1, 5, T - 1, T + 1])
def test_chunks_change_neither_loss_nor_gradient(chunk):
  hidden, kernel, targets, weights = head_inputs()
  gradient = jax.jit(jax.value_and_grad(weighted_loss, argnums=(0, 1)), static_argnums=4)
  (whole, whole_gradients), (cut, cut_gradients) = (gradient(hidden, kernel, targets, weights, c) for c in (T, chunk))
  np.testing.assert_allclose(cut, whole, rtol=1e-5)
  for one, other in zip(cut_gradients, whole_gradients):
    np.testing.assert_allclose(one, other, atol=1e-5)


def array_sizes(jaxpr) -> set[int]:
  """Numbers of elements of all that a program computes, inner programs included."""
  sizes = {variable.aval.size for equation in jaxpr.eqns for variable in equation.outvars}
  for equation in jaxpr.eqns:
    for inner in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, 'eqns')):
      inner = getattr(inner, 'jaxpr', inner)
      sizes |= array_sizes(inner) if hasattr(inner, 'eqns') else set()
  return sizes


def test_logits_of_all_positions_never_exist_together():
  hidden, kernel, targets, weights = head_inputs()
  largest = {}
  for chunk in (T, 4):
    gradient = functools.partial(jax.grad(weighted_loss, argnums=(0, 1)), chunk=chunk)
    largest[chunk] = max(array_sizes(jax.make_jaxpr(gradient)(hidden, kernel, targets, weights).jaxpr))
  assert largest[T] == B * T * V  # The test sees them where they do exist.
  assert largest[4] < B * T * V / 2


@pytest.mark.parametrize('share', [0.0, 0.1, 0.6])
@pytest.mark.parametrize(
  ('chunk', 'sizes'), [(1, {}), (5, {'fsdp': 2}), (6, {'context': 2}), (7, {'data': 2, 'context': 2}), (24, {})]
)
def test_only_what_is_wanted_is_summed_and_learned_from(share, chunk, sizes):
  hidden, kernel, targets, weights = head_inputs(24)
  wanted = np.random.default_rng(1).random(targets.shape) < share

  mesh = make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])
  spread = Spread(mesh, ROW_AXES, 'context', (('kernel', PartitionSpec(None, 'fsdp')),)) if sizes else None

  def summed(hidden, kernel):
    found, total = cross_entropy(head, {'kernel': kernel}, hidden, targets, wanted, weights, chunk, spread)
    # Twice: the gradient of the sum is not always asked for as it is.
    return 2 * total, found

  def expected(hidden, kernel):
    logits = jax.nn.log_softmax(hidden @ kernel.T)
    found = jnp.where(wanted, -jnp.take_along_axis(logits, targets[..., None], -1)[..., 0], 0)
    return 2 * jnp.sum(weights * found), found

  ours, theirs = (
    jax.jit(jax.grad(function, argnums=(0, 1), has_aux=True))(hidden, kernel) for function in (summed, expected)
  )
  for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5)
  assert np.any(ours[1]) == (share > 0)


def test_chunks_in_which_nothing_is_wanted_are_never_computed():
  hidden, kernel, targets, weights = head_inputs()
  wanted = np.zeros((B, T), bool)
  wanted[0, 3:8] = wanted[1, -4:] = True  # 9 of 46, in 12 chunks of 4.
  calls = []

  def counted(weights, hidden):
    jax.debug.callback(lambda: calls.append(1))
    return head(weights, hidden)

  def summed(hidden):
    return cross_entropy(counted, {'kernel': kernel}, hidden, targets, wanted, weights, 2)[1]

  jax.block_until_ready(jax.jit(jax.grad(summed))(hidden))
  jax.effects_barrier()
  assert len(calls) == 3  # Forward and backward together.


def test_weights_that_do_not_train_get_no_gradient():
  hidden, kernel, targets, weights = head_inputs()
  flops = {}
  for arguments in (0, (0, 1)):
    gradient = jax.jit(functools.partial(jax.grad(weighted_loss, argnums=arguments), chunk=4))
    flops[arguments] = gradient.lower(hidden, kernel, targets, weights).compile().cost_analysis()['flops']
  # Of a chunk: logits and the gradient of what comes in, or of the kernel as well. XLA counts one turn of a loop.
  product = 2 * B * 4 * D * V
  assert flops[0, 1] - flops[0] == pytest.approx(product, rel=0.2)


@pytest.fixture(scope='module')
def spec(tmp_path_factory):
  return batches.make_spec(tmp_path_factory.mktemp('tokenizer'), batches.DRAWING_SIZE)


@pytest.fixture(scope='module')
def apply():
  """The model with its parameters, compiled per method."""
  params = jax.tree.map(jnp.asarray, batches.params())
  run = jax.jit(lambda args, method: Janus(CONFIG).apply({'params': params}, *args, method=method), static_argnums=1)
  return lambda *args, method: run(args, method)


def both_forms(apply, spec) -> tuple[dict, dict]:
  """The same batch with images to draw as pixels, and as the codes that the tokenizer makes of them."""
  rng = np.random.default_rng(1)
  size = batches.DRAWING_SIZE
  pairs = batches.records()
  drawn = [i for i, (kind, _) in enumerate(pairs) if kind == 'generation']
  generation_images = {i: rng.integers(0, 256, (size, size, 3), np.uint8) for i in drawn}
  codes = dict(
    zip(generation_images, np.asarray(apply(np.stack(list(generation_images.values())), method='encode_pixels')))
  )
  assert len(np.unique(np.stack(list(codes.values())), axis=0)) == len(generation_images)
  with_pixels = [(kind, {**record, 'image': generation_images.get(i)}) for i, (kind, record) in enumerate(pairs)]
  examples = batches.make_examples(spec, with_pixels)
  as_pixels = batches.batch_of(examples, batches.ROWS, batches.DRAWING_SIZE)
  coded = [(kind, {**record, 'codes': codes.get(i)}) for i, (kind, record) in enumerate(pairs)]
  return as_pixels, batches.batch_of(batches.make_examples(as_codes(spec), coded), batches.ROWS)


def as_codes(spec):
  return dataclasses.replace(spec, generation_size=None)


def test_codes_stand_where_the_batch_says(spec):
  """With a tokenizer whose codes tell the image and the place."""
  pairs = [('generation', {'prompt': 'x', 'image': np.full((16, 16, 3), value, np.uint8)}) for value in (1, 2, 3)]
  batch = batches.batch_of(batches.make_examples(spec, pairs), (1, 0, 1), batches.DRAWING_SIZE)
  P = batches.NUM_CODES
  encoded = with_codes(batch, lambda pixels: 100 * pixels[:, 0, 0, :1].astype(jnp.int32) + jnp.arange(P))
  for row, segment, value in ((1, 1, 1), (0, 1, 2), (1, 2, 3)):
    codes = 100 * value + np.arange(P)
    here = batch['segments'][row] == segment
    np.testing.assert_array_equal(encoded['tokens'][row][here & (batch['token_types'][row] == CODE)], codes[:-1])
    np.testing.assert_array_equal(encoded['targets'][row][here & (batch['loss_ids'][row] == GENERATION_LOSS)], codes)
  is_text = batch['token_types'] == TEXT
  np.testing.assert_array_equal(encoded['tokens'][is_text], batch['tokens'][is_text])


def test_pixels_to_draw_cost_what_their_stored_codes_cost(apply, spec):
  as_pixels, coded = both_forms(apply, spec)
  params = batches.params()
  loss = lambda batch: batch_losses(params, batch, ONES, CONFIG, ComputeConfig(), 32)[1]  # noqa: E731
  ours, expected = jax.jit(lambda one, other: (loss(one), loss(other)))(as_pixels, coded)
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
    generation_size=batches.DRAWING_SIZE,
  )
  encoded = with_codes(batch, functools.partial(apply, method='encode_pixels'))
  np.testing.assert_array_equal(encoded['tokens'], batch['tokens'])
  rows, pixels = split_pixels(encoded)
  assert pixels is None
  np.testing.assert_array_equal(embed(apply, rows, None), apply(batch['tokens'], method='embed_text'))


def embedded(apply, batch) -> np.ndarray:
  """The rows of a batch as the decoder sees them."""
  rows, pixels = split_pixels(batch)
  return np.asarray(embed(apply, rows, image_features(batches.params(), pixels, CONFIG, ComputeConfig(), 2)))


@pytest.mark.parametrize('streams', [1, 2, 4])
def test_each_image_stands_where_its_row_has_it(streams, apply, spec):
  """Whether its stream has one row, or others have images before it; two images at a time, the last time one."""
  pairs = [pair for pair in batches.records() if pair[0] == 'understanding']
  examples = batches.make_examples(spec, pairs)
  shape = dataclasses.replace(batches.SHAPE, images=4)
  batch = batches.batch_of(examples, (1, 2, 1), batches.DRAWING_SIZE, streams=streams, shape=shape)
  x = embedded(apply, batch)
  assert (batch['token_types'] == IMAGE).sum() == 4 * CONFIG.vision_encoder.num_tokens
  for row, images in enumerate(batches.images_of_rows(batch)):
    places = np.flatnonzero(batch['token_types'][row] == IMAGE).reshape(-1, CONFIG.vision_encoder.num_tokens)
    for place, features in zip(places, apply(images, method='embed_images')):
      np.testing.assert_allclose(x[row, place], features, atol=1e-5)
  # More placeholders than images are a mistake that must not pass for the last image.
  batch['token_types'][:2, :] = IMAGE
  assert np.isnan(embedded(apply, batch)[:2]).any()


def test_kinds_of_one_batch_are_told_apart(monkeypatch, spec):
  """Heads that know nothing: log(vocabulary) per text target, log(codebook) per code."""
  batch = batches.batch_of(batches.make_examples(as_codes(spec), batches.records()), batches.ROWS)
  ignorant = lambda size: lambda self, hidden: jnp.zeros((*hidden.shape[:-1], size))  # noqa: E731
  monkeypatch.setattr(Janus, 'text_logits', ignorant(512))
  monkeypatch.setattr(Janus, 'image_logits', ignorant(128))
  found = jax.jit(lambda batch: batch_losses(batches.params(), batch, ONES, CONFIG, ComputeConfig(), 32)[1])(batch)
  counts = [(batch['loss_ids'] == loss).sum() for loss in (1, 2, 3)]
  np.testing.assert_array_equal(found.weights, counts)
  np.testing.assert_allclose(found.sums, np.array(counts) * np.log([512, 512, 128]), rtol=1e-5)


SHARED = dataclasses.replace(CONFIG, shared_encoder=True)
LONG = dataclasses.replace(batches.SHAPE, length=200)


@pytest.fixture(scope='module')
def questions(spec):
  """A packed batch for a model with one encoder: images of the size that is generated, a position for each code."""
  rng = np.random.default_rng(1)
  image = lambda: rng.integers(0, 256, (SHARED.image_size, SHARED.image_size, 3), np.uint8)  # noqa: E731
  records = [(1, ['What?', 'A red box.']), (2, ['Same?', 'No']), (1, ['Hm?', '13'])]
  spec = dataclasses.replace(
    spec, num_image_tokens=SHARED.num_image_tokens, image_size=SHARED.image_size, max_length=LONG.length
  )
  pairs = [('understanding', {'images': [image() for _ in range(n)], 'turns': turns}) for n, turns in records]
  sizes = {'shape': LONG, 'image_size': SHARED.image_size, 'generation_size': batches.DRAWING_SIZE}
  return batches.batch_of(batches.make_examples(spec, pairs), (1, 2, 1), **sizes)


def test_with_one_encoder_an_image_of_a_question_is_what_the_vq_makes_of_it(apply, questions):
  encode = functools.partial(apply, method='encode_pixels')
  seen = with_understood_codes(questions, encode)
  x = np.asarray(embed(apply, seen, None))
  is_image = questions['token_types'] == IMAGE
  assert is_image.sum() == 4 * batches.NUM_CODES
  for row, images in enumerate(batches.images_of_rows(questions, batches.NUM_CODES)):
    places = np.flatnonzero(is_image[row]).reshape(-1, batches.NUM_CODES)
    for place, image in zip(places, images):
      codes = apply(image[None], method='encode_pixels')
      np.testing.assert_allclose(x[row, place], apply(codes, method='embed_codes')[0], atol=1e-5)
  # Nothing else has changed.
  np.testing.assert_array_equal(np.asarray(seen['tokens'])[~is_image], questions['tokens'][~is_image])
  np.testing.assert_array_equal(np.asarray(seen['token_types'])[~is_image], questions['token_types'][~is_image])


def test_the_loss_with_one_encoder_is_that_of_the_model_which_answers(questions):
  """Inference fills placeholders of a single sequence in with `embed_prompt`; training packs and places codes."""
  params = batches.params()
  found = jax.jit(lambda batch: batch_losses(params, batch, ONES, SHARED, ComputeConfig(), 200)[1])(questions)
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


def test_with_one_encoder_siglip_takes_no_part_and_the_adaptor_of_drawing_learns_from_questions(questions):
  gradient = jax.jit(jax.grad(lambda p: batch_losses(p, questions, ONES, SHARED, ComputeConfig(), 200)[0]))
  gradients = gradient(batches.params())
  for unused in ('vision_encoder', 'vision_aligner', 'vq'):
    assert not any(np.any(g) for g in jax.tree.leaves(gradients[unused])), unused
  for used in ('gen_embed', 'gen_aligner', 'language_model'):
    assert any(np.any(g) for g in jax.tree.leaves(gradients[used])), used


def test_heads_multiply_in_the_compute_dtype_in_both_passes():
  """The gradient of float32 logits is float32, which a GPU would multiply as TF32."""
  config, compute = CONFIG.language_model, ComputeConfig(dtype='bfloat16')
  head = Linear((config.vocab_size,), (config.width,), compute, use_bias=False, out_dtype='float32')
  x, kernel = jnp.ones((4, config.width), 'bfloat16'), jnp.ones((config.vocab_size, config.width))

  def total(x, kernel):
    return jnp.square(head.apply({'params': {'kernel': kernel}}, x)).sum()

  text = jax.jit(jax.grad(total, argnums=(0, 1))).lower(x, kernel).as_text()
  products = re.findall(r'dot_general.*: \(tensor<\S*x(\w+)>, tensor<\S*x(\w+)>\)', text)
  assert products == [('bf16', 'bf16')] * 3


def test_wide_products_have_the_gradients_of_products():
  x, matrix = (jnp.asarray(np.random.default_rng(0).normal(size=size), jnp.float32) for size in ((2, 3, 5), (7, 5)))
  plain = lambda x, matrix: jnp.sin(jnp.einsum('...d,fd->...f', x, matrix)).sum()  # noqa: E731
  wide = lambda x, matrix: jnp.sin(wide_product(x, matrix, 'float32')).sum()  # noqa: E731
  for one, other in zip(jax.grad(wide, (0, 1))(x, matrix), jax.grad(plain, (0, 1))(x, matrix)):
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_no_chunk_casts_the_weights_of_a_head():
  """They are cast before the loop over chunks begins."""
  config, compute = CONFIG.language_model, ComputeConfig(dtype='bfloat16')
  linear = Linear((config.vocab_size,), (config.width,), compute, use_bias=False, out_dtype='float32')
  hidden, targets = jnp.ones((2, 8, config.width), 'bfloat16'), jnp.zeros((2, 8), jnp.int32)

  def total(kernel):
    head = lambda weights, h: linear.apply({'params': weights}, h)  # noqa: E731
    return cross_entropy(head, {'kernel': kernel}, hidden, targets, targets == 0, jnp.ones((2, 8)), chunk=2)[1]

  text = jax.jit(jax.grad(total)).lower(jnp.ones((config.vocab_size, config.width))).as_text()
  size = f'{config.vocab_size}x{config.width}x'
  casts = [match.start() for match in re.finditer(rf'convert .*tensor<{size}f32>\) -> tensor<{size}bf16>', text)]
  assert casts
  assert max(casts) < text.index('stablehlo.while')
