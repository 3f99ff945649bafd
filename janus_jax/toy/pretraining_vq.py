"""Short pretraining of the VQ tokenizer from nothing.

Real tokenizers learn codes and pixels together, from reconstruction and the losses of codebook and commitment
(LlamaGen's `vq_loss.py`). In a training as short as here that leaves one look with several codes, and which of them
depends on the rest of the image: noise that a small decoder can only guess (tests/benchmarks/toy_codes.py counts it).
So what codes stand for is chosen first: looks, the pixels of a cell. The encoder learns to name the look of each cell,
by cross-entropy over the codebook's cosines, and the decoder to draw the image from the rows of those looks.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from janus_jax.errors import InputError
from janus_jax.models.config import ComputeConfig, VQConfig
from janus_jax.models.janus import normalize_pixels
from janus_jax.models.vq import VQ, l2_normalize
from janus_jax.toy.pretraining import Optimization, PretrainingSetup

LOOK_IMAGES = 1500  # Images that looks are chosen from, or fewer of large ones: so many values in all.
LOOK_VALUES = 15_000_000
REPEATED = 3  # Cells that make a look one of its own.
MOST_LOOKS = 2048  # Larger codebooks have rows that stand for nothing: comparing each cell with each takes too long.
TEMPERATURE = 0.1  # Of the cosines.
NAMING_WEIGHT = 0.1


def cells_of(pixels: jax.Array, grid: int) -> jax.Array:
  """[B, size, size, 3] -> [B * grid * grid, d]: the pixels of each cell, in the order of its code."""
  B, cell = len(pixels), pixels.shape[1] // grid
  return pixels.reshape(B, grid, cell, grid, cell, 3).swapaxes(2, 3).reshape(B * grid * grid, -1)


def spread_picks(patches: np.ndarray, distances: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
  """Indices int[number] of patches that look unlike each other, sampled as k-means++ samples its seeds.

  Looks are compared, not the encoder's outputs: those of one empty ground lie scattered and would fill the codebook.

  Args:
    patches: float32[n, d], flattened pixels.
    distances: float[n], squared, of each patch to what is there already; ones where nothing is.
    number: number of picks; more than there are different patches gives repeats.
    rng: random generator.
  """
  picks, distances = np.empty(number, int), distances.astype(np.float64)
  for i in range(number):
    weights = distances + 1e-12
    picks[i] = rng.choice(len(patches), p=weights / weights.sum())
    distances = np.minimum(distances, np.square(patches - patches[picks[i]]).sum(axis=1))
  return picks


def choose_looks(patches: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
  """So many patches for codes to stand for: those that repeat, the most frequent first, then others, spread out.

  Args:
    patches: float32[n, d], flattened pixels in -1..1.
    number: number of looks; more than there are different patches gives repeats.
    rng: random generator.
  """
  distinct, counts = np.unique(patches, axis=0, return_counts=True)
  order = np.argsort(-counts, kind='stable')
  repeated = order[counts[order] >= REPEATED][:number]
  distances = np.full(len(distinct), float(distinct.shape[1]))
  for index in repeated:
    distances = np.minimum(distances, np.square(distinct - distinct[index]).sum(axis=1))
  return distinct[[*repeated, *spread_picks(distinct, distances, number - len(repeated), rng)]]


def rows_for(looks: np.ndarray, width: int) -> np.ndarray:
  """Unit vectors float32[K, width] to start a codebook with: principal components of the looks, each of one size. Looks
  that are alike have rows that are alike, which the decoder learns to draw three times as well as from random ones.
  """
  centred = looks - looks.mean(axis=0)
  directions = np.linalg.svd(centred, full_matrices=False)[2][:width]
  rows = np.zeros((len(looks), width), np.float32)
  rows[:, : len(directions)] = centred @ directions.T
  sizes = rows.std(axis=0)
  rows /= np.where(sizes > 1e-3 * sizes.max(), sizes, np.inf)
  return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def nearest_looks(patches: jax.Array, looks: jax.Array) -> jax.Array:
  """float32[n, d], float32[K, d] -> int32[n]: the look that each patch differs from least, the first one on a tie."""
  return jnp.argmin(jnp.sum(jnp.square(looks), axis=1) - 2 * patches @ looks.T, axis=1).astype(jnp.int32)


def naming_loss(cosines: jax.Array, targets: jax.Array) -> jax.Array:
  """Cross-entropy of the targets int32[n] by float32[n, K]. A look weighs as the square root of its number of cells: of
  a scene most cells are empty.
  """
  losses = optax.softmax_cross_entropy_with_integer_labels(cosines / TEMPERATURE, targets)
  weights = jax.lax.rsqrt(jnp.sum(targets[:, None] == targets, axis=1).astype(jnp.float32))
  return jnp.sum(losses * weights) / jnp.sum(weights)


@functools.lru_cache(maxsize=4)
def _jit_step(config: VQConfig, compute: ComputeConfig, optimization: Optimization) -> Callable:
  """The update, compiled once for all trainings alike."""
  model, optimizer = VQ(config, compute), optimization.optimizer()

  def losses(vq: VQ, pixels: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows, z = l2_normalize(vq.codebook), vq.latents(pixels)
    naming = naming_loss(z.reshape(len(targets), -1) @ rows.T, targets)
    decoded = vq.decode_latents(rows[targets].reshape(z.shape))
    reconstruction = jnp.mean(jnp.square(decoded - pixels))
    return reconstruction + NAMING_WEIGHT * naming, reconstruction

  @jax.jit
  def step(params, state, images, looks):
    pixels = normalize_pixels(images)
    targets = nearest_looks(cells_of(pixels, config.grid), looks)

    def objective(params):
      return nn.apply(losses, model)({'params': params}, pixels, targets)

    gradients, reconstruction = jax.grad(objective, has_aux=True)(params)
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, reconstruction

  return step


def pretrain_vq(setup: PretrainingSetup, params: Any, images: np.ndarray) -> Any:
  """Trains the tokenizer, whose tree is `params`, on uint8[N, size, size, 3]. Returns the trained tree.

  Raises:
    InputError: images of another size or type.
  """
  config, optimization = setup.model.vq, setup.optimization
  size = config.image_size
  if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
    raise InputError(f'images are {images.dtype}{list(images.shape)}: expected uint8[N, {size}, {size}, 3]')
  rng = np.random.default_rng(setup.seed)
  order, step = optimization.sample_rows(rng, len(images)), _jit_step(config, setup.compute, optimization)
  shown = images[rng.permutation(len(images))[: min(LOOK_IMAGES, LOOK_VALUES // images[0].size)]]
  patches = np.asarray(cells_of(normalize_pixels(shown), config.grid))
  looks = choose_looks(patches, min(config.codebook_size, MOST_LOOKS), rng)
  codebook = np.array(params['codebook'])
  codebook[: len(looks)] = rows_for(looks, codebook.shape[1])
  params = {**params, 'codebook': jnp.asarray(codebook)}
  state = jax.jit(optimization.optimizer().init)(params)
  for number, batch in enumerate(order, start=1):
    params, state, loss = step(params, state, images[batch], looks)
    setup.progress(number, loss)
  return params
