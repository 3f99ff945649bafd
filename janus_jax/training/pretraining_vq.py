"""Short pretraining of the VQ tokenizer from nothing: reconstruction, codebook and commitment losses.

The objective of LlamaGen's `vq_loss.py` and DeepSeek's `vq_model.py` without the adversarial and perceptual terms,
which need networks of their own: mean (x̂ - x)² + mean (e - sg(z))² + 0.25 mean (sg(e) - z)², z and e of unit length.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from janus_jax.errors import InputError
from janus_jax.models.config import ComputeConfig, JanusConfig
from janus_jax.models.janus import normalize_pixels
from janus_jax.models.vq import VQ, l2_normalize
from janus_jax.training.pretraining import Optimization, Progress, draw_rows, no_progress

# A row chosen less often than this share of its fair part is dead.
DEAD_SHARE = 0.02


@dataclasses.dataclass(frozen=True)
class Quantisation:
  """How the codebook comes to be.

  Attributes:
    commitment_weight: of the commitment loss.
    unquantised_steps: first steps in which the decoder sees the encoder's outputs themselves; the codebook is then
      picked from outputs. Among the steps.
    restart_every: steps between replacements of dead rows by encoder outputs.
    restart_until: share of the steps after which no row is replaced any more.
  """

  commitment_weight: float = 0.25
  unquantised_steps: int = 100
  restart_every: int = 50
  restart_until: float = 0.7


@flax.struct.dataclass
class VQLosses:
  """float32 scalars, unweighted; see the formula at the top."""

  reconstruction: jax.Array
  codebook: jax.Array
  commitment: jax.Array

  def total(self, quantised: jax.Array | float, commitment_weight: float) -> jax.Array:
    return self.reconstruction + quantised * (self.codebook + commitment_weight * self.commitment)


def vq_losses(vq: VQ, pixels: jax.Array, quantised: jax.Array | float) -> tuple[VQLosses, jax.Array, jax.Array]:
  """The losses of a bound tokenizer.

  Args:
    vq: bound, or the first argument in `nn.apply`.
    pixels: float32[B, size, size, 3] in [-1, 1].
    quantised: 1.0, or 0.0 to hand the decoder the encoder's outputs unquantised.

  Returns:
    losses, codes int32[B, P], encoder outputs float32[B, P, code_dim].
  """
  z = vq.latents(pixels)
  codes = vq.nearest(z)
  rows = l2_normalize(vq.codebook)[codes]
  stop = jax.lax.stop_gradient
  decoded = vq.decode_latents(z + quantised * stop(rows - z))
  losses = VQLosses(
    reconstruction=jnp.mean(jnp.square(decoded - pixels)),
    codebook=jnp.mean(jnp.square(rows - stop(z))),
    commitment=jnp.mean(jnp.square(stop(rows) - z)),
  )
  return losses, codes, z


def spread_picks(
  points: np.ndarray, number: int, rng: np.random.Generator, kept: np.ndarray | None = None
) -> np.ndarray:
  """Points far from each other and from `kept`, drawn as k-means++ draws its seeds.

  Args:
    points: unit vectors float32[n, d].
    number: how many to pick; more than there are different points gives repeats.
    rng: where the draws come from.
    kept: unit vectors float32[k, d] to keep away from, or None.

  Returns:
    float32[number, d].
  """
  if kept is None or not len(kept):
    distances = np.ones(len(points))
  else:
    distances = np.maximum(2 - 2 * (points @ kept.T).max(axis=1), 0).astype(np.float64)
  picks = np.empty((number, points.shape[1]), np.float32)
  for i in range(number):
    weights = distances + 1e-12
    picks[i] = points[rng.choice(len(points), p=weights / weights.sum())]
    distances = np.minimum(distances, np.square(points - picks[i]).sum(axis=1))
  return picks


def restart_dead(codebook: np.ndarray, counts: np.ndarray, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Replaces rows that were hardly chosen by encoder outputs: [K, d], int[K], unit vectors [n, d] -> [K, d]."""
  dead = counts < DEAD_SHARE * counts.sum() / len(counts)
  rows = codebook / np.linalg.norm(codebook, axis=1, keepdims=True)
  rows[dead] = spread_picks(points, int(dead.sum()), rng, rows[~dead])
  return np.where(dead[:, None], rows, codebook)


def _train_step(config: JanusConfig, optimization: Optimization, quantisation: Quantisation, compute: ComputeConfig):
  model, optimizer = VQ(config.vq, compute), optimization.optimizer()

  def objective(params, pixels, quantised):
    losses, codes, z = nn.apply(vq_losses, model)({'params': params}, pixels, quantised)
    return losses.total(quantised, quantisation.commitment_weight), (losses, codes, z)

  @jax.jit
  def step(params, state, counts, images, quantised):
    gradients, (losses, codes, z) = jax.grad(objective, has_aux=True)(params, normalize_pixels(images), quantised)
    updates, state = optimizer.update(gradients, state, params)
    counts = counts.at[codes.reshape(-1)].add(1)
    return optax.apply_updates(params, updates), state, counts, losses, z.reshape(-1, z.shape[-1])

  return step, optimizer


def pretrain_vq(
  config: JanusConfig,
  compute: ComputeConfig,
  params: Any,
  images: np.ndarray,
  optimization: Optimization,
  quantisation: Quantisation,
  seed: int,
  progress: Progress = no_progress,
) -> Any:
  """Trains the tokenizer.

  Args:
    config: sizes; `vq` is used.
    compute: dtypes.
    params: tree of `vq`, as `initial_params` draws it. It is not changed.
    images: uint8[N, size, size, 3].
    optimization: steps, batch, rates.
    quantisation: how the codebook comes to be.
    seed: of the order of images and of the codebook's picks.
    progress: called after each step with the reconstruction loss.

  Returns:
    The trained tree, on the device.

  Raises:
    InputError: images of another size or type, or unquantised steps that are not among the steps.
  """
  size, first = config.vq.image_size, quantisation.unquantised_steps
  if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
    raise InputError(f'images are {images.dtype}{list(images.shape)}: expected uint8[N, {size}, {size}, 3]')
  if not 0 < first < optimization.steps:
    raise InputError(f'unquantised_steps is {first}: expected more than 0 and less than steps ({optimization.steps})')
  rng = np.random.default_rng(seed)
  order = draw_rows(rng, len(images), optimization)
  step, optimizer = _train_step(config, optimization, quantisation, compute)
  state = jax.jit(optimizer.init)(params)
  rows = config.vq.codebook_size
  counts, outputs = jnp.zeros(rows, jnp.int32), []
  for number, batch in enumerate(order, start=1):
    params, state, counts, losses, z = step(params, state, counts, images[batch], float(number > first))
    progress(number, losses.reconstruction)
    if number <= first:
      outputs = [*outputs, z][-20:]
    if number == first:
      codebook = spread_picks(np.concatenate(outputs), rows, rng)
    elif (
      number > first
      and (number - first) % quantisation.restart_every == 0
      and (number <= quantisation.restart_until * optimization.steps)
    ):
      codebook = restart_dead(np.asarray(params['codebook']), np.asarray(counts), np.asarray(z), rng)
    else:
      continue
    params, counts = {**params, 'codebook': jnp.asarray(codebook)}, jnp.zeros(rows, jnp.int32)
  return params
