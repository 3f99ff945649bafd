"""Checks and settings that all requests share, for images and for answers."""

import contextlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import InputError
from janus_jax.inference.decoder import Decoder, is_spread, make_decoder
from janus_jax.inference.sampling import row_key
from janus_jax.models.attention_choice import choose, of_images, platform_of
from janus_jax.models.config import ComputeConfig, JanusConfig


def decoder_for(config: JanusConfig, params: dict, weights: str = 'full', cache_dtype: str | None = None) -> Decoder:
  """`make_decoder` computing in the dtype that the decoder's parameters are stored in, with the device's kernels."""
  dtype = params['language_model']['final_norm']['scale'].dtype.name
  # XLA cannot split a TPU's kernel over the devices that the parameters lie on.
  requested = 'xla' if is_spread(params) else 'auto'
  kernel = choose(requested, platform_of(jax.devices()[0]), of_images(config, dtype))
  compute = ComputeConfig(dtype=dtype, attention=requested, vision_attention=kernel)
  return make_decoder(config, compute, params, weights, cache_dtype)


def full_precision(decoder: Decoder) -> contextlib.AbstractContextManager:
  """Where a float32 decoder runs: accelerators round the inputs of float32 products unless told not to."""
  exact = decoder.compute.dtype == 'float32'
  return jax.default_matmul_precision('highest') if exact else contextlib.nullcontext()


def request_keys(seed: int, rows: Sequence[Sequence[int]]) -> jax.Array:
  """key[B] of (seed, *indices) for each row; InputError where jax would silently wrap the seed."""
  if not 0 <= seed < 2**32:
    raise InputError(f'seed is {seed}: expected 0 to 2^32 - 1')
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
