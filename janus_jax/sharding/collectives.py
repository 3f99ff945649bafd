"""Parts of an array put together, and sums taken apart, by each device for itself (inside of `jax.shard_map`)."""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from janus_jax.sharding.rules import mesh_axes

Weights = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Spread:
  """Devices over which the loss of a head is spread: each has its own positions, and meanwhile whole weights.

  Attributes:
    mesh: all devices.
    rows: axes of the mesh that split rows.
    positions: axis of the mesh that splits the positions of a row.
    weights: (path, spec) of the head's weights.
  """

  mesh: jax.sharding.Mesh
  rows: tuple[str, ...]
  positions: str
  weights: tuple[tuple[str, PartitionSpec], ...]

  @property
  def axes(self) -> tuple[str, ...]:
    """Axes that split rows and positions; what is split over others (`tensor`) is left to XLA."""
    return (*self.rows, self.positions)

  @property
  def place(self) -> PartitionSpec:
    """The spec of [R, C, ...]."""
    return PartitionSpec(self.rows, self.positions)

  def specs(self, paths: Iterable[str]) -> dict[str, PartitionSpec]:
    """The specs of weights over `axes` alone."""
    specs = dict(self.weights)
    return {path: over_axes(specs[path], self.axes) for path in paths}

  def over(self, function: Callable[..., Any], arrays: int, weights: Iterable[str], results: Any) -> Callable[..., Any]:
    """A function of a number, so many arrays [R, C, ...] and weights, run by each device for its part of them."""
    specs = (PartitionSpec(), *(self.place,) * arrays, self.specs(weights))
    axes = set(self.axes)
    return jax.shard_map(function, mesh=self.mesh, in_specs=specs, out_specs=results, axis_names=axes, check_vma=False)

  def gather(self, weights: Weights, dtype: jnp.dtype) -> dict[str, jax.Array]:
    """Whole weights from a device's parts, those that are split in the dtype that they are multiplied in."""
    specs = self.specs(weights)
    return {path: gather(x.astype(dtype) if any(specs[path]) else x, specs[path]) for path, x in weights.items()}

  def scatter(self, sums: Weights) -> dict[str, jax.Array]:
    """A device's parts of the sums over all devices."""
    return {path: scatter(x, spec, self.axes) for (path, spec), x in zip(self.specs(sums).items(), sums.values())}


def over_axes(spec: PartitionSpec, axes: Collection[str]) -> PartitionSpec:
  """The spec of an array that is split over some axes of the mesh alone."""
  kept = (tuple(axis for axis in mesh_axes(entry) if axis in axes) for entry in spec)
  return PartitionSpec(*(names or None for names in kept))


def gather(part: jax.Array, spec: PartitionSpec) -> jax.Array:
  """The whole of an array of which each device holds the part that the spec gives it."""
  for dimension, axes in enumerate(map(mesh_axes, spec)):
    for axis in reversed(axes):
      for groups in two_moves(jax.lax.axis_size(axis)):
        part = jax.lax.all_gather(part, axis, axis=dimension, tiled=True, axis_index_groups=groups)
  return part


def scatter(whole: jax.Array, spec: PartitionSpec, axes: Collection[str]) -> jax.Array:
  """A device's part, by the spec, of the sum of arrays over the devices along `axes`, which hold the spec's."""
  rest = set(axes)
  for dimension, names in enumerate(map(mesh_axes, spec)):
    for axis in names:
      for groups in reversed(two_moves(jax.lax.axis_size(axis))):
        whole = jax.lax.psum_scatter(whole, axis, scatter_dimension=dimension, tiled=True, axis_index_groups=groups)
    rest -= set(names)
  return jax.lax.psum(whole, tuple(axis for axis in axes if axis in rest))


def two_moves(size: int) -> list[list[list[int]]]:
  """Groups of an axis's devices for gathering in two moves, first among neighbours.

  They move as many bytes as one would, of which the TPU compiler makes an all-reduce if it is among all chips of a
  slice: twice as many (libtpu 0.0.50: any reduce-scatter, and all-gathers from v5p-128 on).
  """
  near = next(n for n in range(1, size + 1) if size % n == 0 and n * n >= size)
  rows = [list(range(start, start + near)) for start in range(0, size, near)]
  return [groups for groups in (rows, [list(column) for column in zip(*rows)]) if len(groups[0]) > 1]
