"""What a benchmark is asked for: how it is measured, how much is drawn or said, and which flags go together."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

from janus_jax.errors import InputError
from janus_jax.models.config import JanusConfig


@dataclasses.dataclass(frozen=True)
class BenchmarkSettings:
  """How it is measured.

  Attributes:
    repeats: runs of which the median counts.
    steps: training steps of a run.
    peer: whether transformers does the same work in turn.
    compile_peer: whether the peer goes through `torch.compile`; None leaves it to `peer.should_compile`.
    profile: directory for a trace of our side, '' for none.
  """

  repeats: int
  steps: int
  peer: bool = False
  compile_peer: bool | None = None
  profile: str = ''


@dataclasses.dataclass(frozen=True)
class Request:
  """How much is drawn or said.

  Attributes:
    batches: images or questions at a time, one after the other.
    words: tokens of a prompt, or of a question beside its image.
    answer: tokens of an answer.
    dtype: what weights are stored and computed in, but for what `weights` and `cache_dtype` say; the peer's as well.
    weights: how kernels are stored (`inference.decoder.WEIGHTS`).
    cache_dtype: what keys and values are stored in; None: `dtype`.
    share: images of one prompt, or questions about one image; divides each of `batches`.
  """

  batches: tuple[int, ...]
  words: int
  answer: int
  dtype: str
  weights: str = 'full'
  cache_dtype: str | None = None
  share: int = 1

  @property
  def is_rounded(self) -> bool:
    """Whether something is stored in less than `dtype`, so that results differ."""
    return self.weights != 'full' or self.cache_dtype not in (None, self.dtype)

  def described(self) -> dict[str, Any]:
    cache_dtype = self.cache_dtype or self.dtype
    return {'compute_dtype': self.dtype, 'weights': self.weights, 'cache_dtype': cache_dtype, 'share': self.share}


def check_mode_flags(mode: str, given: Collection[str]) -> None:
  """Raises InputError for flags that a mode does not have; `given` names those that are set."""
  inference_only = ('generate', 'understand')
  for name, modes in (
    ('peer', ('train', *inference_only)),
    ('profile', ('train', *inference_only)),
    ('scaling', ('train', 'understand')),
    ('weights', inference_only),
    ('cache_dtype', inference_only),
    ('share', inference_only),
  ):
    if name in given and mode not in modes:
      raise InputError(f'--{name}: expected with --mode={" or ".join(modes)}, not {mode}')
  if 'scaling' in given and {'peer', 'profile'} & set(given):
    raise InputError('--scaling: expected without --peer and --profile')


def check_positions(mode: str, request: Request, model: JanusConfig) -> None:
  """Raises InputError where a prompt and what follows it have more tokens than the model has positions."""
  rest = model.vq.num_tokens if mode == 'generate' else 1 + model.num_image_tokens + request.answer
  limit = model.language_model.max_positions - rest
  if request.words > limit:
    raise InputError(
      f'prompt_tokens is {request.words}: expected at most {limit}, as {rest} of the {limit + rest} positions of the '
      'model are taken'
    )


def read_batches(texts: Sequence[str], share: int = 1) -> tuple[int, ...]:
  """Raises InputError for anything but positive integers that `share` divides."""
  if not texts or not all(text.strip().isdecimal() and int(text) > 0 for text in texts):
    raise InputError(f'--batch={",".join(texts)}: expected positive integers, as in --batch=1,16')
  if any(int(text) % share for text in texts):
    raise InputError(f'--batch={",".join(texts)}: expected multiples of --share={share}')
  return tuple(int(text) for text in texts)
