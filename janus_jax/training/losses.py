"""Cross-entropies of a packed batch, one sum and one weight per kind of example (Janus paper section 3.3).

Text is predicted by `lm_head`, codes by `gen_head`; begin-of-image predicts code 0. Logits over the vocabulary exist
for a few positions at a time only.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from janus_jax.data.examples import CODE, GENERATION_LOSS, IMAGE, TEXT, TEXT_LOSS, UNDERSTANDING_LOSS
from janus_jax.models.config import ComputeConfig, JanusConfig
from janus_jax.models.janus import Janus

Batch = dict[str, jax.Array]

_LOSSES = (UNDERSTANDING_LOSS, TEXT_LOSS, GENERATION_LOSS)


@flax.struct.dataclass
class KindLosses:
  """Per kind, in the order of `data.examples.KINDS`.

  Attributes:
    sums: float32[3], summed cross-entropy in nats.
    weights: float32[3], how many targets that was (their summed weights).
  """

  sums: jax.Array
  weights: jax.Array


def kind_weights(batch: Batch) -> jax.Array:
  """float32[3]: the summed weights of the targets of each kind."""
  return jnp.stack([jnp.sum(batch['weights'] * (batch['losses'] == loss)) for loss in _LOSSES])


def cross_entropy(
  logits_of: Callable[[jax.Array], jax.Array], hidden: jax.Array, targets: jax.Array, chunk: int
) -> jax.Array:
  """-log softmax(logits)[target], `chunk` positions of each row at a time; the backward pass computes logits again.

  Args:
    logits_of: [B, t, D] -> float32[B, t, V].
    hidden: [B, T, D].
    targets: int32[B, T].
    chunk: positions of a row whose logits exist together.

  Returns:
    float32[B, T].
  """

  def losses(hidden: jax.Array, targets: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits_of(hidden), targets)

  T = targets.shape[1]
  if chunk >= T:
    return losses(hidden, targets)
  chunks = -(-T // chunk)
  padding = chunks * chunk - T
  hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
  targets = jnp.pad(targets, ((0, 0), (0, padding)))
  # [B, T, ...] -> [chunks, B, t, ...]: every chunks-th position together, so that each chunk is spread over the mesh as
  # rows and positions are.
  parts = [jnp.moveaxis(x.reshape(len(x), chunk, chunks, *x.shape[2:]), 2, 0) for x in (hidden, targets)]
  found = jax.lax.map(lambda part: jax.checkpoint(losses)(*part), tuple(parts))
  return jnp.moveaxis(found, 0, 2).reshape(len(targets), -1)[:, :T]


Encode = Callable[[jax.Array], jax.Array]  # uint8[B, size, size, 3] -> int32[B, P].


def with_codes(batch: Batch, encode: Encode) -> Batch:
  """The batch with the codes of its `generation_pixels` in `tokens` and `targets`, which hold places among them.

  Args:
    batch: as `data.packing.make_batch` gives it; returned as it is where codes were precomputed.
    encode: the VQ encoder.
  """
  if 'generation_pixels' not in batch or not batch['generation_pixels'].shape[1]:
    return batch
  codes = _row_codes(batch['generation_pixels'], encode)

  def looked_up(places: jax.Array, is_code: jax.Array) -> jax.Array:
    return jnp.where(is_code, jnp.take_along_axis(codes, jnp.where(is_code, places, 0), axis=1), places)

  tokens = looked_up(batch['tokens'], batch['kinds'] == CODE)
  targets = looked_up(batch['targets'], batch['losses'] == GENERATION_LOSS)
  return {**batch, 'tokens': tokens, 'targets': targets}


def with_understood_codes(batch: Batch, encode: Encode) -> Batch:
  """The batch as a model with `shared_encoder` sees it: codes where the images of questions stand, and no pixels."""
  pixels, kinds = batch['pixels'], batch['kinds']
  if not pixels.shape[1]:
    return batch
  is_image = kinds == IMAGE
  codes = jnp.take_along_axis(_row_codes(pixels, encode), _places(is_image), axis=1, mode='fill')
  tokens, kinds = jnp.where(is_image, codes, batch['tokens']), jnp.where(is_image, CODE, kinds)
  return {**batch, 'tokens': tokens, 'kinds': kinds, 'pixels': pixels[:, :0]}


def _row_codes(pixels: jax.Array, encode: Encode) -> jax.Array:
  """uint8[B, G, size, size, 3] -> int32[B, G * P], without gradient."""
  # One image of each row at a time: the encoder's float32 activations are the largest arrays of a step (0.3 GB each at
  # 384 px), and would decide how much memory it needs.
  codes = jax.lax.stop_gradient(jax.lax.map(encode, jnp.moveaxis(pixels, 1, 0)))
  return jnp.moveaxis(codes, 0, 1).reshape(len(pixels), -1)


def _places(is_image: jax.Array) -> jax.Array:
  """int32[B, T]: at a position of an image, its number among those of its row."""
  return jnp.maximum(jnp.cumsum(is_image, axis=1) - 1, 0)


def embed(apply: Callable[..., Any], batch: Batch) -> jax.Array:
  """[B, T, D]: text, image features and codes, each where the batch says it stands."""
  tokens, kinds = batch['tokens'], batch['kinds']
  of_kind = lambda kind: jnp.where(kinds == kind, tokens, 0)  # noqa: E731
  x = apply(of_kind(TEXT), method='embed_text')
  x = jnp.where((kinds == CODE)[..., None], apply(of_kind(CODE), method='embed_codes'), x)
  B, J = batch['pixels'].shape[:2]
  if J == 0:
    return x
  features = apply(batch['pixels'].reshape(B * J, *batch['pixels'].shape[2:]), method='embed_images')
  features = features.reshape(B, -1, features.shape[-1])
  is_image = kinds == IMAGE
  placed = jnp.take_along_axis(features, _places(is_image)[..., None], axis=1, mode='fill', fill_value=jnp.nan)
  return jnp.where(is_image[..., None], placed, x)


def batch_losses(params: Any, batch: Batch, config: JanusConfig, compute: ComputeConfig, chunk: int) -> KindLosses:
  """The losses of one packed batch.

  Args:
    params: the model's tree.
    batch: arrays of `data.packing.make_batch`.
    config: architecture.
    compute: dtypes, rematerialisation, kernels.
    chunk: see `cross_entropy`.
  """
  model = Janus(config, compute)

  def apply(*args: Any, method: str) -> Any:
    return model.apply({'params': params}, *args, method=method)

  encode = functools.partial(apply, method='encode_pixels')
  batch = with_codes(batch, encode)
  if config.shared_encoder:
    batch = with_understood_codes(batch, encode)
  hidden, _ = apply(embed(apply, batch), batch['positions'], batch['segments'], method='hidden')
  targets, losses = batch['targets'], batch['losses']
  is_code = losses == GENERATION_LOSS
  text = cross_entropy(lambda h: apply(h, method='text_logits'), hidden, jnp.where(is_code, 0, targets), chunk)
  codes = cross_entropy(lambda h: apply(h, method='image_logits'), hidden, jnp.where(is_code, targets, 0), chunk)
  weighted = batch['weights'] * jnp.where(is_code, codes, text)
  sums = jnp.stack([jnp.sum(weighted * (losses == loss)) for loss in _LOSSES])
  return KindLosses(sums, kind_weights(batch))
