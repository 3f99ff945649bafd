"""Reads a checkpoint's parameters into jax arrays, leaf by leaf, straight to where they belong."""

from collections.abc import Callable, Mapping

import flax.traverse_util
import jax
import numpy as np

from janus_jax.conversion.checkpoint import Checkpoint
from janus_jax.conversion.lazy import LazyArray


def _array(leaf: LazyArray, sharding: jax.sharding.Sharding | None) -> jax.Array:
  if sharding is None:
    return jax.numpy.asarray(leaf[...])
  # Each device's part is read by itself; a part that several devices hold is read once.
  parts: dict[tuple, np.ndarray] = {}

  def read(index: tuple[slice, ...]) -> np.ndarray:
    key = tuple((s.start, s.stop) for s in index)
    if key not in parts:
      parts[key] = leaf[index]
    return parts[key]

  return jax.make_array_from_callback(leaf.shape, sharding, read)


def load_params(
  checkpoint: Checkpoint,
  shardings: Mapping[str, jax.sharding.Sharding] | None,
  progress: Callable[[int], None] = lambda _: None,
) -> dict:
  """The parameter tree as jax arrays.

  At no time is there more on the host than one leaf beside what is already in place.

  Args:
    checkpoint: source; `cast_params` gives it another dtype, which is applied leaf by leaf.
    shardings: path -> sharding, or None for the default device.
    progress: called with the number of bytes read since the last call.

  Returns:
    nested dict of jax.Array.
  """
  flat = {}
  for path, leaf in checkpoint.params.items():
    array = _array(leaf, shardings[path] if shardings is not None else None)
    flat[path] = array.block_until_ready()  # Else transfers queue up and hold their host copies.
    progress(leaf.nbytes)
  return flax.traverse_util.unflatten_dict(flat, sep='/')
