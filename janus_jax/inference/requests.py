"""Checks and settings that all requests share, for images and for answers."""

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from janus_jax.data.prompts import Template
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import InputError
from janus_jax.inference.decoder import Decoder, is_spread, make_decoder
from janus_jax.inference.sampling import Sampling, row_key
from janus_jax.models.attention_choice import choose, of_images, platform_of
from janus_jax.models.config import ComputeConfig, JanusConfig


@dataclasses.dataclass(frozen=True)
class LoadedJanus:
  """A checkpoint opened for use (`janus_jax.load`).

  Attributes:
    config: architecture.
    params: parameter tree for `models.janus.Janus(config).apply({'params': params}, ...)`.
    tokenizer: of this checkpoint, None where it has none. Another one is accepted by the model and ruins what it makes.
    template: names that this checkpoint was taught for who speaks, None without a tokenizer.
  """

  config: JanusConfig
  params: dict[str, Any]
  tokenizer: Tokenizer | None = None
  template: Template | None = None

  def tokenizer_and_template(self) -> tuple[Tokenizer, Template]:
    """Returns both. Raises InputError where there are none, or they are another checkpoint's."""
    if self.tokenizer is None or self.template is None:
      raise InputError('the checkpoint has no tokenizer.json: expected one to read prompts and questions with')
    check_tokenizer(self.config, self.tokenizer)
    return self.tokenizer, self.template


@dataclasses.dataclass(frozen=True)
class _Decoding:
  """Settings of decoding, whatever is decoded.

  Attributes:
    seed: 0 to 2^32 - 1.
    batch_size: images or questions at a time; None takes what fits the device.
    weights: what kernels are stored in, one of `inference.decoder.WEIGHTS`; int8 ones change results a little.
    cache_dtype: what keys and values are stored in, one of `inference.cache.CACHE_DTYPES`; None: as they are computed.
  """

  seed: int = 0
  batch_size: int | None = None
  weights: str = 'full'
  cache_dtype: str | None = None

  def __post_init__(self) -> None:
    if not 0 <= self.seed < 2**32:
      raise InputError(f'seed is {self.seed}: expected 0 to 2^32 - 1')
    if self.batch_size is not None:
      check_positive('batch_size', self.batch_size)


@dataclasses.dataclass(frozen=True)
class ImageSettings(_Decoding):
  """Settings of image generation, beside those of `_Decoding`.

  Attributes:
    num_images: per prompt.
    cfg_weight: of classifier-free guidance: unconditional + cfg_weight (conditional - unconditional) logits. 1 means
      none; 0 leaves the prompt out.
    temperature: divides the logits; 0 takes the most likely code.
    top_k: only the k most likely codes; 0 keeps all.

  Raises:
    InputError: a setting out of range.
  """

  num_images: int = 4
  cfg_weight: float = 5.0
  temperature: float = 1.0
  top_k: int = 0

  def __post_init__(self) -> None:
    super().__post_init__()
    check_positive('num_images', self.num_images)
    if not math.isfinite(self.cfg_weight) or self.cfg_weight < 0:
      raise InputError(f'cfg_weight is {self.cfg_weight}: expected 0 or more (1: no guidance)')
    _ = self.sampling  # Checks its own fields.

  @property
  def sampling(self) -> Sampling:
    return Sampling(self.temperature, self.top_k)


@dataclasses.dataclass(frozen=True)
class AnswerSettings(_Decoding):
  """Settings of answers, beside those of `_Decoding`.

  Attributes:
    max_new_tokens: the longest answer; less where the decoder's positions end before.
    temperature: divides the logits; 0 takes the most likely token.
    top_p: only the most likely tokens that together reach this probability.

  Raises:
    InputError: a setting out of range.
  """

  max_new_tokens: int = 512
  temperature: float = 0.0
  top_p: float = 1.0

  def __post_init__(self) -> None:
    super().__post_init__()
    check_positive('max_new_tokens', self.max_new_tokens)
    _ = self.sampling  # Checks its own fields.

  @property
  def sampling(self) -> Sampling:
    return Sampling(self.temperature, top_p=self.top_p)


def decoder_for(janus: LoadedJanus, weights: str = 'full', cache_dtype: str | None = None) -> Decoder:
  """`make_decoder` computing in the dtype that the decoder's parameters are stored in, with the device's kernels."""
  config, params = janus.config, janus.params
  dtype = params['language_model']['final_norm']['scale'].dtype.name
  # XLA cannot split a TPU's kernel over the devices that the parameters lie on.
  requested = 'xla' if is_spread(params) else 'auto'
  kernel = choose(requested, platform_of(jax.devices()[0]), of_images(config, dtype))
  compute = ComputeConfig(dtype=dtype, attention=requested, vision_attention=kernel)
  return make_decoder(config, compute, params, weights, cache_dtype)


def full_precision(decoder: Decoder) -> contextlib.AbstractContextManager:
  """Context to run a decoder in. Accelerators round the inputs of float32 products unless told not to."""
  exact = decoder.compute.dtype == 'float32'
  return jax.default_matmul_precision('highest') if exact else contextlib.nullcontext()


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
