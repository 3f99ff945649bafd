"""Drawing and answering: seconds per image, to the first token, per token. Prompts are random tokens."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.api import decoder_for, request_keys
from janus_jax.benchmarking.subject import Subject
from janus_jax.inference.decoder import Decoder
from janus_jax.inference.image import generate_codes
from janus_jax.inference.sampling import Sampling
from janus_jax.inference.text import generate_text

# Ids that stand for the special tokens; with random weights any will do.
BOS, PAD, BEGIN_OF_IMAGE = 0, 1, 2
NO_END = -1  # No token ends an answer, so that every row is as long as asked for.


@dataclasses.dataclass(frozen=True, eq=False)
class Prompts:
  """What is asked of a model.

  Attributes:
    tokens: int32[R, T], left-padded.
    mask: bool[R, T], False on padding.
    pixels: uint8[R, size, size, 3], or None.
  """

  tokens: np.ndarray
  mask: np.ndarray
  pixels: np.ndarray | None


def make_decoder(subject: Subject, dtype: str) -> Decoder:
  """The subject's weights in `dtype`, ready to draw and answer."""
  params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.dtype(dtype)), subject.params)
  return decoder_for(subject.model, params)


def drawing_prompts(subject: Subject, batch: int, words: int) -> Prompts:
  """Prompts of `words` tokens, the last one begin-of-image, and then their unconditional counterparts."""
  rng = np.random.default_rng(subject.config.seed)
  tokens = rng.integers(3, subject.model.language_model.vocab_size - 1, (batch, words)).astype(np.int32)
  tokens[:, 0], tokens[:, -1] = BOS, BEGIN_OF_IMAGE
  without = tokens.copy()
  without[:, 1:-1] = PAD
  tokens = np.concatenate([tokens, without])
  return Prompts(tokens, np.ones(tokens.shape, bool), None)


def questions(subject: Subject, batch: int, words: int) -> Prompts:
  """An image and `words` tokens after it."""
  rng, model = np.random.default_rng(subject.config.seed), subject.model
  tokens = rng.integers(3, model.language_model.vocab_size - 1, (batch, 1 + model.num_image_tokens + words))
  tokens += tokens >= model.image_token_id
  tokens[:, 0], tokens[:, 1 : 1 + model.num_image_tokens] = BOS, model.image_token_id
  pixels = rng.integers(0, 256, (batch, model.image_size, model.image_size, 3), np.uint8)
  return Prompts(tokens.astype(np.int32), np.ones(tokens.shape, bool), pixels)


def draw_codes(decoder: Decoder, prompts: Prompts, guidance: float, sampling: Sampling) -> np.ndarray:
  """int32[N, P]."""
  rows = len(prompts.tokens) // 2
  keys = request_keys(0, [(row,) for row in range(rows)])
  return np.asarray(generate_codes(decoder, prompts.tokens, prompts.mask, keys, guidance=guidance, sampling=sampling))


def answer_tokens(decoder: Decoder, prompts: Prompts, count: int) -> np.ndarray:
  """int32[R, count], the likeliest ones."""
  keys = request_keys(0, [(row,) for row in range(len(prompts.tokens))])
  options = {'eos_id': NO_END, 'max_new_tokens': count, 'sampling': Sampling(temperature=0.0)}
  chunks = generate_text(decoder, prompts.tokens, prompts.mask, prompts.pixels, keys, **options)
  return np.concatenate(list(chunks), axis=1)


class PeerInference:
  """The same through transformers' `generate`: SDPA attention, `inference_mode`, a static cache on a GPU."""

  def __init__(self, subject: Subject, dtype: str):
    from janus_jax.benchmarking.peer import device_of, import_peer, peer_model

    self._torch, self._transformers = import_peer()
    self._model = peer_model(subject.model, subject.params, dtype)
    self._device = device_of(self._torch)

  def draw_codes(self, prompts: Prompts, guidance: float, temperature: float) -> np.ndarray:
    """int32[N, P]; the unconditional rows it makes itself."""
    rows = len(prompts.tokens) // 2
    settings = self._transformers.GenerationConfig(
      do_sample=temperature > 0,
      top_k=0,
      temperature=temperature or None,
      guidance_scale=guidance,
      bos_token_id=BOS,
      pad_token_id=PAD,
      generation_kwargs={'boi_token_id': BEGIN_OF_IMAGE},
    )
    with self._torch.inference_mode():
      found = self._model.generate(
        input_ids=self._tensor(prompts.tokens[:rows]).long(),
        attention_mask=self._tensor(prompts.mask[:rows]).long(),
        generation_mode='image',
        generation_config=settings,
      )
    return found.cpu().numpy()

  def answer_tokens(self, prompts: Prompts, count: int) -> np.ndarray:
    """int[R, count]."""
    torch = self._torch
    settings = self._transformers.GenerationConfig(
      do_sample=False,
      min_new_tokens=count,
      max_new_tokens=count,
      pad_token_id=PAD,
      cache_implementation='static' if self._device == 'cuda' else None,
    )
    pixels = self._tensor(prompts.pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
      found = self._model.generate(
        input_ids=self._tensor(prompts.tokens).long(),
        attention_mask=self._tensor(prompts.mask).long(),
        pixel_values=pixels.to(self._model.dtype),
        generation_mode='text',
        generation_config=settings,
      )
    return found[:, -count:].cpu().numpy()

  def _tensor(self, array: np.ndarray) -> Any:
    return self._torch.from_numpy(np.ascontiguousarray(array)).to(self._device)
