"""Makes a refiner for the VQ of a checkpoint: opens images, trains, measures, writes its directory."""

import concurrent.futures
import contextlib
import functools
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from janus_jax.conversion.checkpoint import Checkpoint
from janus_jax.conversion.export import published
from janus_jax.conversion.refiner_files import StoredRefiner, vq_digest, write_refiner
from janus_jax.data.images import to_uint8
from janus_jax.data.resizing import pillow
from janus_jax.data.skipping import SkipLimit
from janus_jax.data.whole_files import write_json
from janus_jax.errors import InputError
from janus_jax.evaluation import reconstruction
from janus_jax.inference.refining import ImageRefiner, noise_key
from janus_jax.models.config import ComputeConfig, SiglipConfig
from janus_jax.models.janus import normalize_pixels
from janus_jax.models.refiner import enlarge
from janus_jax.models.siglip import Siglip
from janus_jax.models.vq import VQ
from janus_jax.runs.config import TrainConfig, to_json
from janus_jax.runs.datasets import open_image_pairs
from janus_jax.runs.image_codes import vq_arrays
from janus_jax.runs.start import open_start
from janus_jax.runs.tokenizing import BadRecords
from janus_jax.training.ownership import locked
from janus_jax.training.refining import RefiningSetup, train_refiner

METRICS = 'metrics.json'
MEASURED_AT_ONCE = 16  # Images.
Pair = Mapping[str, np.ndarray]


class PairBatches:
  """Batches of image pairs, sampled with replacement: those of a step depend on the seed and its number alone."""

  def __init__(self, images: Sequence[Pair], batch_size: int, seed: int, limit: SkipLimit):
    """
    Args:
      images: as `datasets.open_image_pairs` returns them.
      batch_size: images of a batch.
      seed: of the sampling.
      limit: of bad records, in whose place others are sampled.
    """
    self._images, self._size, self._seed, self._bad = images, batch_size, seed, BadRecords(limit)
    self._pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())

  def __call__(self, step: int) -> dict[str, np.ndarray]:
    """{'small': uint8[B, size, size, 3], 'large': uint8[B, scale size, scale size, 3]}. Raises InputError where too
    many records are bad.
    """
    rng, found = np.random.default_rng((self._seed, step)), []
    while len(found) < self._size:
      found += self._good(rng.integers(len(self._images), size=self._size - len(found)))
    return stack(found)

  def _good(self, indices: np.ndarray) -> list[Pair]:
    """Those of the images that can be read, by several threads; the others are counted."""
    found = list(self._pool.map(functools.partial(_read, self._images), indices.tolist()))
    for result in found:
      if isinstance(result, InputError):
        self._bad.add_bad(result)
      else:
        self._bad.add_good()
    return [result for result in found if not isinstance(result, InputError)]


def _read(images: Sequence[Pair], index: int) -> Pair | InputError:
  try:
    return images[index]
  except InputError as error:
    return error


def stack(pairs: Sequence[Pair]) -> dict[str, np.ndarray]:
  """Pairs as one batch."""
  return {name: np.stack([pair[name] for pair in pairs]) for name in ('small', 'large')}


def make_refiner(config: TrainConfig, output: str, overwrite: bool = False) -> str:
  """Trains the refiner that `config.refining` describes, measures it and writes its directory, which appears whole or
  not at all. A training that is stopped leaves OUTPUT.resume, with which the same call goes on.

  Args:
    config: of the training; `init_from` is the checkpoint whose VQ it is for.
    output: the directory.
    overwrite: replace one that is there.

  Returns:
    The table of what was measured (`measured_table`).

  Raises:
    InputError: no checkpoint, no images, sizes that do not fit; the output exists or cannot be written.
  """
  began, settings, checkpoint = time.perf_counter(), config.refining, open_start(config)
  vq, arrays = checkpoint.config.vq, vq_arrays(checkpoint)
  settings.network(vq.code_dim).check_size(vq.image_size)
  output = os.path.abspath(output)
  with published(output, overwrite, needed=0) as directory, locked(f'{output}.lock', output):
    images, held_out = open_image_pairs(config, checkpoint.config, os.path.join(os.path.dirname(output), 'data'))
    digest, resume = vq_digest(arrays), f'{output}.resume'
    made_by = {name: to_json(config).get(name) for name in ('refining', 'data', 'seed')}
    setup = RefiningSetup(
      settings,
      vq,
      flax.traverse_util.unflatten_dict(arrays, sep='/')['vq'],
      config.seed,
      save_path=resume,
      made_by=json.dumps({**made_by, 'vq': digest}, sort_keys=True),
      log_every=config.log_every,
    )
    limit = SkipLimit(fraction=config.max_bad_record_fraction)
    network, params = train_refiner(setup, PairBatches(images, settings.batch_size, config.seed, limit))
    write_refiner(StoredRefiner(network, params, digest), directory)
    refiner = ImageRefiner(network, params, np.asarray(setup.vq_params['codebook'], np.float32))
    metrics = measure(refiner, checkpoint, held_out, config.seed)
    write_json(os.path.join(directory, METRICS), metrics)
  with contextlib.suppress(FileNotFoundError):
    os.remove(resume)
  logging.info('wrote %s in %.0f s', output, time.perf_counter() - began)
  return measured_table(metrics)


def measure(refiner: ImageRefiner, checkpoint: Checkpoint, held_out: Sequence[Pair], seed: int) -> dict[str, Any]:
  """Measures images that the VQ encodes and decodes: enlarged by a bicubic filter, and refined.

  Returns:
    JSON-ready: the number of images and their size; 'psnr' in dB, 'gradient_energy' as a fraction of the originals'
    and 'frechet_distance', each {'bicubic': number, 'refined': number} (`evaluation.reconstruction`). The features of
    the distance are the understanding encoder's (`feature_reader`), not Inception's: it compares with itself alone.
  """
  pairs = [
    pair for pair in (_read(held_out, index) for index in range(len(held_out))) if not isinstance(pair, InputError)
  ]
  if len(pairs) < 2:
    raise InputError(f'{len(pairs)} held-out images can be read: expected 2 or more to measure the refiner on')
  originals = stack(pairs)['large']
  codes, shown = vq_reader(checkpoint)(stack(pairs)['small'])
  refined, bicubic = [], []
  for start in range(0, len(pairs), MEASURED_AT_ONCE):
    chunk = slice(start, start + MEASURED_AT_ONCE)
    keys = jnp.stack([noise_key(seed, index) for index in range(len(pairs))[chunk]])
    refined.append(refiner.refine(shown[chunk], codes[chunk], keys))
    bicubic.append(enlarged(shown[chunk], refiner.config.scale))
  found = {'bicubic': np.concatenate(bicubic), 'refined': np.concatenate(refined)}
  read = feature_reader(checkpoint)
  features, energy = read(originals), reconstruction.gradient_energy(originals)
  return {
    'images': len(pairs),
    'size': originals.shape[1],
    'psnr': {name: reconstruction.psnr(images, originals) for name, images in found.items()},
    'gradient_energy': {name: reconstruction.gradient_energy(images) / energy for name, images in found.items()},
    'frechet_distance': {
      name: reconstruction.frechet_distance(read(images), features) for name, images in found.items()
    },
  }


def enlarged(images: np.ndarray, scale: int) -> np.ndarray:
  """uint8[B, size, size, 3] -> uint8[B, scale size, scale size, 3], by the filter that a refiner begins with."""
  return np.clip(np.rint((np.asarray(enlarge(normalize_pixels(images), scale)) + 1) * 127.5), 0, 255).astype(np.uint8)


def vq_reader(checkpoint: Checkpoint) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
  """uint8[N, size, size, 3] -> codes int32[N, P] and the decoded images uint8[N, size, size, 3], in float32."""
  vq = VQ(checkpoint.config.vq, ComputeConfig())
  params = flax.traverse_util.unflatten_dict(vq_arrays(checkpoint), sep='/')['vq']

  @jax.jit
  def read(images: jax.Array) -> tuple[jax.Array, jax.Array]:
    codes = vq.apply({'params': params}, normalize_pixels(images), method='encode')
    return codes, vq.apply({'params': params}, codes, method='decode')

  def read_all(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found = [read(images[start : start + MEASURED_AT_ONCE]) for start in range(0, len(images), MEASURED_AT_ONCE)]
    return np.concatenate([codes for codes, _ in found]), np.concatenate([to_uint8(decoded) for _, decoded in found])

  return read_all


def feature_reader(checkpoint: Checkpoint) -> Callable[[np.ndarray], np.ndarray]:
  """uint8[N, h, h, 3] -> float32[N * crops, D]: means over the patches of the understanding encoder's features, of
  crops of its size that lie side by side; images that are smaller than one are enlarged.
  """
  config, prefix = checkpoint.config.vision_encoder, 'vision_encoder/'
  flat = {path: leaf[...] for path, leaf in checkpoint.params.items() if path.startswith(prefix)}
  params = flax.traverse_util.unflatten_dict(flat, sep='/')['vision_encoder']

  @jax.jit
  def read(crops: jax.Array) -> jax.Array:
    features = Siglip(config, ComputeConfig()).apply({'params': params}, normalize_pixels(crops))
    return features.astype(jnp.float32).mean(axis=1)

  def read_all(images: np.ndarray) -> np.ndarray:
    cut = crops(images, config)
    found = [read(cut[start : start + MEASURED_AT_ONCE]) for start in range(0, len(cut), MEASURED_AT_ONCE)]
    return np.concatenate(found)

  return read_all


def crops(images: np.ndarray, config: SiglipConfig) -> np.ndarray:
  """Squares of the encoder's size side by side, in the middle of uint8[N, h, h, 3]: uint8[N * crops, size, size, 3]."""
  size, side = config.image_size, images.shape[1]
  if side < size:
    return np.stack([pillow(Image.fromarray(image), (size, size), None) for image in images])
  count = side // size
  first = (side - count * size) // 2
  inner = images[:, first : first + count * size, first : first + count * size]
  cut = inner.reshape(len(images), count, size, count, size, 3).swapaxes(2, 3)
  return cut.reshape(-1, size, size, 3)


def measured_table(metrics: Mapping[str, Any]) -> str:
  """A table of what `measure` found."""
  lines = [f'{metrics["images"]} held-out images of {metrics["size"]} pixels, encoded and decoded by the VQ']
  lines.append(f'{"":10}{"PSNR (dB)":>12}{"gradient energy":>18}{"Fréchet distance":>19}')
  for name in metrics['psnr']:
    psnr, energy, distance = (metrics[key][name] for key in ('psnr', 'gradient_energy', 'frechet_distance'))
    lines.append(f'{name:10}{psnr:12.2f}{energy:18.3f}{distance:19.4f}')
  return '\n'.join(lines)
