"""Peak figures of each kind of jax device: the one table of the hardware's figures."""

import dataclasses

GB, GIB, TERA = 1e9, 2**30, 1e12


@dataclasses.dataclass(frozen=True)
class Accelerator:
  """A kind of jax device.

  Attributes:
    bfloat16_flops: FLOP/s of dense products.
    float32_flops: FLOP/s of products at precision HIGHEST.
    memory: bytes: on v5e, v5p, v6e and TPU7x those that the compiler may fill, on others those that are sold.
    memory_bandwidth: bytes per second.
    interconnect: bytes per second that come in from other devices, over all links at once; as many go out at the same
      time. ICI of a TPU slice, NVLink of boards that all have it, else PCIe; None if not known.
    network: bytes per second that the host's network brings in for the device; None if it depends on the host.
  """

  bfloat16_flops: float
  float32_flops: float
  memory: int
  memory_bandwidth: float
  interconnect: float | None = None
  network: float | None = None


def _tpu(
  tflops: float, gib: float, memory: float, ici: float | None = None, network: float | None = None
) -> Accelerator:
  """TFLOP/s, GiB and GB/s of a TPU, on which a float32 product at HIGHEST is six bfloat16 ones."""
  links = [None if value is None else value * GB for value in (ici, network)]
  return Accelerator(tflops * TERA, tflops * TERA / 6, int(gib * GIB), memory * GB, *links)


def _gpu(tflops: float, float32_tflops: float, gib: int, memory: float, interconnect: float) -> Accelerator:
  """TFLOP/s, GiB and GB/s of a GPU, whose float32 at HIGHEST does not go through the tensor cores, having no TF32."""
  return Accelerator(tflops * TERA, float32_tflops * TERA, gib * GIB, memory * GB, interconnect * GB)


# By `jax.Device.device_kind` to the letter: part of a name would take an L40 for an L4, a GB200 for a B200, and a slice
# of a GPU (MIG) for the whole.
#
# TPUs: docs.cloud.google.com/tpu/docs, system architecture of each version, whose ICI figures count both directions; v4
# lite: Jouppi et al. 2021 (ISCA), "Ten Lessons From Three Generations". Memory that the compiler may fill: what libtpu
# 0.0.52 says where a program does not fit. A chip of v2, v3 and TPU7x is two devices of half the chip each; one of v4
# and v5p, which have two cores too, is one.
#
# NVIDIA: data sheets of each board, without sparsity; of a GB200 and a B200 those of the GB200 NVL72 and the HGX B200,
# by GPU; A10G: that of AWS; RTX: appendix A of the whitepapers of Ada and GA102 (accumulating in float32). NVLink and
# PCIe figures there count both directions. A V100 has no bfloat16: this is float16.
ACCELERATORS: dict[str, Accelerator] = {
  'TPU v2': _tpu(22.5, 8, 350),
  'TPU v3': _tpu(61.5, 16, 450),
  'TPU v4 lite': _tpu(138, 8, 614),
  'TPU v4': _tpu(275, 32, 1228),
  'TPU v5 lite': _tpu(197, 15.75, 819, 200, 3.125),
  'TPU v5e': _tpu(197, 15.75, 819, 200, 3.125),
  'TPU v5': _tpu(459, 95.73, 2765, 600, 6.25),
  'TPU v5p': _tpu(459, 95.73, 2765, 600, 6.25),
  'TPU v6 lite': _tpu(918, 31.24, 1638, 400, 12.5),
  'TPU v6e': _tpu(918, 31.24, 1638, 400, 12.5),
  'TPU7x': _tpu(2307 / 2, 94.74, 7380 / 2, 300, 6.25),
  'NVIDIA GB200': _gpu(2500, 80, 186, 8000, 900),
  'NVIDIA B200': _gpu(2250, 75, 180, 8000, 900),
  'NVIDIA GH200 144G HBM3e': _gpu(989, 67, 144, 4900, 450),
  'NVIDIA GH200 480GB': _gpu(989, 67, 96, 4000, 450),  # 480 GB are the CPU's.
  'NVIDIA H200': _gpu(989, 67, 141, 4800, 450),
  'NVIDIA H200 NVL': _gpu(835, 60, 141, 4800, 64),
  'NVIDIA H100 80GB HBM3': _gpu(989, 67, 80, 3350, 450),  # SXM.
  'NVIDIA H100 NVL': _gpu(835, 60, 94, 3900, 64),
  'NVIDIA H100 PCIe': _gpu(756, 51, 80, 2000, 64),
  'NVIDIA A100-SXM4-80GB': _gpu(312, 19.5, 80, 2039, 300),
  'NVIDIA A100-SXM4-40GB': _gpu(312, 19.5, 40, 1555, 300),
  'NVIDIA A100 80GB PCIe': _gpu(312, 19.5, 80, 1935, 32),
  'NVIDIA A100-PCIE-40GB': _gpu(312, 19.5, 40, 1555, 32),
  'NVIDIA L40S': _gpu(362, 91.6, 48, 864, 32),
  'NVIDIA L40': _gpu(181, 90.5, 48, 864, 32),
  'NVIDIA L4': _gpu(121, 30.3, 24, 300, 32),
  'NVIDIA A10G': _gpu(70, 35, 24, 600, 32),
  'NVIDIA A10': _gpu(125, 31.2, 24, 600, 32),
  'NVIDIA GeForce RTX 4090': _gpu(165.2, 82.6, 24, 1008, 32),
  'NVIDIA GeForce RTX 3090': _gpu(71, 35.6, 24, 936, 32),
  'Tesla V100-SXM2-32GB': _gpu(125, 15.7, 32, 900, 150),
  'Tesla V100-SXM2-16GB': _gpu(125, 15.7, 16, 900, 150),
  'Tesla V100-PCIE-32GB': _gpu(112, 14, 32, 900, 16),
  'Tesla V100-PCIE-16GB': _gpu(112, 14, 16, 900, 16),
}


def peak_flops(device_kind: str) -> float | None:
  """Dense bfloat16 FLOP/s of a device by its `jax.Device.device_kind`; None for a CPU or a kind that is not known."""
  found = ACCELERATORS.get(device_kind)
  return found and found.bfloat16_flops


def float32_peak_flops(device_kind: str) -> float | None:
  """FLOP/s of float32 products at precision HIGHEST; None as in `peak_flops`."""
  found = ACCELERATORS.get(device_kind)
  return found and found.float32_flops
