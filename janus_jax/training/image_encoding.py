"""The images of a batch, encoded: codes where one is generated, features where one is understood.

Both encoders run once a step, before its microbatches, over the images of the whole batch. The rows of a stream share
the slots for them (data/packing.py): N streams of R rows each, with J images to understand and G to generate. So a
batch does not depend on the number of microbatches, and no slots are rounded up for each of them. Little crosses from
one part of the step to the other: 1.2 MB of features an image in the released models, 2 kB of codes.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from janus_jax.data.examples import CODE, GENERATION_LOSS, IMAGE
from janus_jax.models.janus import Janus
from janus_jax.training.step_config import StepConfig

Batch = dict[str, jax.Array]
Encode = Callable[[jax.Array], jax.Array]  # uint8[I, size, size, 3] -> [I, P, ...].

PIXELS = ('pixels', 'generation_pixels')
# The last of several groups of images may leave this fraction of all slots empty.
MAX_PADDING = 1 / 16


def encode_images(encode: Encode, pixels: jax.Array, at_once: int) -> jax.Array:
  """uint8[N, J, size, size, 3] -> [N, J * P, ...]: encodes the images of every stream, `at_once` at most at a time.

  Where one group does not hold them all, they are encoded again in the backward pass.
  """
  N, J = pixels.shape[:2]
  size = next(size for size in range(min(at_once, J), 0, -1) if -J % size <= J * MAX_PADDING)
  if size == J:
    encoded = encode(pixels.reshape(N * J, *pixels.shape[2:]))
    return encoded.reshape(N, -1, *encoded.shape[2:])

  @jax.checkpoint
  def encode_group(group: jax.Array) -> jax.Array:
    encoded = encode(group.reshape(N * size, *group.shape[2:]))
    return encoded.reshape(N, size, *encoded.shape[1:])

  groups = jnp.pad(pixels, [(0, 0), (0, -J % size), (0, 0), (0, 0), (0, 0)])
  groups = jnp.moveaxis(groups.reshape(N, -1, size, *pixels.shape[2:]), 1, 0)
  encoded = jnp.moveaxis(jax.lax.map(encode_group, groups), 0, 1)  # [N, groups, size, P, ...].
  encoded = encoded.reshape(N, J + -J % size, *encoded.shape[3:])[:, :J]
  return encoded.reshape(N, -1, *encoded.shape[3:])


def with_codes(batch: Batch, encode: Encode, at_once: int = 1) -> Batch:
  """The batch with the codes of its `generation_pixels` in `tokens` and `targets`, which hold indices of them.

  A batch whose codes were precomputed stays as it is. `encode` is the VQ encoder; `at_once`: see `encode_images`.
  """
  if 'generation_pixels' not in batch:
    return batch
  batch, pixels = _without(batch, 'generation_pixels')
  if not pixels.shape[1]:
    return batch
  codes = jax.lax.stop_gradient(encode_images(encode, pixels, at_once))

  def codes_at(indices: jax.Array, is_code: jax.Array) -> jax.Array:
    return jnp.where(is_code, take(codes, jnp.where(is_code, indices, 0)), indices)

  tokens = codes_at(batch['tokens'], batch['token_types'] == CODE)
  targets = codes_at(batch['targets'], batch['loss_ids'] == GENERATION_LOSS)
  return {**batch, 'tokens': tokens, 'targets': targets}


def with_understood_codes(batch: Batch, encode: Encode, at_once: int = 1) -> Batch:
  """The batch as a model with `shared_encoder` sees it: codes where the images of questions stand, and no pixels."""
  batch, pixels = _without(batch, 'pixels')
  if not pixels.shape[1]:
    return batch
  codes = jax.lax.stop_gradient(encode_images(encode, pixels, at_once))
  is_image = batch['token_types'] == IMAGE
  tokens = jnp.where(is_image, take(codes, image_places(batch['token_types'], len(pixels))), batch['tokens'])
  return {**batch, 'tokens': tokens, 'token_types': jnp.where(is_image, CODE, batch['token_types'])}


def image_places(token_types: jax.Array, num_streams: int) -> jax.Array:
  """int32[B, T]: index among its stream's features of the one at a position. Images lie in the order of rows."""
  is_image = (token_types == IMAGE).reshape(num_streams, -1)
  return jnp.maximum(jnp.cumsum(is_image, axis=1) - 1, 0).reshape(token_types.shape)


def take(encoded: jax.Array, indices: jax.Array) -> jax.Array:
  """[N, J * P, ...] at int32[B, T], which counts within each of the N streams -> [B, T, ...].

  NaN, or the least integer, for an index out of range.
  """
  by_stream = indices.reshape(len(encoded), -1, *(1,) * (encoded.ndim - 2))
  found = jnp.take_along_axis(encoded, by_stream, axis=1, mode='fill')
  return found.reshape(*indices.shape, *encoded.shape[2:])


def resolve_codes(params: Any, batch: Batch, config: StepConfig) -> Batch:
  """The batch with every code where it belongs; `pixels` are left where SigLIP is to see them.

  As many images are encoded at once as a microbatch has rows: the VQ encoder's float32 activations are the largest
  arrays of a step (0.3 GB an image at 384 px).
  """
  encode = _encoder(params, config, 'encode_pixels')

  def at_once(name: str) -> int:
    return max(len(batch['tokens']) // len(batch[name]) // config.accumulation, 1) if name in batch else 1

  batch = with_codes(batch, encode, at_once('generation_pixels'))
  return with_understood_codes(batch, encode, at_once('pixels')) if config.model.shared_encoder else batch


def image_features(params: Any, pixels: jax.Array, config: StepConfig) -> jax.Array:
  """uint8[N, J, size, size, 3] -> [N, J * P, Dv], by SigLIP; a group of J / accumulation images at a time."""
  return encode_images(_encoder(params, config, 'encode_images'), pixels, -(-pixels.shape[1] // config.accumulation))


def _encoder(params: Any, config: StepConfig, method: str) -> Encode:
  return functools.partial(Janus(config.model, config.compute).apply, {'params': params}, method=method)


def split_pixels(batch: Batch) -> tuple[Batch, jax.Array | None]:
  """The rows of a batch, with `image_places`, and the pixels that SigLIP sees, of which there may be none (None)."""
  if 'pixels' not in batch:
    return batch, None
  rows, pixels = _without(batch, 'pixels')
  if not pixels.shape[1]:
    return rows, None
  return {**rows, 'image_places': image_places(rows['token_types'], len(pixels))}, pixels


def _without(batch: Batch, name: str) -> tuple[Batch, jax.Array]:
  return {key: value for key, value in batch.items() if key != name}, batch[name]
