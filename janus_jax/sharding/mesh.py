"""Device meshes. Four axes, always all present, so that rules need not ask which exist.

`data` replicates parameters and splits batches; `fsdp` splits both; `tensor` splits heads, hidden width and
vocabulary; `context` splits the sequence.
"""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from janus_jax.errors import InputError

AXES = ('data', 'fsdp', 'tensor', 'context')


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
  """A mesh over all devices.

  Args:
    sizes: axis -> number of devices; axes left out have size 1; one axis may be -1 and takes what is left.
    devices: default `jax.devices()`.

  Raises:
    InputError: an unknown axis, more than one -1, or sizes whose product is not the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  unknown = sorted(set(sizes) - set(AXES))
  if unknown:
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
  return jax.sharding.Mesh(np.asarray(devices).reshape(shape), AXES, axis_types=auto)
