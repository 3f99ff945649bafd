"""Figures of the hardware by the names that jax gives devices, as data sheets have them."""

import pytest

from janus_jax.sharding.accelerators import ACCELERATORS, GIB, float32_peak_flops, peak_flops


@pytest.mark.parametrize(
  ('kind', 'bfloat16', 'float32'),
  [
    ('TPU v4', 275, 275 / 6),
    ('TPU v5 lite', 197, 197 / 6),
    ('TPU v5p', 459, 459 / 6),
    ('TPU v5', 459, 459 / 6),
    ('TPU v6 lite', 918, 918 / 6),
    ('TPU7x', 1153.5, 2307 / 12),  # A chip is two devices.
    ('NVIDIA H100 80GB HBM3', 989, 67),
    ('NVIDIA H100 NVL', 835, 60),
    ('NVIDIA H100 PCIe', 756, 51),
    ('NVIDIA H200', 989, 67),
    ('NVIDIA GH200 480GB', 989, 67),
    ('NVIDIA B200', 2250, 75),
    ('NVIDIA GB200', 2500, 80),
    ('NVIDIA A100-SXM4-40GB', 312, 19.5),
    ('NVIDIA A100 80GB PCIe', 312, 19.5),
    ('NVIDIA L4', 121, 30.3),
    ('NVIDIA L40', 181, 90.5),
    ('NVIDIA L40S', 362, 91.6),
    ('NVIDIA A10', 125, 31.2),
    ('NVIDIA A10G', 70, 35),
    ('NVIDIA GeForce RTX 4090', 165.2, 82.6),
    ('NVIDIA GeForce RTX 3090', 71, 35.6),
  ],
)
def test_peaks(kind, bfloat16, float32):
  assert peak_flops(kind) == pytest.approx(bfloat16 * 1e12)
  assert float32_peak_flops(kind) == pytest.approx(float32 * 1e12)


@pytest.mark.parametrize(
  'kind', ['cpu', 'NVIDIA GeForce RTX 9090', 'NVIDIA GeForce RTX 4090 D', 'NVIDIA H100 80GB HBM3 MIG 1g.10gb', 'L40']
)
def test_what_is_not_known_has_no_peak(kind):
  """A slice of a GPU and a smaller board of the same name least of all."""
  assert peak_flops(kind) is float32_peak_flops(kind) is None


def test_memory_and_its_bandwidth_are_those_of_the_board():
  found = {kind: (device.memory / GIB, device.memory_bandwidth / 1e9) for kind, device in ACCELERATORS.items()}
  assert found['NVIDIA A100-SXM4-40GB'] == (40, 1555)
  assert found['NVIDIA A100-SXM4-80GB'] == (80, 2039)
  assert found['NVIDIA H100 NVL'] == (94, 3900)
  assert found['NVIDIA L40'] == (48, 864)
  assert found['NVIDIA L4'] == (24, 300)
  assert found['TPU7x'] == (pytest.approx(94.74), 3690)


def test_what_must_hold_of_every_kind():
  for kind, device in ACCELERATORS.items():
    assert device.float32_flops < device.bfloat16_flops, kind
    # Data sheets are in GB and TB: a slip of a thousand shows.
    assert 8 <= device.memory / GIB < 200, kind
    assert 10 < device.bfloat16_flops / device.memory_bandwidth < 1000, kind
    assert device.interconnect is None or device.interconnect < device.memory_bandwidth, kind
