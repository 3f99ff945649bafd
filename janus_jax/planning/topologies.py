"""Devices that are not there, by names such as 'v5e-16', '2xv5e-256' or 'h100-8'.

The TPU compiler in the `libtpu` package compiles for TPUs that are not there as for real ones. The number in a name is
the one that a slice is sold under: chips for v5e and v6e, TensorCores, two per chip, for v5p and tpu7x. For GPUs it
counts all GPUs, and nothing is compiled: their needs are estimated (compile.py).
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from janus_jax.errors import InputError
from janus_jax.sharding.accelerators import ACCELERATORS, GB, Accelerator

# Bytes per second that a GPU is taken to receive from other nodes: 400 Gbit/s.
GPU_NETWORK = 50 * GB


@dataclasses.dataclass(frozen=True)
class Chip:
  """Kind of chip as jax has it: one device, or two of which each has half of the chip (tpu7x).

  Attributes:
    name: prefix of the names of its topologies.
    device_kind: jax's name for its devices.
    dimensions: dimensions of the grid of chips.
    counted: amount that a chip adds to the number in a name.
    devices: devices per chip.
    most: chips of the largest slice; GPUs of a node.
    aliases: other names in use: Google Cloud's accelerator types, generations, libtpu's.
  """

  name: str
  device_kind: str
  dimensions: int = 1
  counted: int = 1
  devices: int = 1
  most: int = 8
  aliases: tuple[str, ...] = ()

  @property
  def device(self) -> Accelerator:
    return ACCELERATORS[self.device_kind]


_TPUS = (
  Chip('v5e', 'TPU v5 lite', 2, most=256, aliases=('v5litepod', 'v5lite', '5e')),
  Chip('v5p', 'TPU v5', 3, counted=2, most=4096, aliases=('5p',)),
  Chip('v6e', 'TPU v6 lite', 2, most=256, aliases=('v6', '6e', 'v6lite', 'trillium')),
  Chip('tpu7x', 'TPU7x', 3, counted=2, devices=2, most=4096, aliases=('7x', 'v7', 'v7x', 'ironwood')),
)
_GPUS = (
  Chip('gb200', 'NVIDIA GB200', most=72),
  Chip('b200', 'NVIDIA B200'),
  Chip('h200', 'NVIDIA H200'),
  Chip('h100', 'NVIDIA H100 80GB HBM3'),
  Chip('a100', 'NVIDIA A100-SXM4-80GB'),
  Chip('l40s', 'NVIDIA L40S'),
  Chip('rtx4090', 'NVIDIA GeForce RTX 4090'),
)
CHIPS, GPUS = ({chip.name: chip for chip in chips} for chips in (_TPUS, _GPUS))
ALIASES = {alias: chip.name for chip in _TPUS for alias in chip.aliases}
# libtpu asks the cloud what machine this is, complains where it is none, and lets one process in at a time.
LIBTPU_ENVIRONMENT = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """Devices that a name stands for.

  Attributes:
    chip: None for simulated CPU devices.
    slices: slices joined by the data-centre network; nodes of GPUs.
    grid: sides of a slice's grid of chips; number of simulated devices, or of a node's GPUs.
  """

  name: str
  chip: Chip | None
  slices: int
  grid: tuple[int, ...]

  @property
  def num_chips(self) -> int:
    """Chips of all slices; a simulated device is one."""
    return self.slices * math.prod(self.grid)

  @property
  def is_estimated(self) -> bool:
    """True for GPUs, for which nothing is compiled."""
    return self.chip is not None and self.chip.name in GPUS

  @property
  def num_devices(self) -> int:
    return self.num_chips * (self.chip.devices if self.chip else 1)


def grids(chip: Chip) -> dict[int, tuple[int, ...]]:
  """Grids of chips by the number in a name, from one chip to the largest slice."""
  found = {chip.counted: (1,) * chip.dimensions}
  sides = {2: [2, 2], 3: [1, 2, 2]}[chip.dimensions]  # The smallest grid of several chips.
  while math.prod(sides) <= chip.most:
    # libtpu wants a side of a single chip last.
    found[math.prod(sides) * chip.counted] = tuple(sorted(sides, key=lambda side: (side == 1, side)))
    sides = sorted([2 * sides[0], *sides[1:]])
  return found


def parse_topology(name: str) -> Topology:
  """Parses 'v5e-16', a slice; '2xv5e-256', two of them; 'h100-8', GPUs; 'cpu-8', simulated devices of this machine.

  Raises:
    InputError: another name, with the one that may be meant.
  """
  match = re.fullmatch(r'(?:([1-9]\d{0,3})x)?([a-z0-9]+)-([1-9]\d{0,5})', name)
  slices, kind, number = match.groups() if match else (None, '', '0')
  if kind == 'cpu' and slices is None:
    return Topology(name, None, 1, (int(number),))
  if kind in GPUS and slices is None:
    nodes, rest = divmod(int(number), GPUS[kind].most)
    if nodes and rest:
      raise InputError(f'topology is {name!r}: expected up to {GPUS[kind].most} GPUs, or a multiple of that')
    return Topology(name, GPUS[kind], max(nodes, 1), (rest or GPUS[kind].most,))
  if kind not in CHIPS:
    kinds = ', '.join(f'{kind}-N' for kind in (*CHIPS, *GPUS))
    hint = f'; did you mean {meant}?' if (meant := _meant(name)) else ''
    raise InputError(
      f'topology is {name!r}: expected one of {kinds}, with 2x before a TPU for two slices; or cpu-N{hint}'
    )
  sizes = grids(CHIPS[kind])
  if int(number) not in sizes:
    raise InputError(f'topology is {name!r}: expected {kind}- and one of {", ".join(map(str, sizes))}')
  return Topology(name, CHIPS[kind], int(slices or 1), sizes[int(number)])


def _meant(name: str) -> str | None:
  """Topology that another spelling may stand for: 'V5E-16', 'v5litepod-16', '8xv5e', 'v5e-4x4', '2xcpu-8'."""
  kinds = '|'.join(sorted((*CHIPS, *ALIASES, *GPUS, 'cpu'), key=len, reverse=True))
  form = rf'(?:(\d{{1,4}})x-?)?(?:tpu-?)??({kinds})(?:-?(\d{{1,6}}(?:x\d{{1,4}})*))?'
  match = re.fullmatch(form, re.sub(r'[\s_:]+', '-', name.strip().lower()))
  if not match:
    return None
  slices, kind, size = match.groups()
  kind = ALIASES.get(kind, kind)
  counted = CHIPS[kind].counted if kind in CHIPS else 1
  sides = [int(side) for side in (size or '').split('x') if side]
  number = sides[0] if len(sides) == 1 else math.prod(sides) * counted  # '4x4' are chips.
  if not size or kind == 'cpu' or kind in GPUS:  # Not slices, but so many chips or devices: '8xh100', '2xcpu-8'.
    number, slices = int(slices or bool(size)) * (number if size else counted), None
  before = f'{int(slices)}x' if slices and int(slices) > 1 else ''
  if number < 1 or (kind in CHIPS and number not in grids(CHIPS[kind])):
    return None
  return f'{before}{kind}-{number}'


def abstract_devices(topology: Topology) -> Sequence[jax.Device]:
  """Devices to compile for; only simulated CPUs can run anything.

  Raises:
    InputError: the TPU compiler is not installed; or there are fewer simulated devices (`prepare_process`).
  """
  if topology.chip is None or topology.is_estimated:
    devices = jax.devices('cpu')
    if len(devices) < topology.num_devices:
      raise InputError(f'topology {topology.name}: expected at least so many devices: jax has {len(devices)}')
    return devices[: topology.num_devices]
  if importlib.util.find_spec('libtpu') is None:
    raise InputError(
      f"topology {topology.name} needs the TPU compiler: expected `pip install 'jax[tpu]'` (extra `tpu`)"
    )
  sides = 'x'.join(map(str, topology.grid))
  options = {'num_slices': topology.slices} if topology.slices > 1 else {}
  return topologies.get_topology_desc(f'{topology.chip.name}:{sides}', 'tpu', **options).devices


def prepare_process(topology: Topology) -> None:
  """Prepares this process to compile for a topology without real accelerators. Call it before jax is used."""
  jax.config.update('jax_platforms', 'cpu')
  if topology.chip is None or topology.is_estimated:
    jax.config.update('jax_num_cpu_devices', topology.num_devices)
  for name, value in LIBTPU_ENVIRONMENT.items():
    os.environ.setdefault(name, value)
