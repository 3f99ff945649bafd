"""Least bytes that a device has to receive in a step with its weights split as they are (FSDP), by formula.

Per microbatch, with n the devices of `fsdp`, t those of `tensor`, c those of `context`, and m those along which a
weight is whole and rows or positions are split:

  weights      size / t * (n - 1) / n, in the dtype of computation, once in each pass that needs them: forward,
               backward, and forward again where activations are recomputed. A head has one pass, as its gradients are
               made with its logits, and a table one lookup.
  gradients    for what trains, as much again, once; the rest of them is summed along the m devices:
               2 * size / (t * n) * (m - 1) / m. In the same dtype, as products give them; those of heads in float32, in
               which they are summed over chunks of logits.
  activations  per layer of the decoder and pass: keys and values of a device's rows, (c - 1) / c of them; and the sums
               of the two projections back to the model's width, 2 * (t - 1) / t of them.
"""

import math
from collections.abc import Collection, Mapping

from jax.sharding import NamedSharding

from janus_jax.planning.roofline import StageWork
from janus_jax.sharding.mesh import ROW_AXES
from janus_jax.sharding.rules import mesh_axes
from janus_jax.training.losses import HEADS

SUM_BYTES = 4  # Per element of a head's gradient.
TABLE = 'language_model/embed_tokens/'


def ideal_bytes(
  work: StageWork,
  shapes: Mapping[str, tuple[int, ...]],
  shardings: Mapping[str, NamedSharding],
  trained: Collection[str],
  itemsize: int,
) -> int:
  """Bytes that a device receives at least in a step, by the formulas above.

  Args:
    work: the step.
    shapes: path -> shape of each parameter.
    shardings: path -> its sharding.
    trained: paths that train.
    itemsize: bytes per element in the dtype of computation.
  """
  weights = 0.0
  for path, shape in shapes.items():
    gathered, summed = _parameter_elements(path, shape, shardings[path], work)
    weights += itemsize * gathered
    if path in trained:
      weights += (SUM_BYTES if path.startswith(tuple(HEADS.values())) else itemsize) * summed
  mesh = next(iter(shardings.values())).mesh.shape
  return round(work.accumulation * weights + itemsize * _activation_elements(work, mesh))


def passes(path: str, work: StageWork) -> int:
  """Products of a microbatch with a weight; 0 if the step does not use it."""
  part, again = path.split('/')[0], work.remat == 'full'
  sees = work.shape.images > 0 and not work.model.shared_encoder
  if part == 'vq' or (part in ('vision_encoder', 'vision_aligner') and not sees):
    return 0
  if path.startswith((TABLE, *HEADS.values())):
    return 1
  if part == 'language_model':
    return 1 + work.has_decoder_backward * (1 + again)
  if part == 'vision_encoder':
    # With microbatches, images are encoded a group at a time, and again for the backward pass.
    return 1 + ('vision_encoder' in work.trained) * (1 + again + (work.accumulation > 1))
  return 1 + (part in work.trained)


def _parameter_elements(
  path: str, shape: tuple[int, ...], sharding: NamedSharding, work: StageWork
) -> tuple[float, float]:
  """Elements received in a microbatch: the weight's, and its gradient's if it trains."""
  mesh, used = sharding.mesh.shape, passes(path, work)
  axes = [axis for entry in sharding.spec for axis in mesh_axes(entry)]
  held = math.prod(shape) / (mesh['tensor'] if 'tensor' in axes else 1)
  n = mesh['fsdp'] if 'fsdp' in axes else 1
  m = math.prod(mesh[axis] for axis in (*ROW_AXES, 'context') if axis not in axes)
  split = held * (n - 1) / n
  return used * split, (used > 0) * (split + 2 * held / n * (m - 1) / m)


def _activation_elements(work: StageWork, mesh: Mapping[str, int]) -> float:
  """Elements received in all microbatches together."""
  llama = work.model.language_model
  t, c = mesh['tensor'], mesh['context']
  positions = work.stage.batch_size * work.shape.length / math.prod(mesh[axis] for axis in ROW_AXES)
  keys = 2 * positions * llama.num_kv_heads * llama.head_dim / t * (c - 1) / c
  sums = 2 * positions / c * llama.width * 2 * (t - 1) / t
  return passes('language_model/layers', work) * llama.depth * (keys + sums)
