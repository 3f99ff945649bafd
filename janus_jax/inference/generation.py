"""Generates images for prompts: whole requests, cut into batches. Re-exported: `janus_jax.generate_images`."""

import collections
import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from janus_jax.data import prompts as prompts_lib
from janus_jax.data.aspects import SQUARE, Grid, requested_grid
from janus_jax.data.images import to_uint8
from janus_jax.data.prompts import Template, left_pad
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import InputError
from janus_jax.inference.batching import Group, bucket_length, device_batch_size, plan_batches
from janus_jax.inference.decoder import Decoder
from janus_jax.inference.drawing import Window, generate_codes, guided_prompts, has_guidance
from janus_jax.inference.requests import ImageSettings, LoadedJanus, decoder_for, request_keys
from janus_jax.inference.windows import AUTO, check_window, choose_window
from janus_jax.models.config import JanusConfig


@dataclasses.dataclass(frozen=True)
class GeneratedImage:
  """A generated image, by the index of its prompt and its index among the images of that."""

  prompt_index: int
  image_index: int
  codes: np.ndarray  # int32[P], sampled by the decoder.
  pixels: np.ndarray  # uint8[h, w, 3].

  @property
  def image(self) -> Image.Image:
    """The pixels for Pillow: `.image.save('cube.png')`."""
    return Image.fromarray(self.pixels)


def prompt_rows(
  config: JanusConfig, prompts: Sequence[str], tokenizer: Tokenizer, template: Template, aspect: str = SQUARE
) -> list[list[int]]:
  """The ids of each prompt, for images of an aspect (`ImageSettings`).

  Raises InputError for one string in place of a list, a prompt that is empty or too long to leave room for its image.
  """
  if isinstance(prompts, str):
    raise InputError(f'prompts is the string {prompts[:40]!r}: expected a list of strings')
  # The last code is sampled but never fed.
  grid = requested_grid(aspect, config.vq.grid)
  room = config.language_model.max_positions - math.prod(grid) + 1
  rows = []
  for number, prompt in enumerate(prompts, start=1):
    try:
      rows.append(prompts_lib.generation_ids(tokenizer, template, prompt, max_length=room, grid=grid))
    except InputError as error:
      raise InputError(f'prompt {number} of {len(prompts)}: {error}') from None
  return rows


def log_grid(config: JanusConfig, aspect: str) -> Grid:
  """The grid of codes of images of an aspect. Logs it, unless the square is asked for."""
  rows, columns = grid = requested_grid(aspect, config.vq.grid)
  if aspect != SQUARE:
    pixels = config.vq.downsampling
    size = f'{pixels * columns} x {pixels * rows}'
    logging.info('aspect %s: %d rows of %d codes, images of %s pixels', aspect, rows, columns, size)
  return grid


@functools.partial(jax.jit, static_argnames='grid')
def _decode_codes(decoder: Decoder, codes: jax.Array, grid: Grid) -> jax.Array:
  return decoder.method('decode_codes', codes, grid)


def stream_images(
  decoder: Decoder,
  rows: Sequence[Sequence[int]],
  wanted: Sequence[tuple[int, int]],
  pad_id: int,
  settings: ImageSettings,
  on_pass: Callable[[jax.Array], None] | None = None,
) -> Iterator[GeneratedImage]:
  """Generates images, batch by batch.

  An image depends on its prompt, its indices and the settings. In float32 it does not depend on its batch; in bfloat16
  logits are rounded differently in batches of another size, and some codes with them (`generate_images`).

  Args:
    decoder: weights.
    rows: ids of the prompts (`prompt_rows` for the aspect of the settings).
    wanted: (prompt index, image index) of each image. Those of one prompt share it, and prompts of like length run
      together, so the order may change.
    pad_id: the tokenizer's.
    settings: all but `num_images`, `weights` and `cache_dtype`, which `wanted` and `decoder` have settled.
    on_pass: as of `generate_codes`, for each batch.
  """
  grid = requested_grid(settings.aspect, decoder.config.vq.grid)
  P, guided = math.prod(grid), has_guidance(settings.cfg_weight)
  check_window(P, settings.window)
  members = collections.defaultdict(list)
  for index, (prompt, _) in enumerate(wanted):
    members[tuple(rows[prompt])].append(index)  # A prompt may be given twice.
  groups = [Group(tuple(found), shared=bucket_length(len(ids))) for ids, found in members.items()]
  batch_size = settings.batch_size or device_batch_size(decoder, groups, P, rows=2 if guided else 1)
  guidance = float(settings.cfg_weight) if guided else 1.0  # One program for both weights that need one kind of row.
  batches = plan_batches(groups, batch_size, output=P)
  how = {'guidance': guidance, 'sampling': settings.sampling}
  choose = functools.cache(functools.partial(choose_window, decoder, **how, batches=len(batches)))
  for batch in batches:
    pairs = [wanted[i] for i in batch.rows]
    ids = [rows[prompt] for prompt, _ in pairs[:: batch.rows_per_prompt]]
    length = bucket_length(len(ids[0]))
    ids = guided_prompts(ids, [prompts_lib.unconditional_ids(row, pad_id) for row in ids], settings.cfg_weight)
    keys = request_keys(settings.seed, pairs)
    tokens, mask = left_pad(ids, pad_id, length)
    shape = len(keys) * (2 if guided else 1), length, P
    window = choose(shape) if settings.window == AUTO else Window(settings.window)
    drawn = generate_codes(decoder, tokens, mask, keys, **how, window=window, on_pass=on_pass, num_codes=P)
    codes = np.asarray(drawn.codes)
    # One at a time: in a batch, rounding would depend on its size.
    pixels = {index: _decode_codes(decoder, codes[row, None], grid) for index, row in batch.row_of.items()}
    for index, row in batch.row_of.items():
      yield GeneratedImage(*wanted[index], codes[row], to_uint8(pixels[index][0]))


def generate_images(
  janus: LoadedJanus, prompts: Sequence[str], settings: ImageSettings | None = None, **changes: Any
) -> list[list[GeneratedImage]]:
  """Generates images for each prompt, a list of them per prompt.

  The seed, the prompt's index and the image's index decide what is random in an image. In float32 they decide the
  image: of 64, none differed between batch sizes 1 and 64. In bfloat16 rounding depends on the batch size: 6 of 64 did.

  Args:
    janus: from `janus_jax.load`; computes in what its parameters are stored in.
    prompts: descriptions.
    settings: None takes the defaults, for a training workdir those of its config.
    **changes: fields of `ImageSettings` that differ from `settings`.

  Raises:
    InputError: an empty or too long prompt, a setting out of range, a tokenizer of another checkpoint or none.
  """
  settings = dataclasses.replace(settings or ImageSettings(**janus.sampling), **changes)
  tokenizer, template = janus.tokenizer_and_template()
  rows = prompt_rows(janus.config, prompts, tokenizer, template, settings.aspect)
  log_grid(janus.config, settings.aspect)
  wanted = [(prompt, image) for prompt in range(len(prompts)) for image in range(settings.num_images)]
  decoder = decoder_for(janus, settings.weights, settings.cache_dtype)
  stream = stream_images(decoder, rows, wanted, tokenizer.special.pad, settings)
  found = {(image.prompt_index, image.image_index): image for image in stream}
  return [[found[prompt, image] for image in range(settings.num_images)] for prompt in range(len(prompts))]
