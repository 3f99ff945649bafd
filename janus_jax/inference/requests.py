"""Settings of requests for images and for answers, and what both kinds of requests begin with."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from janus_jax.data.aspects import SQUARE, parse_aspect
from janus_jax.data.prompts import Template
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import InputError
from janus_jax.inference.decoder import Decoder, Spread, is_spread, make_decoder
from janus_jax.inference.sampling import Sampling, row_key
from janus_jax.inference.windows import AUTO
from janus_jax.models.attention_choice import choose, of_images, platform_of
from janus_jax.models.config import ComputeConfig, JanusConfig


@dataclasses.dataclass(frozen=True)
class LoadedJanus:
  """A checkpoint opened for use (`janus_jax.load`).

  Attributes:
    config: architecture.
    params: parameter tree for `models.janus.Janus(config).apply({'params': params}, ...)`.
    tokenizer: the checkpoint's own, or None. The model accepts another one, which ruins its output.
    template: names of the speakers in this checkpoint's training, None without a tokenizer.
    sampling: fields of `ImageSettings` that the checkpoint's workdir states; defaults of `generate_images`.
    spread: splits of rows over the devices that the parameters lie on; None leaves them to XLA.
  """

  config: JanusConfig
  params: dict[str, Any]
  tokenizer: Tokenizer | None = None
  template: Template | None = None
  sampling: Mapping[str, float] = dataclasses.field(default_factory=dict)
  spread: Spread | None = None

  def tokenizer_and_template(self) -> tuple[Tokenizer, Template]:
    """Returns both. Raises InputError where there are none, or they are another checkpoint's."""
    if self.tokenizer is None or self.template is None:
      raise InputError('the checkpoint has no tokenizer.json: expected one to read prompts and questions with')
    check_tokenizer(self.config, self.tokenizer)
    return self.tokenizer, self.template


@dataclasses.dataclass(frozen=True)
class RequestSettings(Sampling):
  """Settings of every request. Verbs have flags for them with these descriptions (`cli.define_settings`).

  Attributes:
    seed: the same seed gives the same results, 0 to 2^32 - 1; in bfloat16 at the same batch_size.
    batch_size: images or questions at a time; default: what fits the device.
    weights: what kernels are stored in; int8 takes less memory and time, and costs accuracy.
    cache_dtype: what keys and values are stored in; default: as they are computed.
  """

  seed: int = 0
  batch_size: int | None = None
  weights: str = 'full'
  cache_dtype: str | None = None

  def __post_init__(self) -> None:
    super().__post_init__()
    if not 0 <= self.seed < 2**32:
      raise InputError(f'seed is {self.seed}: expected 0 to 2^32 - 1')
    if self.batch_size is not None:
      check_positive('batch_size', self.batch_size)

  @property
  def sampling(self) -> Sampling:
    return Sampling(self.temperature, self.top_k, self.top_p)


@dataclasses.dataclass(frozen=True)
class ImageSettings(RequestSettings):
  """Settings of image generation. Raises InputError for one out of range.

  Beside them `temperature`, `top_k`, `top_p` (`Sampling`), `seed`, `batch_size`, `weights`, `cache_dtype`
  (`RequestSettings`).

  Attributes:
    num_images: images per prompt.
    cfg_weight: weight of classifier-free guidance, unconditional + cfg_weight (conditional - unconditional) logits;
      1: no guidance, 0: no prompt.
    window: codes that a pass of the decoder draws at most; auto: in float32 as many as pay, else 1. In float32 the
      image is the same.
    aspect: width:height of the images, from 1:2 to 2:1, for a model that was trained on them; the nearest grid of at
      most as many codes as the square has.
  """

  num_images: int = 4
  cfg_weight: float = 5.0
  window: int | str = AUTO
  aspect: str = SQUARE

  def __post_init__(self) -> None:
    super().__post_init__()
    check_positive('num_images', self.num_images)
    if not math.isfinite(self.cfg_weight) or self.cfg_weight < 0:
      raise InputError(f'cfg_weight is {self.cfg_weight}: expected 0 or more (1: no guidance)')
    if self.window != AUTO and (not isinstance(self.window, int) or self.window < 1):
      raise InputError(f'window is {self.window}: expected {AUTO}, or 1 or more')
    parse_aspect(self.aspect)


@dataclasses.dataclass(frozen=True)
class AnswerSettings(RequestSettings):
  """Settings of answers, greedy by default. Raises InputError for one out of range.

  Beside them `top_k`, `top_p` (`Sampling`), `seed`, `batch_size`, `weights`, `cache_dtype` (`RequestSettings`).

  Attributes:
    max_new_tokens: the longest answer, in tokens; less where the decoder's positions end before.
    tiles: parts that a large image is shown in beside the whole, at most; 1: none. Released models never saw any.
  """

  max_new_tokens: int = 512
  tiles: int = 1
  temperature: float = 0.0

  def __post_init__(self) -> None:
    super().__post_init__()
    check_positive('max_new_tokens', self.max_new_tokens)
    check_positive('tiles', self.tiles)


def decoder_for(janus: LoadedJanus, weights: str = 'full', cache_dtype: str | None = None) -> Decoder:
  """`make_decoder` computing in the dtype that the decoder's parameters are stored in, with the device's kernels."""
  config, params = janus.config, janus.params
  dtype = params['language_model']['final_norm']['scale'].dtype.name
  # XLA cannot split a TPU's kernel over the devices that the parameters lie on.
  requested = 'xla' if is_spread(params) else 'auto'
  kernel = choose(requested, platform_of(jax.devices()[0]), of_images(config, dtype))
  compute = ComputeConfig(dtype=dtype, attention=requested, vision_attention=kernel)
  return make_decoder(config, compute, params, weights, cache_dtype, janus.spread)


def request_keys(seed: int, rows: Sequence[Sequence[int]]) -> jax.Array:
  """key[B] of (seed, *indices) for each row."""
  return jnp.stack([row_key(seed, *indices) for indices in rows])


def check_positive(name: str, value: int) -> None:
  """Raises InputError, naming the setting."""
  if value < 1:
    raise InputError(f'{name} is {value}: expected 1 or more')


def check_tokenizer(config: JanusConfig, tokenizer: Tokenizer) -> None:
  """Raises InputError for a tokenizer of another checkpoint.

  It pads with an ordinary word, which would ruin guidance without a sign; and an id beyond the rows of the embedding
  table is embedded as NaN. A table may have more rows than the tokenizer has tokens.
  """
  placeholder = tokenizer.special.image_placeholder
  if placeholder != config.image_token_id:
    raise InputError(
      f'{tokenizer.path}: image placeholder is token {placeholder}: expected {config.image_token_id} as in the '
      'config; this is the tokenizer of another checkpoint'
    )
  rows = config.language_model.vocab_size
  if tokenizer.largest_id >= rows:
    raise InputError(
      f'{tokenizer.path}: has a token with id {tokenizer.largest_id}: expected ids below {rows}, the rows of the '
      "model's embedding table (vocab_size)"
    )
