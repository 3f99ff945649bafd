"""The peer's generation and answers: transformers' own `generate`, in `inference_mode`, with SDPA attention."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from janus_jax.benchmarking.inference import PAD, Prompts
from janus_jax.benchmarking.peer import device_of, import_peer, peer_model
from janus_jax.models.config import JanusConfig


class PeerInference:
  """The peer's `inference.sample_codes` and `inference.answer_tokens`.

  Codes come with a static cache, transformers' default; answers so on a GPU, where its `generate` then compiles the
  forward pass. In float32 until it is told otherwise.
  """

  def __init__(self, config: JanusConfig, params: Any):
    self._torch, self._transformers = import_peer()
    self._model = peer_model(config, params, 'float32')
    self._device = device_of(self._torch)

  def prepare(self, dtype: str, compiled: bool) -> None:
    """From now on computes in `dtype`; `compiled`: the decoder goes through `torch.compile`."""
    for parameter in self._model.parameters():  # Not its buffers: rotary frequencies stay in float32.
      parameter.data = parameter.data.to(getattr(self._torch, dtype))
    if compiled:
      self._model.model.language_model.compile()

  def sample_codes(self, prompts: Prompts, images: int, guidance: float, temperature: float) -> np.ndarray:
    """int32[N, P], N `images`; it makes the unconditional rows itself. Temperature 0 takes the likeliest codes."""
    sampling = {'do_sample': True, 'top_k': 0, 'temperature': temperature} if temperature else {'do_sample': False}
    bos, pad, begin_of_image = prompts.special
    settings = self._transformers.GenerationConfig(
      **sampling,
      guidance_scale=guidance,
      bos_token_id=bos,
      pad_token_id=pad,
      generation_kwargs={'boi_token_id': begin_of_image},
    )
    with self._torch.inference_mode():
      found = self._model.generate(
        input_ids=self._tensor(prompts.tokens[:images]).long(),
        attention_mask=self._tensor(prompts.mask[:images]).long(),
        generation_mode='image',
        generation_config=settings,
      )
    return found.cpu().numpy()

  def decode_codes(self, codes: np.ndarray) -> np.ndarray:
    """int[N, P] to uint8[N, size, size, 3]."""
    with self._torch.inference_mode():
      pixels = self._model.decode_image_tokens(self._tensor(codes).long()).float()
      return ((pixels + 1) * 127.5).round().clamp(0, 255).to(self._torch.uint8).cpu().numpy()

  def answer_tokens(self, prompts: Prompts, count: int) -> np.ndarray:
    """Greedy answers int[R, count]."""
    return self._generate_text(prompts, min_new_tokens=count, max_new_tokens=count)

  def _generate_text(self, prompts: Prompts, **lengths: int) -> np.ndarray:
    """New tokens int[R, n]."""
    settings = self._transformers.GenerationConfig(
      do_sample=False,
      pad_token_id=PAD,
      cache_implementation='static' if self._device == 'cuda' else None,
      **lengths,
    )
    pixels = self._tensor(prompts.pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    with self._torch.inference_mode():
      found = self._model.generate(
        input_ids=self._tensor(prompts.tokens).long(),
        attention_mask=self._tensor(prompts.mask).long(),
        pixel_values=pixels.to(self._model.dtype),
        generation_mode='text',
        generation_config=settings,
      )
    return found[:, prompts.tokens.shape[1] :].cpu().numpy()

  def answer_each(self, questions: Sequence[tuple[list[int], np.ndarray]], eos: int, count: int) -> list[list[int]]:
    """Greedy answers of at most `count` tokens, up to the end token, to one question (ids, pixels) after the other."""
    found = []
    for ids, pixels in questions:
      tokens = np.array([ids])
      prompts = Prompts(tokens, np.ones(tokens.shape, bool), pixels)
      (answer,) = self._generate_text(prompts, eos_token_id=eos, max_new_tokens=count).tolist()
      found.append(list(itertools.takewhile(lambda token: token != eos, answer)))
    return found

  def _tensor(self, array: np.ndarray) -> Any:
    return self._torch.from_numpy(np.array(array)).to(self._device)
