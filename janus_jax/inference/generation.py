"""Draws pictures for prompts: whole requests, cut into batches. Re-exported: `janus_jax.generate_images`."""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from janus_jax.data import prompts as prompts_lib
from janus_jax.data.images import to_uint8
from janus_jax.data.prompts import Template, left_pad
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import InputError
from janus_jax.inference.batching import Group, bucket_length, device_batch_size, plan_batches
from janus_jax.inference.decoder import Decoder
from janus_jax.inference.image import generate_codes, guided_prompts, has_guidance
from janus_jax.inference.requests import check_positive, check_tokenizer, decoder_for, full_precision, request_keys
from janus_jax.inference.sampling import Sampling
from janus_jax.models.config import JanusConfig


@dataclasses.dataclass(frozen=True)
class GeneratedImage:
  """A picture.

  Attributes:
    prompt_index: into the prompts of the call.
    image_index: among the pictures of that prompt.
    codes: int32[P], what the decoder drew.
    pixels: uint8[size, size, 3].
  """

  prompt_index: int
  image_index: int
  codes: np.ndarray
  pixels: np.ndarray


def generation_rows(
  config: JanusConfig, prompts: Sequence[str], tokenizer: Tokenizer, template: Template
) -> list[list[int]]:
  """The ids of each prompt.

  Raises:
    InputError: a prompt is empty or does not leave room for its picture; a tokenizer of another checkpoint.
  """
  check_tokenizer(config, tokenizer)
  # The last code is drawn but never fed.
  room = config.language_model.max_positions - config.vq.num_tokens + 1
  rows = []
  for index, prompt in enumerate(prompts):
    try:
      rows.append(prompts_lib.generation_ids(tokenizer, template, prompt, max_length=room))
    except InputError as error:
      raise InputError(f'prompt {index + 1} of {len(prompts)}: {error}') from None
  return rows


@jax.jit
def _decode_codes(decoder: Decoder, codes: jax.Array) -> jax.Array:
  return decoder.method('decode_codes', codes)


def _pixels(decoder: Decoder, codes: jax.Array) -> np.ndarray:
  """int32[N, P] -> uint8[N, size, size, 3], one at a time: in a batch, rounding would depend on its size."""
  pixels = [_decode_codes(decoder, row[None]) for row in codes]
  return to_uint8(np.concatenate(pixels))


def _same_prompt(rows: Sequence[Sequence[int]], wanted: Sequence[tuple[int, int]]) -> list[Group]:
  """Pictures by what their prompt says, though it may be given twice."""
  members: dict[tuple[int, ...], list[int]] = {}
  for index, (prompt, _) in enumerate(wanted):
    members.setdefault(tuple(rows[prompt]), []).append(index)
  return [Group(tuple(found), shared=bucket_length(len(ids))) for ids, found in members.items()]


def stream_images(
  decoder: Decoder,
  rows: Sequence[Sequence[int]],
  wanted: Sequence[tuple[int, int]],
  *,
  pad_id: int,
  cfg_weight: float = 5.0,
  temperature: float = 1.0,
  top_k: int = 0,
  seed: int = 0,
  batch_size: int | None = None,
) -> Iterator[GeneratedImage]:
  """Draws pictures, batch by batch.

  A picture depends on its prompt, its indices and the settings. In float32 it does not depend on its batch; in bfloat16
  logits are rounded differently in batches of another size, and some codes with them (`generate_images`).

  Args:
    decoder: weights (`decoder_for`).
    rows: ids of the prompts (`generation_rows`).
    wanted: (prompt index, image index) of each picture. Those of one prompt share it, and prompts of like length run
      together, so the order may change.
    pad_id: of the tokenizer.
    cfg_weight: of classifier-free guidance: unconditional + cfg_weight (conditional - unconditional) logits. 1 means
      none; 0 leaves the prompt out.
    temperature: divides the logits; 0 takes the most likely code.
    top_k: only the k most likely codes; 0 keeps all.
    seed: 0 to 2^32 - 1.
    batch_size: pictures at a time; None takes what fits the device.

  Raises:
    InputError: a setting out of range.
  """
  config, sampling = decoder.config, Sampling(temperature, top_k)
  if not np.isfinite(cfg_weight) or cfg_weight < 0:
    raise InputError(f'cfg_weight is {cfg_weight}: expected 0 or more (1: no guidance)')
  guided = has_guidance(cfg_weight)
  guidance = float(cfg_weight) if guided else 1.0  # One program for both weights that leave one kind of row.
  groups, P = _same_prompt(rows, wanted), config.vq.num_tokens
  if batch_size is None:
    sizes = {'rows': 2 if guided else 1, 'slots': max((group.shared for group in groups), default=0) + P}
    batch_size = device_batch_size(config.language_model, **sizes, dtype=decoder.cache_dtype)
  check_positive('batch_size', batch_size)
  for batch in plan_batches(groups, batch_size, output=P):
    pairs = [wanted[i] for i in batch.rows]
    ids = [rows[prompt] for prompt, _ in pairs[:: batch.share]]
    length = bucket_length(len(ids[0]))
    ids = guided_prompts(ids, [prompts_lib.unconditional_ids(row, pad_id) for row in ids], cfg_weight)
    tokens, mask = left_pad(ids, pad_id, length)
    with full_precision(decoder):
      codes = generate_codes(decoder, tokens, mask, request_keys(seed, pairs), guidance=guidance, sampling=sampling)
      codes = np.asarray(codes)[list(batch.places.values())]
      pixels = _pixels(decoder, codes)
    for index, row, picture in zip(batch.places, codes, pixels):
      yield GeneratedImage(*wanted[index], row, picture)


def generate_images(
  config: JanusConfig,
  params: dict,
  prompts: Sequence[str],
  *,
  tokenizer: Tokenizer,
  template: Template,
  num_images: int = 4,
  cfg_weight: float = 5.0,
  temperature: float = 1.0,
  top_k: int = 0,
  seed: int = 0,
  batch_size: int | None = None,
  weights: str = 'full',
  cache_dtype: str | None = None,
) -> list[list[GeneratedImage]]:
  """Draws `num_images` pictures for each prompt.

  What is random in a picture is decided by (seed, prompt index, image index) alone. In float32 so is the picture: of
  64, none differed between batch sizes 1 and 64. In bfloat16 rounding depends on the batch size: 6 of 64 differed.

  Args:
    config: from `load`.
    params: from `load`; what they are stored in is computed in.
    prompts: descriptions.
    tokenizer: from `load_tokenizer`.
    template: from `load_tokenizer`.
    num_images: per prompt.
    cfg_weight: of classifier-free guidance: unconditional + cfg_weight (conditional - unconditional) logits. 1 means
      none; 0 leaves the prompt out.
    temperature: divides the logits; 0 takes the most likely code.
    top_k: only the k most likely codes; 0 keeps all.
    seed: 0 to 2^32 - 1.
    batch_size: pictures at a time; None takes what fits the device.
    weights: what kernels are stored in, one of `inference.decoder.WEIGHTS`; int8 ones change results a little.
    cache_dtype: what keys and values are stored in, one of `inference.cache.CACHE_DTYPES`; None: as they are computed.

  Returns:
    per prompt, its pictures.

  Raises:
    InputError: an empty or too long prompt, a setting out of range, a tokenizer of another checkpoint.
  """
  check_positive('num_images', num_images)
  rows = generation_rows(config, prompts, tokenizer, template)
  wanted = [(prompt, image) for prompt in range(len(prompts)) for image in range(num_images)]
  settings = {'cfg_weight': cfg_weight, 'temperature': temperature, 'top_k': top_k, 'seed': seed}
  stream = stream_images(
    decoder_for(config, params, weights, cache_dtype),
    rows,
    wanted,
    pad_id=tokenizer.special.pad,
    batch_size=batch_size,
    **settings,
  )
  found = {(image.prompt_index, image.image_index): image for image in stream}
  return [[found[prompt, image] for image in range(num_images)] for prompt in range(len(prompts))]
