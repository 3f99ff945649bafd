"""What a compiled program needs of a device's memory, and how much there is."""

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from janus_jax.planning.topologies import Topology

# What JAX takes of a GPU's memory with the flags of launch/flags (XLA_PYTHON_CLIENT_MEM_FRACTION).
GPU_SHARE = 0.9


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of one device.

  Attributes:
    arguments: state and batch.
    temporaries: what else a step has at its worst moment, results that replace nothing included; None if that is not
      known, because the compiler gave up.
    peaks: by moment, all of it, the program too: in a `step`; at the `start` of the stage, when its state is made;
      while the `held-out` loss is measured, with the state beside it.
    available: to the compiler.
  """

  arguments: int
  temporaries: int | None
  peaks: Mapping[str, int]
  available: int

  @property
  def worst(self) -> str:
    """The moment of the largest peak."""
    return max(self.peaks, key=self.peaks.get)

  @property
  def peak(self) -> int:
    return self.peaks[self.worst]

  @property
  def fits(self) -> bool:
    return self.peak <= self.available


def wanted_bytes(message: str) -> int | None:
  """How much memory the TPU compiler says a program that does not fit would need; None for another message."""
  if not message.startswith('RESOURCE_EXHAUSTED'):
    return None
  # The first is what an estimate says before most of the work, the second what the finished program would need.
  forms = (r'total memory required[^(]*\(([\d.]+)([KMGT])\) exceeds available HBM', r'Used ([\d.]+)([KMGT]) of \S+ hbm')
  found = next(filter(None, (re.search(form, message) for form in forms)), None)
  if found is None:
    return None
  return int(float(found.group(1)) * 1024 ** (1 + 'KMGT'.index(found.group(2))))


def memory_of(compiled: Any, wanted: int | None, arguments: int, topology: Topology) -> Memory:
  """What a program needs of one device while it runs.

  Args:
    compiled: the program; None if the compiler gave up.
    wanted: bytes that it would have needed then.
    arguments: bytes of its arguments.
    topology: where.
  """
  available = available_bytes(topology)
  if wanted is not None:
    return Memory(arguments, None, {'step': wanted}, available)
  found = compiled.memory_analysis()
  arguments, program = found.argument_size_in_bytes, found.generated_code_size_in_bytes
  if topology.chip is not None:
    # Not the sum of the sizes: on TPUs temporaries also lie where donated arguments were, and are counted twice then.
    peak = found.peak_memory_in_bytes
    return Memory(arguments, peak - arguments, {'step': peak + program}, available)
  # On CPUs the peak is that of the temporaries alone.
  temporaries = found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
  return Memory(arguments, temporaries, {'step': arguments + temporaries + program}, available)


def held_bytes(tree: Any) -> int:
  """Bytes of the part of abstract arrays that one device holds."""
  shards = [(leaf.sharding.shard_shape(leaf.shape), leaf.dtype) for leaf in jax.tree.leaves(tree)]
  return sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in shards)


def available_bytes(topology: Topology) -> int:
  """Memory of a device; of a simulated one its share of this machine's."""
  if topology.chip is not None:
    return int(topology.chip.hbm_bytes * (GPU_SHARE if topology.is_estimated else 1))
  return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // topology.num_devices
