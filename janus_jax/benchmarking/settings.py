"""Settings of a benchmark, and checks of its flags."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

from janus_jax.errors import InputError
from janus_jax.inference.windows import AUTO, check_window
from janus_jax.models.config import JanusConfig

_INFERENCE = ('generate', 'understand')
_SHARING = (*_INFERENCE, 'evaluate')
# Flags that only some modes have.
MODES = {
  'peer': ('train', *_SHARING),
  'profile': ('train', *_SHARING),
  'scaling': ('train', 'understand'),
  'share': _SHARING,
  **dict.fromkeys(('window', 'prompt'), ('generate',)),
  **dict.fromkeys(('weights', 'cache_dtype'), _INFERENCE),
}


@dataclasses.dataclass(frozen=True)
class BenchmarkSettings:
  """Settings of every measurement.

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
  """Size and precision of generation or answers.

  Attributes:
    batches: images or questions at a time, one after the other.
    prompt_tokens: tokens of a prompt, or of a question beside its image.
    answer_tokens: tokens of an answer.
    dtype: dtype of weights and computation, unless `weights` or `cache_dtype` differ; the peer's as well.
    weights: storage of kernels (`inference.decoder.WEIGHTS`).
    cache_dtype: dtype of keys and values; None: `dtype`.
    rows_per_prefix: images of one prompt, or questions about one image; divides each of `batches`.
    windows: codes that a pass draws at most, or 'auto' (`inference.windows`), one beside the other.
    prompts: texts, in place of `prompt_tokens` random tokens; repeated to fill a batch.
  """

  batches: tuple[int, ...]
  prompt_tokens: int
  answer_tokens: int
  dtype: str
  weights: str = 'full'
  cache_dtype: str | None = None
  rows_per_prefix: int = 1
  windows: tuple[int | str, ...] = (1,)
  prompts: tuple[str, ...] = ()

  @property
  def is_rounded(self) -> bool:
    """True if something is stored in less than `dtype`, so that results differ."""
    return self.weights != 'full' or self.cache_dtype not in (None, self.dtype)

  def to_dict(self) -> dict[str, Any]:
    stored = {'weights': self.weights, 'cache_dtype': self.cache_dtype or self.dtype}
    return {'compute_dtype': self.dtype, **stored, 'share': self.rows_per_prefix}


def check_mode_flags(mode: str, given: Collection[str]) -> None:
  """Raises InputError for flags that a mode does not have; `given` names those that are set."""
  for name in given:
    if mode not in MODES[name]:
      raise InputError(f'--{name}: expected with --mode={" or ".join(MODES[name])}, not {mode}')
  if 'scaling' in given and {'peer', 'profile'} & set(given):
    raise InputError('--scaling: expected without --peer and --profile')


def check_positions(mode: str, request: Request, config: JanusConfig) -> None:
  """Raises InputError where a prompt and what follows it have more tokens than the model has positions, or a window has
  more codes than an image.
  """
  for window in request.windows:
    check_window(config.vq.num_tokens, window)
  rest = config.vq.num_tokens if mode == 'generate' else 1 + config.num_image_tokens + request.answer_tokens
  limit = config.language_model.max_positions - rest
  if request.prompt_tokens > limit:
    raise InputError(
      f'prompt_tokens is {request.prompt_tokens}: expected at most {limit}, as {rest} of the {limit + rest} positions '
      'of the model are taken'
    )


def read_windows(texts: Sequence[str]) -> tuple[int | str, ...]:
  """Raises InputError for anything but positive integers and 'auto'."""
  if not texts or not all(text == AUTO or (text.isdecimal() and int(text) > 0) for text in texts):
    raise InputError(f'--window={",".join(texts)}: expected {AUTO} or positive integers, as in --window=1,8')
  return tuple(AUTO if text == AUTO else int(text) for text in texts)


def read_batches(texts: Sequence[str], rows_per_prefix: int = 1) -> tuple[int, ...]:
  """Raises InputError for anything but positive integers that `rows_per_prefix` divides."""
  if not texts or not all(text.strip().isdecimal() and int(text) > 0 for text in texts):
    raise InputError(f'--batch={",".join(texts)}: expected positive integers, as in --batch=1,16')
  if any(int(text) % rows_per_prefix for text in texts):
    raise InputError(f'--batch={",".join(texts)}: expected multiples of --share={rows_per_prefix}')
  return tuple(int(text) for text in texts)
