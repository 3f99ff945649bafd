"""Images that are not square: codes of a plain loop, pixels of transformers' decoder, the same for every window."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

import reference  # noqa: E402
import small_checkpoint  # noqa: E402

import janus_jax  # noqa: E402
from janus_jax.data.images import to_uint8  # noqa: E402
from janus_jax.data.prompts import unconditional_ids  # noqa: E402
from janus_jax.errors import InputError  # noqa: E402
from janus_jax.inference import generation, windows  # noqa: E402
from janus_jax.inference.refining import ImageRefiner, refine_stream  # noqa: E402
from janus_jax.inference.requests import LoadedJanus  # noqa: E402
from janus_jax.models.janus import Janus, normalize_pixels  # noqa: E402
from janus_jax.models.refiner import RefinerConfig, abstract_params, condition  # noqa: E402

PROMPT = 'three red circles'
# The square has 4 x 4 codes.
GRIDS = {'3:2': (3, 5), '2:3': (5, 3)}


def apply(janus: LoadedJanus):
  return functools.partial(Janus(janus.config).apply, {'params': janus.params})


def plain_loop(janus: LoadedJanus, ids: list[int], count: int, guidance: float) -> list[int]:
  """Greedy codes from whole sequences, without a cache. What is not known yet is 0, and nothing before it sees it."""
  model, found = apply(janus), np.zeros(count, np.int32)
  prompts = np.array([ids, unconditional_ids(ids, janus.tokenizer.special.pad)])

  @jax.jit
  def logits(codes: jax.Array) -> jax.Array:
    fed = model(jnp.tile(codes, (2, 1)), method='embed_codes')
    x = jnp.concatenate([model(prompts, method='embed_text'), fed], axis=1)
    hidden, _ = model(x, jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2]), method='hidden')
    return model(hidden[:, len(ids) - 1 : -1], method='image_logits')

  for i in range(count):
    conditional, unconditional = logits(found)[:, i]
    found[i] = np.argmax(unconditional + guidance * (conditional - unconditional))
  return found.tolist()


@pytest.mark.parametrize('aspect', GRIDS)
def test_greedy_codes_are_those_of_a_plain_loop(model, aspect):
  rows, columns = GRIDS[aspect]
  words, roles = f'\nThe image, {rows} rows of {columns}:', model.template
  ids = model.tokenizer.encode(f'{roles.user}: {PROMPT}{words}\n\n{roles.assistant}:<begin_of_image>')
  ((image,),) = janus_jax.generate_images(model, [PROMPT], num_images=1, temperature=0, aspect=aspect)
  assert image.codes.tolist() == plain_loop(model, ids, rows * columns, 5.0)
  assert len(set(image.codes.tolist())) > 3
  assert image.pixels.shape == (4 * rows, 4 * columns, 3)
  assert image.image.size == (4 * columns, 4 * rows)


@pytest.mark.parametrize('grid', [(3, 5), (5, 3), (2, 8), (4, 4)])
def test_pixels_are_those_of_transformers_decoder(model, grid):
  rows, columns = grid
  codes = np.random.default_rng(0).integers(0, model.config.vq.codebook_size, (2, rows * columns)).astype(np.int32)
  theirs = reference.huggingface_model(small_checkpoint.CONFIG).model.vqmodel
  with torch.inference_mode():
    normalized = torch.nn.functional.normalize(theirs.quantize.embedding.weight, dim=-1)
    latents = normalized[torch.from_numpy(codes).long()].reshape(2, rows, columns, -1).permute(0, 3, 1, 2)
    expected = theirs.decoder(theirs.post_quant_conv(latents)).permute(0, 2, 3, 1)
  ours = apply(model)(codes, grid, method='decode_codes')
  assert ours.shape == (2, 4 * rows, 4 * columns, 3)
  assert reference.difference(ours, expected) < 1e-4


def test_codes_of_an_image_are_those_of_transformers_encoder(model):
  pixels = np.random.default_rng(1).integers(0, 256, (2, 12, 20, 3), np.uint8)
  theirs = reference.huggingface_model(small_checkpoint.CONFIG).model.vqmodel
  normalize = functools.partial(torch.nn.functional.normalize, dim=-1)
  with torch.inference_mode():
    values = torch.from_numpy(np.array(normalize_pixels(jnp.asarray(pixels)))).permute(0, 3, 1, 2)
    latents = theirs.quant_conv(theirs.encoder(values)).permute(0, 2, 3, 1).flatten(1, 2)
    expected = (normalize(latents) @ normalize(theirs.quantize.embedding.weight).T).argmax(-1)
  np.testing.assert_array_equal(apply(model)(pixels, method='encode_pixels'), expected)


def test_images_are_what_their_codes_decode_to(model):
  ((image,),) = janus_jax.generate_images(model, [PROMPT], num_images=1, aspect='3:2')
  decoded = apply(model)(image.codes[None], (3, 5), method='decode_codes')
  assert np.abs(to_uint8(decoded[0]).astype(int) - image.pixels).max() <= 1
  assert np.ptp(image.pixels) > 50


def codes(images: list[list[generation.GeneratedImage]]) -> np.ndarray:
  return np.array([[image.codes for image in row] for row in images])


def test_images_do_not_depend_on_window_or_batch(model, monkeypatch):
  prompts, options = [PROMPT], {'num_images': 3, 'aspect': '2:3'}
  one = codes(janus_jax.generate_images(model, prompts, window=1, batch_size=1, **options))
  assert one.shape == (1, 3, 15)
  assert len(np.unique(one[0], axis=0)) == 3
  asked = []
  monkeypatch.setattr(windows, 'LEAST_SECONDS', 0)  # There is enough to do: passes are measured.
  monkeypatch.setattr(windows, '_seconds', lambda _, shape, size, *how: asked.append((shape[-1], size)) or 1.0)
  monkeypatch.setattr(windows, 'EXPECTED', {5: 4.0, 8: 10.0})
  np.testing.assert_array_equal(codes(janus_jax.generate_images(model, prompts, batch_size=3, **options)), one)
  assert asked == [(15, 1), (15, 5)]  # Of at most half the codes, which 8 of the square's would be.
  found = codes(janus_jax.generate_images(model, prompts, window=15, batch_size=3, **options))
  np.testing.assert_array_equal(found, one)


def test_the_square_is_as_it_was(model):
  """Asked for by name or by a ratio that is nearest to it."""
  plain = janus_jax.generate_images(model, [PROMPT], num_images=1)
  for aspect in ('1:1', '7:7', '20:19'):
    found = janus_jax.generate_images(model, [PROMPT], num_images=1, aspect=aspect)
    np.testing.assert_array_equal(codes(found), codes(plain))
    np.testing.assert_array_equal(found[0][0].pixels, plain[0][0].pixels)
  for aspect in ('3:2', '2:3'):
    prompts = generation.prompt_rows(model.config, [PROMPT], *model.tokenizer_and_template(), aspect)
    assert prompts != generation.prompt_rows(model.config, [PROMPT], *model.tokenizer_and_template())


def test_one_line_says_which_grid_it_is(model, caplog):
  caplog.set_level('INFO')
  janus_jax.generate_images(model, [PROMPT], num_images=1, aspect='3:2')
  assert caplog.messages.count('aspect 3:2: 3 rows of 5 codes, images of 20 x 12 pixels') == 1
  caplog.clear()
  janus_jax.generate_images(model, [PROMPT], num_images=1)
  assert not [message for message in caplog.messages if 'aspect' in message]


@pytest.mark.parametrize('aspect', ['0:1', '5:1', 'x', ''])
def test_other_aspects_are_refused(model, aspect):
  with pytest.raises(InputError) as error:
    janus_jax.generate_images(model, [PROMPT], aspect=aspect)
  assert str(error.value) == f'aspect is {aspect!r}: expected WIDTH:HEIGHT from 1:2 to 2:1'


def test_what_an_image_has_room_for_is_counted_in_its_own_codes(model):
  with pytest.raises(InputError, match=r'^window is 16: expected auto, or 1 to 15, the codes of an image$'):
    janus_jax.generate_images(model, [PROMPT], aspect='3:2', window=16)
  with pytest.raises(InputError, match=r'^prompt 1 of 1: the prompt is empty: expected text$'):
    janus_jax.generate_images(model, [' '], aspect='3:2')
  room = model.config.language_model.max_positions - 15 + 1
  with pytest.raises(InputError, match=rf'^prompt 1 of 1: the prompt has \d+ tokens: expected at most {room}$'):
    janus_jax.generate_images(model, ['red ' * 600], aspect='3:2')


def test_a_refiner_takes_them(model):
  """Each code's row of the codebook stands over its own pixels."""
  config = RefinerConfig(code_dim=8, block_out_channels=(8, 16), norm_num_groups=4, flow_steps=1)
  rng = np.random.default_rng(0)
  codebook = rng.normal(size=(128, 8)).astype(np.float32)
  pixels, given = rng.uniform(-1, 1, (1, 12, 20, 3)).astype(np.float32), rng.integers(0, 128, (1, 15))
  found = np.asarray(condition(config, jnp.asarray(pixels), jnp.asarray(given), jnp.asarray(codebook)))
  rows = codebook / np.linalg.norm(codebook, axis=-1, keepdims=True)
  expected = rows[given.reshape(3, 5)].repeat(8, axis=0).repeat(8, axis=1)
  np.testing.assert_allclose(found[0, :, :, 3:], expected, atol=1e-6)
  params = jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32), abstract_params(config))
  images = janus_jax.generate_images(model, [PROMPT], num_images=1, aspect='3:2')[0]
  (refined,) = refine_stream(ImageRefiner(config, params, codebook), images, seed=0)
  assert refined.pixels.shape == (24, 40, 3)
  np.testing.assert_array_equal(refined.codes, images[0].codes)
