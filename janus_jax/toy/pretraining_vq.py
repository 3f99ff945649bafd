"""Short pretraining of the VQ tokenizer from nothing: reconstruction, codebook and commitment losses.

The objective of LlamaGen's `vq_loss.py` and DeepSeek's `vq_model.py` without the adversarial and perceptual terms,
which need networks of their own: mean (x̂ - x)² + mean (e - sg(z))² + 0.25 mean (sg(e) - z)², z and e of unit length.

Two things are ours. Group norms and attention let every code depend on the whole image: the empty ground then has
dozens of codes, and a small decoder spends itself on predicting which. So of two images a third one is pasted together,
and its outputs are pulled towards theirs, cell by cell; and of several rows of the codebook that stand for one look,
one is kept. In the toy world an empty cell then has its usual code in 99 % of the scenes of one object, not 60 %.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

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

# A row chosen less often than this fraction of the mean is dead.
DEAD_FRACTION = 0.02
# Mean patches of two rows that differ by less (root mean square, pixels in -1..1) look the same.
SAME_LOOK = 0.08
# Codebooks of more rows get outputs of patches picked at random, and keep them: comparing each row with each takes too
# long.
MOST_COMPARED = 2048

Scalar = jax.Array | float


@dataclasses.dataclass(frozen=True)
class Quantisation:
  """Training of the codebook.

  Attributes:
    commitment_weight: weight of the commitment loss.
    locality_weight: weight of `locality_loss`.
    unquantised_steps: first steps in which the decoder sees the encoder's outputs themselves; the codebook is then
      picked from outputs. Among the steps.
    restart_every: steps between replacements, by encoder outputs, of rows that are dead or look like another one.
    restart_until: fraction of the steps after which no row is replaced any more; rows that look alike then become one.
  """

  commitment_weight: float = 0.25
  locality_weight: float = 3.0
  unquantised_steps: int = 100
  restart_every: int = 50
  restart_until: float = 0.7


class VQOutputs(NamedTuple):
  """codes int32[B, P]; z, the encoder's outputs, float32[B, P, code_dim]; decoded pixels float32[B, size, size, 3]; and
  their loss, a float32 scalar.
  """

  codes: jax.Array
  z: jax.Array
  decoded: jax.Array
  reconstruction: jax.Array


def vq_loss(vq: VQ, pixels: jax.Array, quantised: Scalar, commitment_weight: Scalar) -> tuple[jax.Array, VQOutputs]:
  """The loss of a tokenizer, by the formula at the top.

  Args:
    vq: bound, or the first argument in `nn.apply`.
    pixels: float32[B, size, size, 3] in [-1, 1].
    quantised: 1.0, or 0.0 to hand the decoder the encoder's outputs unquantised.
    commitment_weight: 0.25 in the formula.
  """
  z = vq.latents(pixels)
  codes = vq.nearest(z)
  rows = l2_normalize(vq.codebook)[codes]
  stop = jax.lax.stop_gradient
  decoded = vq.decode_latents(z + quantised * stop(rows - z))
  reconstruction = jnp.mean(jnp.square(decoded - pixels))
  codebook = jnp.mean(jnp.square(rows - stop(z)))
  commitment = jnp.mean(jnp.square(stop(rows) - z))
  loss = reconstruction + quantised * (codebook + commitment_weight * commitment)
  return loss, VQOutputs(codes, z, decoded, reconstruction)


def locality_loss(vq: VQ, pixels: jax.Array, z: jax.Array, mask: jax.Array) -> jax.Array:
  """Mean squared distance of the outputs of pasted images to those of the images they are made of, cell by cell.

  Args:
    vq: bound.
    pixels: float32[B, size, size, 3] in [-1, 1].
    z: float32[B, P, code_dim], the encoder's outputs for them.
    mask: bool[B, P]; the cells of each image to keep, the others are taken from the image before it.
  """
  B, size = pixels.shape[:2]
  grid = math.isqrt(mask.shape[1])
  of_pixels = mask.reshape(B, grid, grid, 1).repeat(size // grid, axis=1).repeat(size // grid, axis=2)

  def paste(mask, x):
    return jnp.where(mask, x, jnp.roll(x, 1, axis=0))

  return jnp.mean(jnp.square(vq.latents(paste(of_pixels, pixels)) - paste(mask[..., None], z)))


def random_rectangles(rng: np.random.Generator, number: int, grid: int) -> np.ndarray:
  """bool[number, grid * grid]: a rectangle of any position and size in each."""
  lines = np.sort(rng.integers(grid + 1, size=(number, 2, 2)), axis=-1)[..., None]
  inside = (np.arange(grid) >= lines[:, :, 0]) & (np.arange(grid) < lines[:, :, 1])
  return (inside[:, 0, :, None] & inside[:, 1, None, :]).reshape(number, -1)


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


def twins(counts: np.ndarray, looks: np.ndarray) -> np.ndarray:
  """The most chosen row that stands for patches of the same look as each row; itself if there is no other.

  Args:
    counts: int[K], how often each row was chosen.
    looks: float[K, d], the mean patch that it was chosen for.
  """
  squares = np.square(looks).mean(-1)
  same = squares[:, None] + squares - 2 * looks @ looks.T / looks.shape[1] < SAME_LOOK**2
  itself = np.arange(len(counts))
  found = itself.copy()
  for row in np.argsort(-counts, kind='stable'):
    if counts[row] and found[row] == row:
      found[same[row] & (counts > 0) & (found == itself)] = row
  return found


def restart_dead(codebook: np.ndarray, dead: np.ndarray, seen: tuple, rng: np.random.Generator) -> np.ndarray:
  """Replaces rows of float32[K, d] that are dead (bool[K]) by outputs of patches that are badly reconstructed.

  `seen` are the encoder's outputs, unit vectors float32[n, d]; their patches float32[n, e]; and the squared errors
  float[n] of the patches' reconstruction.
  """
  outputs, patches, errors = map(np.asarray, seen)
  rows = codebook.copy()
  rows[dead] = outputs[spread_picks(patches, errors, int(dead.sum()), rng)]
  return rows


@functools.lru_cache(maxsize=4)
def _jit_step(config: VQConfig, compute: ComputeConfig, optimization: Optimization) -> Callable:
  """The update, compiled once for all trainings alike."""
  model, optimizer, grid = VQ(config, compute), optimization.optimizer(), config.grid

  def losses(vq: VQ, pixels, mask, quantised, commitment_weight):
    loss, outputs = vq_loss(vq, pixels, quantised, commitment_weight)
    return loss, outputs, locality_loss(vq, pixels, outputs.z, mask)

  @jax.jit
  def step(params, state, used, images, mask, scales):
    quantised, commitment_weight, locality_weight = scales

    def objective(params, pixels):
      loss, outputs, locality = nn.apply(losses, model)({'params': params}, pixels, mask, quantised, commitment_weight)
      return loss + locality_weight * locality, outputs

    pixels = normalize_pixels(images)
    gradients, outputs = jax.grad(objective, has_aux=True)(params, pixels)
    updates, state = optimizer.update(gradients, state, params)
    codes, patches = outputs.codes.reshape(-1), cells_of(pixels, grid)
    errors = jnp.sum(cells_of(jnp.square(outputs.decoded - pixels), grid), axis=-1)
    used = (used[0].at[codes].add(1), used[1].at[codes].add(patches))
    seen = (outputs.z.reshape(len(errors), -1), patches, errors)
    return optax.apply_updates(params, updates), state, used, outputs.reconstruction, seen

  return step


def pretrain_vq(setup: PretrainingSetup, params: Any, images: np.ndarray, quantisation: Quantisation) -> Any:
  """Trains the tokenizer, whose tree is `params`, on uint8[N, size, size, 3]. Returns the trained tree.

  Raises:
    InputError: images of another size or type, or unquantised steps that are not among the steps.
  """
  config, optimization = setup.model.vq, setup.optimization
  size, rows, first = config.image_size, config.codebook_size, quantisation.unquantised_steps
  if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
    raise InputError(f'images are {images.dtype}{list(images.shape)}: expected uint8[N, {size}, {size}, 3]')
  if not 0 < first < optimization.steps:
    raise InputError(f'unquantised_steps is {first}: expected more than 0 and less than steps ({optimization.steps})')
  rng = np.random.default_rng(setup.seed)
  order, step = optimization.sample_rows(rng, len(images)), _jit_step(config, setup.compute, optimization)
  weights = quantisation.commitment_weight, quantisation.locality_weight
  state = jax.jit(optimization.optimizer().init)(params)
  # How often each row was chosen, and the sum of the patches that it was chosen for.
  used = unused = (jnp.zeros(rows, jnp.int32), jnp.zeros((rows, 3 * (size // config.grid) ** 2)))
  merged, last = np.arange(rows), collections.deque(maxlen=20)
  for number, batch in enumerate(order, start=1):
    mask, quantised = random_rectangles(rng, len(batch), config.grid), float(number > first)
    params, state, used, loss, seen = step(params, state, used, images[batch], mask, (quantised, *weights))
    setup.progress(number, loss)
    last.append(seen[:2])
    if number == first:
      outputs, patches = map(np.concatenate, zip(*last))
      if rows > MOST_COMPARED:
        picks = rng.choice(len(patches), rows, replace=rows > len(patches))
      else:
        picks = spread_picks(patches, np.ones(len(patches)), rows, rng)
      codebook = outputs[picks]
    elif rows > MOST_COMPARED:
      continue
    elif number > first and ((number - first) % quantisation.restart_every == 0 or number == optimization.steps):
      restarting = number <= quantisation.restart_until * optimization.steps
      codebook, merged = _renew(np.asarray(params['codebook']), used, seen, merged, restarting, rng)
    else:
      continue
    params, used = {**params, 'codebook': jnp.asarray(codebook)}, unused
  return params


def _renew(
  codebook: np.ndarray, used: tuple, seen: tuple, merged: np.ndarray, restarting: bool, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """A codebook without dead or equal rows, or (not `restarting`) with those of one look made equal for good; and
  `merged`: the row that each is a copy of.
  """
  counts = np.asarray(used[0])
  twin = twins(counts, np.asarray(used[1]) / np.maximum(counts, 1)[:, None])
  if restarting:
    dead = (counts < DEAD_FRACTION * counts.sum() / len(counts)) | (twin != np.arange(len(counts)))
    return restart_dead(codebook, dead, seen, rng), merged
  # Of equal rows the first is chosen and trained, so that one has to stand for them.
  _, firsts, group = np.unique(twin, return_index=True, return_inverse=True)
  merged = firsts[group][merged]
  return codebook[twin][merged], merged
