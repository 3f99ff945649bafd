"""The machine that is measured, asked in another process: whoever starts parts must not hold the device itself.

python -m janus_jax.benchmarking.machine      # one JSON object
"""

import dataclasses
import importlib.util
import json
import os
import platform
import subprocess
import sys

from janus_jax.errors import InputError
from janus_jax.sharding.accelerators import ACCELERATORS

# The file of launch/flags for a kind of device, by the beginning of its name; others run without flags.
FLAGS = {
  'NVIDIA H100': 'h100',
  'NVIDIA H200': 'h100',
  'NVIDIA GH200': 'h100',
  'NVIDIA A100': 'a100',
  'NVIDIA B200': 'b200',
  'NVIDIA GB200': 'b200',
  'TPU v5 lite': 'v5e',
  'TPU v5e': 'v5e',
  'TPU v5': 'v5p',
  'TPU v6': 'v6e',
  'cpu': 'cpu',
}


@dataclasses.dataclass(frozen=True)
class Machine:
  """Machine that parts run on.

  Attributes:
    platform: 'gpu', 'tpu', 'cpu' or another of jax's.
    kind: `jax.Device.device_kind`.
    devices: number that jax sees.
    memory: bytes of a device; a CPU's are the host's.
    versions: driver, CUDA or libtpu, jax, jaxlib and Python, for people.
    note: reason why a card that is there is not measured; '' if none is left out.
  """

  platform: str
  kind: str
  devices: int
  memory: int
  versions: str
  note: str

  @property
  def flags(self) -> str | None:
    """The name of its file in launch/flags."""
    return next((name for start, name in FLAGS.items() if self.kind.startswith(start)), None)


def read_machine() -> Machine:
  """Asks another process; raises InputError where jax finds no device."""
  asked = subprocess.run([sys.executable, '-m', 'janus_jax.benchmarking.machine'], capture_output=True, text=True)
  lines = asked.stderr.strip().splitlines()
  if asked.returncode:
    raise InputError(f'jax finds no device: {lines[-1] if lines else f"exit code {asked.returncode}"}')
  machine = Machine(**json.loads(asked.stdout.splitlines()[-1]))
  card = _nvidia('name')
  if machine.platform == 'cpu' and card:
    reason = next((line for line in lines if 'cuda' in line.lower()), 'no CUDA plugin of jax is installed')
    note = f'{card} (driver {_nvidia("driver_version")}) is here, but jax does not see it: {reason[:200]}'
    machine = dataclasses.replace(machine, note=note)
  return machine


def _nvidia(field: str) -> str:
  """The driver's answer for the first card, '' where there is none."""
  command = ['nvidia-smi', f'--query-gpu={field}', '--format=csv,noheader']
  try:
    return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.partition('\n')[0].strip()
  except (OSError, subprocess.TimeoutExpired):
    return ''


def _this_machine() -> Machine:
  import jax
  import jax.extend
  import jaxlib

  device = jax.devices()[0]
  versions = [f'jax {jax.__version__}', f'jaxlib {jaxlib.__version__}', f'Python {platform.python_version()}']
  if device.platform == 'cpu':
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  else:
    known = ACCELERATORS.get(device.device_kind)
    memory = known.memory if known else (device.memory_stats() or {}).get('bytes_limit', 0)
    versions.insert(0, jax.extend.backend.get_backend().platform_version.splitlines()[0])
  if device.platform == 'gpu' and (driver := _nvidia('driver_version')):
    versions.insert(0, f'driver {driver}')
    # Decides which attention kernel Hopper and Blackwell train with.
    versions.append('tokamax' if importlib.util.find_spec('tokamax') else 'without tokamax')
  words = ', '.join(filter(None, versions))
  return Machine(device.platform, device.device_kind, jax.device_count(), memory, words, '')


if __name__ == '__main__':
  print(json.dumps(dataclasses.asdict(_this_machine())))
