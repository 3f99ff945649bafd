"""Codes of the images that a run learns to generate, computed before its first step and kept in its workdir.

The VQ never trains, so an image has the same codes in every epoch: encoding it once saves a small model a sixth of each
step. Existing files are used as they are, so a run that is resumed needs no encoder.
"""

import functools
import glob
import os
from collections.abc import Callable, Sequence

import jax
import numpy as np
import tqdm

from janus_jax.conversion.checkpoint import Checkpoint
from janus_jax.data.whole_files import replacing
from janus_jax.models.config import ComputeConfig, VQConfig
from janus_jax.models.janus import normalize_pixels
from janus_jax.models.vq import VQ

DIRECTORY = 'codes'
BATCH = 64


def stored_codes(
  workdir: str, name: str, read: Callable[[], Sequence[np.ndarray]], encode: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
  """The codes of some images, int32[n, P], from the workdir; computed and written there if they are missing.

  Args:
    workdir: the run's.
    name: tells images and VQ from others: 'shapes-train-64px-0f1e2d3c' for instance.
    read: returns the images, uint8[size, size, 3] each; called only if their codes are not stored.
    encode: uint8[B, size, size, 3] -> int32[B, P].

  Raises:
    OSError: nothing can be written there.
  """
  path = os.path.join(workdir, DIRECTORY, f'{name}.npy')
  if os.path.exists(path):
    return np.load(path)
  images, codes = read(), []
  description = f'codes of {"-".join(name.split("-")[:2])}'
  for start in tqdm.trange(0, len(images), BATCH, desc=description, unit='batch', dynamic_ncols=True):
    batch = np.stack([images[i] for i in range(start, min(start + BATCH, len(images)))])
    # One shape, so one compilation: the last batch is filled up.
    filled = np.concatenate([batch, np.repeat(batch[-1:], BATCH - len(batch), axis=0)])
    codes.append(np.asarray(encode(filled))[: len(batch)])
  os.makedirs(os.path.dirname(path), exist_ok=True)
  with replacing(path) as partial, open(partial, 'wb') as file:
    np.save(file, np.concatenate(codes))
  return np.concatenate(codes)


def only_codes(workdir: str, stem: str) -> str | None:
  """The name of the codes in a workdir that begins so; None if there are none, or those of several VQs."""
  found = glob.glob(f'{glob.escape(os.path.join(workdir, DIRECTORY, stem))}-*.npy')
  return os.path.basename(found[0]).removesuffix('.npy') if len(found) == 1 else None


def vq_arrays(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
  """The parameters that make codes, by path ('vq/codebook', ...), as stored."""
  return {path: leaf[...] for path, leaf in checkpoint.params.items() if path.startswith('vq/')}


def image_encoder(config: VQConfig, params: dict) -> Callable[[np.ndarray], jax.Array]:
  """The frozen VQ as a function: uint8[B, size, size, 3] -> int32[B, P], always in float32."""
  return functools.partial(_encode, params, config=config)


@functools.partial(jax.jit, static_argnames='config')
def _encode(params: dict, pixels: jax.Array, *, config: VQConfig) -> jax.Array:
  return VQ(config, ComputeConfig()).apply({'params': params}, normalize_pixels(pixels), method='encode')
