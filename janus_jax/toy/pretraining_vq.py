"""Short pretraining of the VQ tokenizer from nothing: reconstruction, codebook and commitment losses.

The objective of LlamaGen's `vq_loss.py` and DeepSeek's `vq_model.py` without the adversarial and perceptual terms,
which need networks of their own: mean (x̂ - x)² + mean (e - sg(z))² + 0.25 mean (sg(e) - z)², z and e of unit length.

Two things are ours. Group norms and attention let every code depend on the whole image: the empty ground then has
dozens of codes, and a small decoder spends itself on predicting which. So of two images a third one is pasted together,
and its outputs are pulled towards theirs, cell by cell; and of several rows of the codebook that stand for one look,
one is kept. In the toy world an empty cell then has its usual code in 99 % of the scenes
of one object instead of 60 %.
"""

import dataclasses
import functools
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from janus_jax.errors import InputError
from janus_jax.models.config import ComputeConfig, JanusConfig, VQConfig
from janus_jax.models.janus import normalize_pixels
from janus_jax.models.vq import VQ, l2_normalize
from janus_jax.toy.pretraining import Optimization, Progress, draw_rows, no_progress

# A row chosen less often than this share of its fair part is dead.
DEAD_SHARE = 0.02
# Mean patches of two rows that differ by less (root mean square, pixels in -1..1) look the same.
SAME_LOOK = 0.08


@dataclasses.dataclass(frozen=True)
class Quantisation:
  """How the codebook comes to be.

  Attributes:
    commitment_weight: weight of the commitment loss.
    locality_weight: weight of the distance between the outputs of a pasted image and those of the images it is made of.
    unquantised_steps: first steps in which the decoder sees the encoder's outputs themselves; the codebook is then
      picked from outputs. Among the steps.
    restart_every: steps between replacements, by encoder outputs, of rows that are dead or look like another one.
    restart_until: fraction of the steps after which no row is replaced any more; what looks alike then becomes one.
  """

  commitment_weight: float = 0.25
  locality_weight: float = 3.0
  unquantised_steps: int = 100
  restart_every: int = 50
  restart_until: float = 0.7


@flax.struct.dataclass
class VQLosses:
  """float32 scalars, unweighted; see the formula at the top."""

  reconstruction: jax.Array
  codebook: jax.Array
  commitment: jax.Array

  def total(self, quantised: jax.Array | float, commitment_weight: jax.Array | float) -> jax.Array:
    return self.reconstruction + quantised * (self.codebook + commitment_weight * self.commitment)


@flax.struct.dataclass
class VQOutputs:
  """codes int32[B, P]; z, the encoder's outputs, float32[B, P, code_dim]; decoded pixels float32[B, size, size, 3]."""

  codes: jax.Array
  z: jax.Array
  decoded: jax.Array


def vq_losses(vq: VQ, pixels: jax.Array, quantised: jax.Array | float) -> tuple[VQLosses, VQOutputs]:
  """The losses of a bound tokenizer.

  Args:
    vq: bound, or the first argument in `nn.apply`.
    pixels: float32[B, size, size, 3] in [-1, 1].
    quantised: 1.0, or 0.0 to hand the decoder the encoder's outputs unquantised.
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
  return losses, VQOutputs(codes, z, decoded)


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
  keep = lambda mask, x: jnp.where(mask, x, jnp.roll(x, 1, axis=0))  # noqa: E731
  return jnp.mean(jnp.square(vq.latents(keep(of_pixels, pixels)) - keep(mask[..., None], z)))


def random_rectangles(rng: np.random.Generator, number: int, grid: int) -> np.ndarray:
  """bool[number, grid * grid]: a rectangle of any place and size in each."""
  lines = np.sort(rng.integers(grid + 1, size=(number, 2, 2)), axis=-1)[..., None]
  inside = (np.arange(grid) >= lines[:, :, 0]) & (np.arange(grid) < lines[:, :, 1])
  return (inside[:, 0, :, None] & inside[:, 1, None, :]).reshape(number, -1)


def cells_of(pixels: jax.Array, grid: int) -> jax.Array:
  """[B, size, size, 3] -> [B * grid * grid, d]: the pixels of each cell, in the order of its code."""
  B, cell = len(pixels), pixels.shape[1] // grid
  return pixels.reshape(B, grid, cell, grid, cell, 3).swapaxes(2, 3).reshape(B * grid * grid, -1)


def spread_picks(patches: np.ndarray, distances: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
  """Patches that look unlike each other, drawn as k-means++ draws its seeds.

  Looks are compared, not the encoder's outputs: those of one empty ground lie scattered and would fill the codebook.

  Args:
    patches: float32[n, d], flattened pixels.
    distances: float[n], squared, of each patch to what is there already; ones where nothing is.
    number: how many to pick; more than there are different patches gives repeats.
    rng: where the draws come from.

  Returns:
    int[number], indices.
  """
  picks, distances = np.empty(number, int), distances.astype(np.float64)
  for i in range(number):
    weights = distances + 1e-12
    picks[i] = rng.choice(len(patches), p=weights / weights.sum())
    distances = np.minimum(distances, np.square(patches - patches[picks[i]]).sum(axis=1))
  return picks


def twins(counts: np.ndarray, looks: np.ndarray) -> np.ndarray:
  """For each row, the most chosen row that stands for patches of the same look; itself if there is no other.

  Args:
    counts: int[K], how often each row was chosen.
    looks: float[K, d], the mean patch that it was chosen for.
  """
  same = np.square(looks[:, None] - looks).mean(-1) < SAME_LOOK**2
  itself = np.arange(len(counts))
  found = itself.copy()
  for row in np.argsort(-counts, kind='stable'):
    if counts[row] and found[row] == row:
      found[same[row] & (counts > 0) & (found == itself)] = row
  return found


def restart_dead(
  codebook: np.ndarray,
  dead: np.ndarray,
  outputs: np.ndarray,
  patches: np.ndarray,
  errors: np.ndarray,
  rng: np.random.Generator,
) -> np.ndarray:
  """Replaces dead rows by outputs of patches that are badly reconstructed.

  Args:
    codebook: float32[K, d].
    dead: bool[K].
    outputs: unit vectors float32[n, d] of the encoder.
    patches: float32[n, e], what they stand for.
    errors: float[n], squared, of their reconstruction.
    rng: where the draws come from.
  """
  rows = codebook.copy()
  rows[dead] = outputs[spread_picks(patches, errors, int(dead.sum()), rng)]
  return rows


@functools.partial(jax.jit, static_argnames=('config', 'compute', 'optimization'))
def _train_step(
  params: Any,
  state: Any,
  used: tuple[jax.Array, jax.Array],
  images: jax.Array,
  mask: jax.Array,
  quantised: float,
  weights: tuple[float, float],
  *,
  config: VQConfig,
  compute: ComputeConfig,
  optimization: Optimization,
):
  """One update; `weights` are those of the commitment and of the locality."""
  model, (commitment_weight, locality_weight) = VQ(config, compute), weights

  def losses_of(vq: VQ, pixels, mask, quantised):
    losses, outputs = vq_losses(vq, pixels, quantised)
    return losses, outputs, locality_loss(vq, pixels, outputs.z, mask)

  def objective(params, pixels):
    losses, outputs, locality = nn.apply(losses_of, model)({'params': params}, pixels, mask, quantised)
    return losses.total(quantised, commitment_weight) + locality_weight * locality, (losses, outputs)

  pixels = normalize_pixels(images)
  gradients, (losses, outputs) = jax.grad(objective, has_aux=True)(params, pixels)
  updates, state = optimization.optimizer().update(gradients, state, params)
  grid, codes = config.grid, outputs.codes.reshape(-1)
  patches = cells_of(pixels, grid)
  errors = jnp.sum(cells_of(jnp.square(outputs.decoded - pixels), grid), axis=-1)
  used = (used[0].at[codes].add(1), used[1].at[codes].add(patches))
  seen = (outputs.z.reshape(len(errors), -1), patches, errors)
  return optax.apply_updates(params, updates), state, used, losses, seen


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
  settings = {'config': config.vq, 'compute': compute, 'optimization': optimization}
  weights = quantisation.commitment_weight, quantisation.locality_weight
  state = jax.jit(optimization.optimizer().init)(params)
  rows, last = config.vq.codebook_size, []
  # How often each row was chosen, and the sum of the patches that it was chosen for.
  unused = (jnp.zeros(rows, jnp.int32), jnp.zeros((rows, 3 * (size // config.vq.grid) ** 2)))
  used = unused
  merged = np.arange(rows)  # The row that each is a copy of, for good.
  for number, batch in enumerate(order, start=1):
    mask = random_rectangles(rng, len(batch), config.vq.grid)
    changing = images[batch], mask, float(number > first), weights
    params, state, used, losses, seen = _train_step(params, state, used, *changing, **settings)
    progress(number, losses.reconstruction)
    if number <= first:
      last = [*last, seen[:2]][-20:]
    if number == first:
      outputs, patches = map(np.concatenate, zip(*last))
      codebook = outputs[spread_picks(patches, np.ones(len(patches)), rows, rng)]
    elif number > first and ((number - first) % quantisation.restart_every == 0 or number == optimization.steps):
      codebook, counts = np.asarray(params['codebook']), np.asarray(used[0])
      twin = twins(counts, np.asarray(used[1]) / np.maximum(counts, 1)[:, None])
      if number <= quantisation.restart_until * optimization.steps:
        dead = (counts < DEAD_SHARE * counts.sum() / rows) | (twin != np.arange(rows))
        codebook = restart_dead(codebook, dead, *map(np.asarray, seen), rng)
      else:
        # Of equal rows the first is chosen and trained, so that one has to stand for them.
        _, firsts, group = np.unique(twin, return_index=True, return_inverse=True)
        merged = firsts[group][merged]
        codebook = codebook[twin][merged]
    else:
      continue
    params, used = {**params, 'codebook': jnp.asarray(codebook)}, unused
  return params
