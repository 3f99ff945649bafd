"""Greedy generation in float32 gives the tokens that transformers gives on the same random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

import reference  # noqa: E402

from janus_jax.inference.answering import TextPrompts, generate_text  # noqa: E402
from janus_jax.inference.decoder import make_decoder  # noqa: E402
from janus_jax.inference.drawing import Window, generate_codes, guided_prompts  # noqa: E402
from janus_jax.inference.sampling import Sampling, row_key  # noqa: E402
from janus_jax.models.config import ComputeConfig  # noqa: E402

CONFIG = reference.TINY
BOS, EOS, PAD, BOI = 256, 257, 258, 259
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope='module')
def decoder():
  return make_decoder(CONFIG, ComputeConfig(), reference.our_params())


@pytest.fixture(scope='module')
def model():
  return reference.huggingface_model()


def left_padded(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
  length = max(map(len, rows))
  tokens = np.array([[PAD] * (length - len(row)) + row for row in rows], np.int32)
  mask = np.array([[False] * (length - len(row)) + [True] * len(row) for row in rows])
  return tokens, mask


def keys(count: int) -> jax.Array:
  return jnp.stack([row_key(0, i) for i in range(count)])


@pytest.mark.parametrize('window', [1, 4])
def test_image_codes_of_unequal_prompts(decoder, model, window):
  prompts = [[BOS, 5, 17, 99, 3, BOI], [BOS, 42, BOI]]
  unconditional = [[BOS, *[PAD] * (len(row) - 2), BOI] for row in prompts]
  tokens, mask = left_padded([*prompts, *unconditional])
  ours = generate_codes(decoder, tokens, mask, keys(2), guidance=5.0, sampling=GREEDY, window=Window(window)).codes
  ids, attention = left_padded(prompts)
  theirs = reference.greedy_codes(model, ids, attention, {'bos': BOS, 'pad': PAD, 'boi': BOI})
  np.testing.assert_array_equal(ours, theirs)
  assert len(np.unique(ours)) > 8


@pytest.mark.parametrize('guidance', [0.0, 0.5, 1.0])
def test_image_codes_of_any_weight_of_guidance(decoder, model, guidance):
  """The formula over whole sequences without a cache; transformers' own loop, above, knows weights above 1 only."""
  prompt = [BOS, 5, 17, 99, 3, BOI]
  kinds = [prompt], [[BOS, *[PAD] * (len(prompt) - 2), BOI]]
  tokens, mask = left_padded(guided_prompts(*kinds, guidance))
  ours = generate_codes(decoder, tokens, mask, keys(1), guidance=guidance, sampling=GREEDY).codes
  with torch.inference_mode():
    x = model.get_input_embeddings()(torch.tensor(np.concatenate(kinds)))
    theirs = []
    for _ in range(CONFIG.vq.num_tokens):
      hidden = model.model.language_model(inputs_embeds=x).last_hidden_state[:, -1]
      conditional, unconditional = model.model.generation_head(hidden)
      theirs.append(int(torch.argmax(unconditional + guidance * (conditional - unconditional))))
      fed = model.prepare_embeddings_for_image_generation(torch.tensor([[theirs[-1]]] * 2))
      x = torch.cat([x, fed], dim=1)
  assert ours[0].tolist() == theirs


@pytest.mark.parametrize('images', [0, 2])
def test_answers(decoder, model, images):
  P, size = CONFIG.vision_encoder.num_tokens, CONFIG.vision_encoder.image_size
  image = [CONFIG.image_token_id] * P
  rows = [[BOS, 7, *image * images, 11, 12, 13], [BOS, 9, *image * images, 21]]
  pixels = np.random.default_rng(images).normal(size=(2 * images, size, size, 3)).astype(np.float32)
  tokens, mask = left_padded(rows)
  prompts = TextPrompts(tokens, mask, pixels if images else None)
  chunks = generate_text(decoder, prompts, keys(2), eos_id=EOS, max_new_tokens=40, sampling=GREEDY)
  ours = np.concatenate(list(chunks), axis=1)
  theirs = model.generate(
    input_ids=torch.from_numpy(tokens).long(),
    attention_mask=torch.from_numpy(mask).long(),
    **({'pixel_values': torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())} if images else {}),
    generation_mode='text',
    do_sample=False,
    max_new_tokens=40,
    eos_token_id=EOS,
    pad_token_id=EOS,
  )[:, tokens.shape[1] :].numpy()
  np.testing.assert_array_equal(ours[:, : theirs.shape[1]], theirs)


def test_answers_about_the_same_images(decoder, model):
  """Two times three questions about two images, each of transformers' alone."""
  images = 2
  P, size = CONFIG.vision_encoder.num_tokens, CONFIG.vision_encoder.image_size
  seen = [[BOS, *words, *[CONFIG.image_token_id] * P * images] for words in ([7, 8, 9], [5])]
  rest = [[11, 12, 13], [14], [21, 22], [31], [32, 33, 34, 35], [41, 42]]
  pixels = np.random.default_rng(images).normal(size=(2, images, size, size, 3)).astype(np.float32)
  prompts = TextPrompts(*left_padded(seen), pixels.reshape(-1, size, size, 3), left_padded(rest))
  chunks = generate_text(decoder, prompts, keys(6), eos_id=EOS, max_new_tokens=40, sampling=GREEDY)
  ours = np.concatenate(list(chunks), axis=1)
  for row, words in enumerate(rest):
    ids = torch.tensor([seen[row // 3] + words])
    theirs = model.generate(
      input_ids=ids,
      attention_mask=torch.ones_like(ids),
      pixel_values=torch.from_numpy(pixels[row // 3].transpose(0, 3, 1, 2).copy()),
      generation_mode='text',
      do_sample=False,
      max_new_tokens=40,
      eos_token_id=EOS,
      pad_token_id=EOS,
    )[0, ids.shape[1] :].numpy()
    np.testing.assert_array_equal(ours[row, : len(theirs)], theirs)
  assert len(np.unique(ours, axis=0)) == 6


def test_codes_of_several_images_of_a_prompt(decoder, model):
  prompts = [[BOS, 5, 17, 99, 3, BOI], [BOS, 42, BOI]]
  unconditional = [[BOS, *[PAD] * (len(row) - 2), BOI] for row in prompts]
  ours = generate_codes(decoder, *left_padded([*prompts, *unconditional]), keys(4), guidance=5.0, sampling=GREEDY).codes
  options = transformers.GenerationConfig(
    do_sample=False,
    guidance_scale=5.0,
    bos_token_id=BOS,
    pad_token_id=PAD,
    generation_kwargs={'boi_token_id': BOI},
  )
  for prompt, ids in enumerate(map(torch.tensor, prompts)):
    mask = torch.ones_like(ids[None])
    theirs = model.generate(ids[None], attention_mask=mask, generation_mode='image', generation_config=options).numpy()
    np.testing.assert_array_equal(ours[2 * prompt : 2 * prompt + 2], np.repeat(theirs, 2, axis=0))
