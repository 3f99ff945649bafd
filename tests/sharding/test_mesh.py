"""Meshes: their sizes, how devices are laid out in them, which process feeds which rows."""

import dataclasses

import jax
import numpy as np
import pytest

from janus_jax.errors import InputError
from janus_jax.sharding.mesh import AXES, make_mesh, process_batch_shard


@dataclasses.dataclass(frozen=True)
class FakeDevice:
  """What the layout reads of a device."""

  id: int
  process_index: int
  platform: str = 'cpu'
  device_kind: str = 'cpu'
  coords: tuple[int, int, int] = (0, 0, 0)
  core_on_chip: int = 0
  slice_index: int = 0


def hosts(processes: int, devices_each: int, platform: str = 'cpu') -> list[FakeDevice]:
  """Devices in jax's order: process after process. Each has a slice number of its process, as on GPUs."""
  return [
    FakeDevice(id=i, process_index=i // devices_each, platform=platform, slice_index=i // devices_each)
    for i in range(processes * devices_each)
  ]


def tpu_slices(slices: int, side: int) -> list[FakeDevice]:
  """TPU v6e slices of side x side chips, process after process; four chips (2 x 2) to a process."""
  devices = []
  for number in range(slices):
    for host in range((side // 2) ** 2):
      for chip in range(4):
        x, y = 2 * (host % (side // 2)) + chip % 2, 2 * (host // (side // 2)) + chip // 2
        process = number * (side // 2) ** 2 + host
        devices.append(FakeDevice(len(devices), process, 'tpu', 'TPU v6 lite', (x, y, 0), slice_index=number))
  return devices


def test_mesh_has_all_axes_and_fills_one():
  mesh = make_mesh({'tensor': 2, 'fsdp': -1})
  assert dict(mesh.shape) == {'data': 1, 'fsdp': 4, 'tensor': 2, 'context': 1}
  assert mesh.axis_names == AXES
  # Linen's constraints are silently wrong on Explicit axes, jax's default.
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize(
  ('sizes', 'message'),
  [
    ({'model': 2}, "mesh axis 'model' is unknown: expected some of data, fsdp, tensor, context"),
    ({'data': -1, 'fsdp': -1}, 'at most one -1'),
    ({'data': 3}, 'need 3 devices: there are 8'),
    ({'tensor': 3, 'data': -1}, 'need 6 devices: there are 8'),
    ({'data': 0}, 'expected positive numbers'),
  ],
)
def test_meshes_that_do_not_fit(sizes, message):
  with pytest.raises(InputError, match=message):
    make_mesh(sizes)


@pytest.mark.parametrize('platform', ['cpu', 'gpu'])
def test_inner_axes_stay_within_a_host(platform):
  mesh = make_mesh({'fsdp': -1, 'tensor': 4, 'context': 2}, hosts(4, 8, platform))
  assert dict(mesh.shape) == {'data': 1, 'fsdp': 4, 'tensor': 4, 'context': 2}
  for inner in mesh.devices.reshape(4, 8):
    assert len({device.process_index for device in inner}) == 1


def test_inner_axes_of_a_tpu_run_along_its_wires():
  mesh = make_mesh({'fsdp': 4, 'tensor': 4}, tpu_slices(1, 4))
  for axis in (1, 2):
    for line in np.moveaxis(mesh.devices, axis, -1).reshape(-1, 4):
      assert sorted(len({device.coords[i] for device in line}) for i in (0, 1)) == [1, 4]


def test_only_data_crosses_tpu_slices():
  mesh = make_mesh({'data': 4, 'fsdp': -1, 'tensor': 2}, tpu_slices(2, 4))
  assert dict(mesh.shape) == {'data': 4, 'fsdp': 4, 'tensor': 2, 'context': 1}
  for row, devices in enumerate(mesh.devices):
    assert {device.slice_index for device in devices.flat} == {row // 2}


def test_data_must_divide_over_tpu_slices():
  with pytest.raises(InputError, match="mesh axis 'data' is 1: expected a multiple of 2, the number of TPU slices"):
    make_mesh({'fsdp': -1}, tpu_slices(2, 4))


# --- which rows a process feeds


def shares(sizes, devices) -> list[tuple[int, int]]:
  mesh = make_mesh(sizes, devices)
  return [process_batch_shard(mesh, process) for process in range(devices[-1].process_index + 1)]


@pytest.mark.parametrize(
  ('sizes', 'expected'),
  [
    ({'data': 16}, [(0, 4), (1, 4), (2, 4), (3, 4)]),
    ({'data': 2, 'fsdp': 4, 'tensor': 2}, [(0, 4), (1, 4), (2, 4), (3, 4)]),
    ({'fsdp': 4, 'tensor': 2, 'context': 2}, [(0, 4), (1, 4), (2, 4), (3, 4)]),
    # Two processes for each row: they must be given the same rows.
    ({'fsdp': 2, 'tensor': 8}, [(0, 2), (0, 2), (1, 2), (1, 2)]),
    ({'context': 16}, [(0, 1), (0, 1), (0, 1), (0, 1)]),
  ],
)
def test_processes_with_the_same_rows_have_the_same_share(sizes, expected):
  assert shares(sizes, hosts(4, 4)) == expected


def test_one_process_feeds_everything():
  assert process_batch_shard(make_mesh({'fsdp': 4, 'tensor': 2})) == (0, 1)


def test_shares_of_a_tpu_cover_all_rows_once():
  """Hosts are squares of four chips: with an axis of four along one side, two hosts hold each pair of rows."""
  devices = tpu_slices(2, 4)
  mesh = make_mesh({'data': 2, 'fsdp': 4, 'tensor': 4}, devices)
  found = [process_batch_shard(mesh, process) for process in range(8)]
  assert {count for _, count in found} == {4}
  rows: dict[int, list[set[int]]] = {}
  for process, (index, _) in enumerate(found):
    mine = {row for row, part in enumerate(mesh.devices.reshape(8, 4)) for d in part if d.process_index == process}
    rows.setdefault(index, []).append(mine)
  assert all(len(mine) == 2 and all(other == mine[0] for other in mine) for mine in rows.values())
  assert set().union(*(mine[0] for mine in rows.values())) == set(range(8))
  assert [min(rows[index][0]) for index in range(4)] == sorted(min(mine[0]) for mine in rows.values())


@pytest.mark.parametrize(
  'devices',
  [
    # Rows of two devices over hosts of three: the second row is half of each.
    [FakeDevice(i, i // 3) for i in range(6)],
    # Whole rows, but two of them for one host and one for the other.
    [FakeDevice(i, int(i > 3)) for i in range(6)],
  ],
)
def test_unequal_shares_are_refused(devices):
  mesh = make_mesh({'data': 3, 'tensor': 2}, devices)
  with pytest.raises(InputError, match='unequal shares of its 3 blocks of rows'):
    process_batch_shard(mesh, 0)
