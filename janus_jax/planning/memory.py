"""Memory that a compiled program needs of a device, and how much there is."""

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import jax

from janus_jax.planning.topologies import Topology

# Part of a GPU's memory that JAX takes with the flags of launch/flags (XLA_PYTHON_CLIENT_MEM_FRACTION).
GPU_FRACTION = 0.9


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of one device.

  Attributes:
    arguments: state and batch.
    temporaries: everything else in a step at its worst moment, with results that replace nothing; None where the
      compiler gave up.
    peaks: totals, with the program, by moment: in a `step`; at the `start` of the stage, when its state is made; while
      the `held-out` loss is measured, with the state beside it.
    available: bytes that the compiler may use.
  """

  arguments: int
  temporaries: int | None
  peaks: Mapping[str, int]
  available: int

  @property
  def worst(self) -> str:
    """Moment of the largest peak."""
    return max(self.peaks, key=self.peaks.get)

  @property
  def peak(self) -> int:
    return self.peaks[self.worst]

  @property
  def fits(self) -> bool:
    return self.peak <= self.available


def wanted_bytes(message: str) -> int | None:
  """Memory that a program needs which does not fit, by the TPU compiler's message; None for another message."""
  if not message.startswith('RESOURCE_EXHAUSTED'):
    return None
  # The first is an estimate before most of the work, the second the need of the finished program.
  forms = (r'total memory required[^(]*\(([\d.]+)([KMGT])\) exceeds available HBM', r'Used ([\d.]+)([KMGT]) of \S+ hbm')
  found = next(filter(None, (re.search(form, message) for form in forms)), None)
  return found and int(float(found.group(1)) * 1024 ** (1 + 'KMGT'.index(found.group(2))))


def memory_of(compiled: Any, topology: Topology) -> Memory:
  """Memory that a compiled program needs of one device while it runs."""
  found = compiled.memory_analysis()
  arguments, program = found.argument_size_in_bytes, found.generated_code_size_in_bytes
  if topology.chip is None:  # On CPUs the peak is that of the temporaries alone.
    temporaries = found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
  else:
    # Not the sum of the sizes: on TPUs temporaries also lie where donated arguments were, and are counted twice then.
    temporaries = found.peak_memory_in_bytes - arguments
  return Memory(arguments, temporaries, {'step': arguments + temporaries + program}, available_bytes(topology))


def held_bytes(tree: Any) -> int:
  """Bytes of the part of abstract arrays that one device holds."""
  return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def available_bytes(topology: Topology) -> int:
  """Memory of a device; simulated ones divide this machine's."""
  if topology.chip is not None:
    return int(topology.chip.device.memory * (GPU_FRACTION if topology.is_estimated else 1))
  return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // topology.num_devices
