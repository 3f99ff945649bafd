"""Work that `benchmark` measures in its modes generate and understand, of ours and of the peer."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from janus_jax.benchmarking import accuracy, inference
from janus_jax.benchmarking.benchmark_model import BenchmarkModel
from janus_jax.benchmarking.peer import PeerProcess
from janus_jax.benchmarking.settings import Request
from janus_jax.benchmarking.timing import Timing
from janus_jax.inference.decoder import Decoder
from janus_jax.inference.drawing import Drawn, Window
from janus_jax.inference.sampling import Sampling
from janus_jax.inference.windows import AUTO, choose_window

Run = Callable[[], Any]


class Images:
  """Images with guidance. `runs` of ours and of the peer are timed under `names`; ours draw codes by each window."""

  rows, names = 'images', ('seconds_of_codes', 'seconds_of_pixels')

  def __init__(self, model: BenchmarkModel, request: Request):
    self._codes_per_image, self._guidance = model.config.vq.num_tokens, float(model.run.sampling.cfg_weight)
    self.windows, shared = request.windows, request.rows_per_prefix

    def prompts(batch: int) -> inference.Prompts:
      if request.prompts:
        return inference.described_images(model, request.prompts, batch, self._guidance, shared)
      return inference.image_prompts(model, batch, request.prompt_tokens, self._guidance, shared)

    self._prompts = {batch: prompts(batch) for batch in request.batches}
    self._drawn: dict[tuple[int, int | str], Drawn] = {}
    self._chosen: dict[tuple[int, int | str], Window] = {}
    length = self._prompts[request.batches[0]].tokens.shape[1]
    self.about = {'guidance': self._guidance, 'prompt_tokens': length}

  def _sample(self, decoder: Decoder, batch: int, window: int | str, sampling: Sampling) -> np.ndarray:
    prompts, key = self._prompts[batch], (batch, window)
    if key not in self._chosen:
      self._chosen[key] = self._choose(decoder, prompts, sampling) if window == AUTO else Window(int(window))
    self._drawn[key] = inference.sample_codes(decoder, prompts, self._guidance, sampling, self._chosen[key])
    return self._drawn[key].codes

  def _choose(self, decoder: Decoder, prompts: inference.Prompts, sampling: Sampling) -> Window:
    shape = *prompts.tokens.shape, self._codes_per_image
    return choose_window(decoder, shape, self._guidance, sampling, batches=100)  # As in a long run.

  def _peer_sample(self, other: PeerProcess, batch: int, temperature: float) -> np.ndarray:
    return other.call('sample_codes', self._prompts[batch], batch, self._guidance, temperature)

  def _codes(self, batch: int) -> np.ndarray:
    return self._drawn[batch, self.windows[0]].codes

  def runs(self, decoder: Decoder, batch: int) -> list[Run]:
    return [
      *(functools.partial(self._sample, decoder, batch, window, Sampling()) for window in self.windows),
      lambda: inference.decode_codes(decoder, self._codes(batch)),
    ]

  def peer_runs(self, other: PeerProcess, batch: int) -> list[Run]:
    return [lambda: self._peer_sample(other, batch, 1.0), lambda: other.call('decode_codes', self._codes(batch))]

  def greedy(self, decoder: Decoder, other: PeerProcess, batch: int) -> tuple[np.ndarray, np.ndarray]:
    ours = self._sample(decoder, batch, self.windows[0], inference.GREEDY)
    return ours, self._peer_sample(other, batch, 0.0)

  def logits(self, full: Decoder, batch: int) -> Callable[[Decoder], jax.Array]:
    codes = self._sample(full, batch, 1, Sampling())
    return lambda decoder: accuracy.code_logits(decoder, self._prompts[batch], codes, self._guidance)

  def rates(self, batch: int, codes: Timing, pixels: Timing) -> dict[str, Any]:
    seconds = codes.median + pixels.median
    rates = {'seconds_per_image': seconds / batch, 'images_per_second': batch / seconds}
    return {**rates, 'codes_per_second': batch * self._codes_per_image / codes.median}

  def figures(self, decoder: Decoder, batch: int, window: int | str, codes: Timing, pixels: Timing) -> dict[str, Any]:
    drawn, first = self._drawn[batch, window], self._drawn[batch, self.windows[0]]
    chosen = self._chosen[batch, window].size
    found: dict[str, Any] = {'window': window, 'codes_of_a_pass_at_most': chosen}
    found['passes_per_image'] = float(drawn.passes.mean())
    # The pass over the prompt draws the first code.
    found['codes_per_pass'] = float(np.mean((self._codes_per_image - 1) / (drawn.passes - 1)))
    if window != self.windows[0]:
      found['same_images_as_by_first_window'] = float((drawn.codes == first.codes).all(axis=1).mean())
    slots = self._prompts[batch].slots_read(self._codes_per_image / 2)
    seconds = codes.median / int(drawn.passes.max())
    return {**found, 'share_of_roofline': _roofline(decoder, 'gen_head', slots, seconds)}


class Answers:
  """Greedy answers of a fixed length about an image each, whole and then first tokens, as `Images` does it."""

  rows, names, windows = 'answers', ('seconds_of_answer', 'seconds_to_first_token'), (1,)

  def __init__(self, model: BenchmarkModel, request: Request):
    self._length = request.answer_tokens
    shape = request.prompt_tokens, request.rows_per_prefix
    self._prompts = {batch: inference.questions(model, batch, *shape) for batch in request.batches}
    self._after_first: dict[int, list[float]] = {batch: [] for batch in request.batches}
    self.about = {'prompt_tokens': request.prompt_tokens, 'answer_tokens': self._length}

  def _answer(self, decoder: Decoder, batch: int) -> np.ndarray:
    tokens, seconds = inference.answer_tokens(decoder, self._prompts[batch], self._length)
    self._after_first[batch].append(seconds)
    return tokens

  def runs(self, decoder: Decoder, batch: int) -> list[Run]:
    return [lambda: self._answer(decoder, batch), lambda: inference.answer_tokens(decoder, self._prompts[batch], 1)]

  def peer_runs(self, other: PeerProcess, batch: int) -> list[Run]:
    return [functools.partial(other.call, 'answer_tokens', self._prompts[batch], count) for count in (self._length, 1)]

  def greedy(self, decoder: Decoder, other: PeerProcess, batch: int) -> tuple[np.ndarray, np.ndarray]:
    return self._answer(decoder, batch), self.peer_runs(other, batch)[0]()

  def logits(self, full: Decoder, batch: int) -> Callable[[Decoder], jax.Array]:
    answers = self._answer(full, batch)
    return lambda decoder: accuracy.answer_logits(decoder, self._prompts[batch], answers)

  def rates(self, batch: int, answer: Timing, first: Timing) -> dict[str, Any]:
    return {'tokens_per_second': batch * self._length / answer.median}

  def figures(self, decoder: Decoder, batch: int, window: int | str, answer: Timing, first: Timing) -> dict[str, Any]:
    after_first = tuple(self._after_first[batch][-len(answer.values) :])
    token, slots = Timing(after_first).per(self._length - 1), self._prompts[batch].slots_read(self._length / 2)
    return {
      'tokens_per_second_after_first': batch / token.median,
      'share_of_roofline': _roofline(decoder, 'lm_head', slots, token.median),
    }


def _roofline(decoder: Decoder, head: str, slots: float, step_seconds: float) -> float | None:
  read = inference.bytes_per_step(decoder, head, slots)
  return inference.roofline_fraction(read, step_seconds, jax.devices()[0].device_kind)
