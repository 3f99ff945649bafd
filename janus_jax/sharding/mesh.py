"""Device meshes. Four axes, always all present, so that rules need not ask which exist.

`data` replicates parameters and splits batches; `fsdp` splits both; `tensor` splits heads, hidden width and
vocabulary; `context` splits the sequence. Where TPU slices are joined by the data-centre network, only `data` crosses
it: once per step, for the gradients.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils

from janus_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Number of devices along each axis, over all slices. One may be -1 and takes what is left.

  Attributes:
    data: copies of the parameters, each of which takes a part of every batch.
    fsdp: parts of the parameters, optimizer state and batch.
    tensor: parts of heads, hidden width and vocabulary.
    context: parts of the sequence.
  """

  data: int = 1
  fsdp: int = -1
  tensor: int = 1
  context: int = 1


AXES = tuple(field.name for field in dataclasses.fields(MeshConfig))
ROW_AXES = ('data', 'fsdp')  # Those that split the rows of a batch.


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
  """A mesh over `devices`, by default all, of sizes as in `MeshConfig`; axes left out have size 1.

  Raises:
    InputError: an unknown axis, more than one -1, sizes whose product is not the number of devices, or a `data` that
      does not divide over the TPU slices.
  """
  devices = jax.devices() if devices is None else devices
  if unknown := sorted(set(sizes) - set(AXES)):
    raise InputError(f'mesh axis {unknown[0]!r} is unknown: expected some of {", ".join(AXES)}')
  shape = [sizes.get(axis, 1) for axis in AXES]
  if shape.count(-1) > 1 or any(size < 1 and size != -1 for size in shape):
    raise InputError(f'mesh sizes {dict(sizes)}: expected positive numbers and at most one -1')
  if -1 in shape:
    fixed = math.prod(size for size in shape if size != -1)
    shape[shape.index(-1)] = max(len(devices) // fixed, 1)
  if math.prod(shape) != len(devices):
    raise InputError(f'mesh sizes {dict(zip(AXES, shape))} need {math.prod(shape)} devices: there are {len(devices)}')
  # Linen's sharding constraints need Auto axes; jax's own default is Explicit since 0.9.
  auto = (jax.sharding.AxisType.Auto,) * len(AXES)
  return jax.sharding.Mesh(arrange(shape, devices), AXES, axis_types=auto)


def arrange(shape: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
  """The devices as an array with a size for each of AXES, so that neighbours along an axis are near each other.

  Raises:
    InputError: the first axis does not divide over the TPU slices.
  """
  # GPUs have slice numbers too, one per host: there the plain order already keeps the inner axes within a host.
  is_tpu = devices[0].platform == 'tpu'
  slices = len({getattr(device, 'slice_index', 0) for device in devices}) if is_tpu else 1
  if slices == 1:
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  if shape[0] % slices:
    raise InputError(
      f'mesh axis {AXES[0]!r} is {shape[0]}: expected a multiple of {slices}, the number of TPU slices (no other axis '
      'crosses the network between slices)'
    )
  within, across = [shape[0] // slices, *shape[1:]], [slices, *(1 for _ in shape[1:])]
  return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)


def rows_split(mesh: jax.sharding.Mesh) -> int:
  """Number of parts into which the mesh splits the rows of a batch."""
  return math.prod(mesh.shape[axis] for axis in ROW_AXES)


def process_batch_shard(mesh: jax.sharding.Mesh, process: int | None = None) -> tuple[int, int]:
  """The shard of the rows of a global batch that a process, by default this one, feeds.

  Rows are split over `data` and `fsdp` alone. Processes whose devices differ in `tensor` or `context` only hold the
  same rows and must feed the same.

  Returns:
    (index, count): the shard of the process among `count` of equal size, numbered by their first row; the rows of one
    need not be consecutive in the global batch.

  Raises:
    InputError: two processes have some of their rows in common, but not all, or more rows than others.
  """
  process = jax.process_index() if process is None else process
  blocks = mesh.devices.reshape(rows_split(mesh), -1)
  held: dict[int, set[int]] = {}
  for block, devices in enumerate(blocks):
    for device in devices:
      held.setdefault(device.process_index, set()).add(block)
  shards = sorted({tuple(sorted(blocks)) for blocks in held.values()})
  if sum(map(len, shards)) != len(blocks) or len(set(map(len, shards))) != 1:
    described = '; '.join(f'process {index}: {sorted(held[index])}' for index in sorted(held))
    raise InputError(
      f'mesh {dict(mesh.shape)} gives processes unequal shares of its {len(blocks)} blocks of rows ({described}): '
      'expected the same blocks or none in common; make tensor x context divide the devices of a process, or be a '
      'multiple of them'
    )
  return shards.index(tuple(sorted(held[process]))), len(shards)


def parse_mesh(text: str | None) -> jax.sharding.Mesh | None:
  """'tensor=2,fsdp=-1' -> a mesh over all devices (`make_mesh`); None or '' -> None."""
  if not text:
    return None
  sizes = {}
  for part in text.split(','):
    axis, _, size = part.partition('=')
    if not size.removeprefix('-').isdecimal():
      raise InputError(f'mesh {text!r}: {part!r}: expected axis=number, as in tensor=2,fsdp=-1')
    sizes[axis.strip()] = int(size)
  return make_mesh(sizes)
