"""Accuracy is measured at the positions that generation passes through, by the textbook's divergence."""

import numpy as np
import pytest
from training.batches import CONFIG, params

from janus_jax.benchmarking import accuracy, inference
from janus_jax.benchmarking.inference import Prompts
from janus_jax.inference.decoder import Decoder
from janus_jax.inference.requests import LoadedJanus, decoder_for


@pytest.fixture(scope='module')
def decoder() -> Decoder:
  return decoder_for(LoadedJanus(CONFIG, params()))


def words(rows: int, count: int) -> tuple[np.ndarray, np.ndarray]:
  """Prompts of which the second begins with two pads."""
  tokens = np.random.default_rng(0).integers(3, CONFIG.image_token_id, (rows, count)).astype(np.int32)
  mask = np.ones((rows, count), bool)
  mask[1, :2] = False
  return tokens, mask


@pytest.mark.parametrize('guidance', [1.0, 5.0])
def test_the_likeliest_codes_are_those_that_are_sampled(decoder, guidance):
  prompts = Prompts(*words(4, 6), None)
  codes = inference.sample_codes(decoder, prompts, guidance, inference.GREEDY).codes
  logits = accuracy.code_logits(decoder, prompts, codes, guidance)
  np.testing.assert_array_equal(np.argmax(logits, axis=-1), codes)


def test_the_likeliest_words_are_those_that_are_answered(decoder):
  tokens, mask = words(2, 6 + CONFIG.num_image_tokens)
  tokens[:, 4 : 4 + CONFIG.num_image_tokens] = CONFIG.image_token_id
  size = CONFIG.image_size
  prompts = Prompts(tokens, mask, np.random.default_rng(1).integers(0, 256, (2, size, size, 3), np.uint8))
  answers, _ = inference.answer_tokens(decoder, prompts, 7)
  logits = accuracy.answer_logits(decoder, prompts, answers)
  np.testing.assert_array_equal(np.argmax(logits, axis=-1), answers)


def test_divergence_is_that_of_the_textbook():
  rng = np.random.default_rng(0)
  full, rounded = (rng.normal(size=(3, 5, 11)).astype(np.float32) * 3 for _ in range(2))
  p, q = (np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum(-1, keepdims=True) for x in (full, rounded))
  nats = (p * np.log(p / q)).sum(-1)
  found = accuracy.divergence(full, rounded)
  assert found['kl_mean'] == pytest.approx(nats.mean(), rel=1e-5)
  assert found['kl_max'] == pytest.approx(nats.max(), rel=1e-5)
  assert found['same_likeliest'] == pytest.approx((full.argmax(-1) == rounded.argmax(-1)).mean())
  same = accuracy.divergence(full, full)
  assert (same['kl_max'], same['same_likeliest']) == (0, 1)
