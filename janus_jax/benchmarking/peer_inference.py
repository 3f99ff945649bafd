"""The peer's drawing and answering: transformers' own `generate`, in `inference_mode`, with SDPA attention."""

from typing import Any

import numpy as np

from janus_jax.benchmarking.inference import BEGIN_OF_IMAGE, BOS, PAD, Prompts
from janus_jax.benchmarking.peer import device_of, import_peer, peer_model
from janus_jax.models.config import JanusConfig


class PeerInference:
  """What `inference.draw_codes` and `inference.answer_tokens` do, with the same weights.

  Images are drawn with a static cache, as transformers does by itself; answers so on a GPU, where its `generate` then
  compiles the forward pass.
  """

  def __init__(self, model: JanusConfig, params: Any, dtype: str, compiled: bool):
    """
    Args:
      model: architecture.
      params: our tree, numpy arrays.
      dtype: what weights are stored and computed in.
      compiled: whether the decoder goes through `torch.compile`.
    """
    self._torch, self._transformers = import_peer()
    self._model = peer_model(model, params, dtype)
    if compiled:
      self._model.model.language_model.compile()
    self._device = device_of(self._torch)

  def draw_codes(self, prompts: Prompts, images: int, guidance: float, temperature: float) -> np.ndarray:
    """int32[N, P], N `images`; the unconditional rows it makes itself. Temperature 0 takes the likeliest codes."""
    sampling = {'do_sample': True, 'top_k': 0, 'temperature': temperature} if temperature else {'do_sample': False}
    settings = self._transformers.GenerationConfig(
      **sampling,
      guidance_scale=guidance,
      bos_token_id=BOS,
      pad_token_id=PAD,
      generation_kwargs={'boi_token_id': BEGIN_OF_IMAGE},
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
    """int[R, count], the likeliest ones."""
    settings = self._transformers.GenerationConfig(
      do_sample=False,
      min_new_tokens=count,
      max_new_tokens=count,
      pad_token_id=PAD,
      cache_implementation='static' if self._device == 'cuda' else None,
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
    return found[:, -count:].cpu().numpy()

  def _tensor(self, array: np.ndarray) -> Any:
    return self._torch.from_numpy(np.array(array)).to(self._device)
