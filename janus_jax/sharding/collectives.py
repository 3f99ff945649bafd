"""Parts of an array put together, and sums taken apart, by each device for itself (inside of `jax.shard_map`)."""

from collections.abc import Collection

import jax
from jax.sharding import PartitionSpec

from janus_jax.sharding.rules import mesh_axes


def over_axes(spec: PartitionSpec, axes: Collection[str]) -> PartitionSpec:
  """The spec of an array that is split over some axes of the mesh alone."""
  kept = (tuple(axis for axis in mesh_axes(entry) if axis in axes) for entry in spec)
  return PartitionSpec(*(names or None for names in kept))


def gather(part: jax.Array, spec: PartitionSpec) -> jax.Array:
  """The whole of an array of which each device holds the part that the spec gives it."""
  for dimension, axes in enumerate(map(mesh_axes, spec)):
    if axes:
      part = jax.lax.all_gather(part, axes, axis=dimension, tiled=True)
  return part


def scatter(whole: jax.Array, spec: PartitionSpec, axes: Collection[str]) -> jax.Array:
  """A device's part, by the spec, of the sum of arrays over the devices along `axes`, which hold the spec's."""
  rest = set(axes)
  for dimension, names in enumerate(map(mesh_axes, spec)):
    if names:
      whole = jax.lax.psum_scatter(whole, names, scatter_dimension=dimension, tiled=True)
      rest -= set(names)
  return jax.lax.psum(whole, tuple(axis for axis in axes if axis in rest))
