"""Devices that are not there: names such as 'v5e-16', '2xv5e-256' or 'h100-8', and what a chip of each kind can do.

A program is compiled for TPUs as for real ones, by the TPU compiler in the `libtpu` package. The number in a name is
the one that a slice is sold under: of chips for v5e and v6e, of TensorCores, two per chip, for v5p and tpu7x. For GPUs
nothing is compiled: what they need is estimated (estimate.py); the number is that of all GPUs.
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
from janus_jax.sharding.accelerators import ACCELERATORS, GB


@dataclasses.dataclass(frozen=True)
class Chip:
  """A kind of chip as jax has it: one device, or two of which each has half of the chip (tpu7x).

  Attributes:
    name: what names of topologies begin with.
    device_kind: as jax calls it.
    dimensions: of the grid of chips.
    counted: what a chip counts for in the number of a name.
    devices: of a chip.
    most: chips of the largest slice; GPUs of a node.
    hbm_bytes: of a device, what the compiler may fill: a little less than what is sold.
    hbm_bandwidth: of a device, bytes per second.
    ici_bandwidth: of a device, bytes per second that come in from its neighbours in a slice, over all links at once; as
      many go out at the same time.
    dcn_bandwidth: of a device, bytes per second that its share of the host's network brings from other slices.
  """

  name: str
  device_kind: str
  dimensions: int
  counted: int
  devices: int
  most: int
  hbm_bytes: int
  hbm_bandwidth: float
  ici_bandwidth: float
  dcn_bandwidth: float


def _chip(name: str, dimensions: int, counted: int, devices: int, most: int, device_kind: str) -> Chip:
  device = ACCELERATORS[device_kind]
  speeds = device.memory_bandwidth, device.interconnect, device.network or GPU_NETWORK
  return Chip(name, device_kind, dimensions, counted, devices, most, device.memory, *speeds)


# Bytes per second that a GPU is taken to receive from other nodes: 400 Gbit/s.
GPU_NETWORK = 50 * GB
CHIPS = {
  chip.name: chip
  for chip in (
    _chip('v5e', 2, 1, 1, 256, 'TPU v5 lite'),
    _chip('v5p', 3, 2, 1, 4096, 'TPU v5'),
    _chip('v6e', 2, 1, 1, 256, 'TPU v6 lite'),
    _chip('tpu7x', 3, 2, 2, 4096, 'TPU7x'),
  )
}
GPUS = {
  name: _chip(name, 1, 1, 1, node, device_kind)
  for name, node, device_kind in (
    ('gb200', 72, 'NVIDIA GB200'),
    ('b200', 8, 'NVIDIA B200'),
    ('h200', 8, 'NVIDIA H200'),
    ('h100', 8, 'NVIDIA H100 80GB HBM3'),
    ('a100', 8, 'NVIDIA A100-SXM4-80GB'),
    ('l40s', 8, 'NVIDIA L40S'),
    ('rtx4090', 8, 'NVIDIA GeForce RTX 4090'),
  )
}
# libtpu asks the cloud what machine this is, complains where it is none, and lets one process in at a time.
LIBTPU_ENVIRONMENT = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}
# What people call them besides: names of Google Cloud's accelerator types, of generations, of libtpu.
ALIASES = {
  'v5litepod': 'v5e',
  'v5lite': 'v5e',
  '5e': 'v5e',
  '5p': 'v5p',
  'v6': 'v6e',
  '6e': 'v6e',
  'v6lite': 'v6e',
  'trillium': 'v6e',
  '7x': 'tpu7x',
  'v7': 'tpu7x',
  'v7x': 'tpu7x',
  'ironwood': 'tpu7x',
}
SMALLEST = {2: [2, 2], 3: [1, 2, 2]}  # Sides of the smallest grid of several chips, by dimensions.


@dataclasses.dataclass(frozen=True)
class Topology:
  """What a name stands for.

  Attributes:
    name: the name.
    chip: None for simulated CPU devices.
    slices: joined by the data-centre network; nodes of GPUs.
    grid: of the chips of a slice; of simulated devices and GPUs of a node their number.
  """

  name: str
  chip: Chip | None
  slices: int
  grid: tuple[int, ...]

  @property
  def num_chips(self) -> int:
    """Of all slices; a simulated device is one."""
    return self.slices * math.prod(self.grid)

  @property
  def is_estimated(self) -> bool:
    """Whether nothing is compiled for it."""
    return self.chip is not None and self.chip.name in GPUS

  @property
  def num_devices(self) -> int:
    return self.num_chips * (self.chip.devices if self.chip else 1)


def grids(chip: Chip) -> dict[int, tuple[int, ...]]:
  """The number in a name -> the grid of chips, from one chip to the largest slice."""
  found = {chip.counted: (1,) * chip.dimensions}
  sides = SMALLEST[chip.dimensions]
  while math.prod(sides) <= chip.most:
    # libtpu wants a side of a single chip last.
    found[math.prod(sides) * chip.counted] = tuple(sorted(sides, key=lambda side: (side == 1, side)))
    sides = sorted([2 * sides[0], *sides[1:]])
  return found


def parse_topology(name: str) -> Topology:
  """'v5e-16': a slice; '2xv5e-256': two of them; 'h100-8': GPUs; 'cpu-8': simulated devices of this machine.

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
    meant = _meant(name)
    hint = f'; did you mean {meant}?' if meant else ''
    raise InputError(
      f'topology is {name!r}: expected one of {kinds}, with 2x before a TPU for two slices; or cpu-N{hint}'
    )
  sizes = grids(CHIPS[kind])
  if int(number) not in sizes:
    raise InputError(f'topology is {name!r}: expected {kind}- and one of {", ".join(map(str, sizes))}')
  return Topology(name, CHIPS[kind], int(slices or 1), sizes[int(number)])


def _meant(name: str) -> str | None:
  """The topology that another spelling may stand for: 'V5E-16', 'v5litepod-16', '8xv5e', 'v5e-4x4', '2xcpu-8'."""
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
  """Devices to compile for. TPUs of a topology cannot run anything; simulated CPUs can.

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
  """Has this process compile for a topology and leave real accelerators alone. To be called before jax is used."""
  jax.config.update('jax_platforms', 'cpu')
  if topology.chip is None or topology.is_estimated:
    jax.config.update('jax_num_cpu_devices', topology.num_devices)
  for name, value in LIBTPU_ENVIRONMENT.items():
    os.environ.setdefault(name, value)
