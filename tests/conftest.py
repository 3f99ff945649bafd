"""Settings of every test run: CPU, eight simulated devices, exact matrix products."""

import importlib.metadata
import os
import pathlib
import signal

# Tests that are started in the background or by nohup ignore these, and so would all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('HF_HUB_OFFLINE', '1')
# Tests compile a lot and run little: LLVM's costly passes would be most of the suite's time. Half of the rest is the
# newer emitter of fused loops, where jaxlib has two.
FAST_COMPILE = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  FAST_COMPILE += ' --xla_cpu_use_fusion_emitters=false'
os.environ['XLA_FLAGS'] = f'{FAST_COMPILE} {os.environ.get("XLA_FLAGS", "")}'
# What one process has compiled the others find, and the next run of the suite, which takes half the time then.
COMPILED = pathlib.Path(__file__).parent.parent / '.pytest_cache' / 'compiled'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(COMPILED))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_default_matmul_precision', 'highest')


@pytest.fixture(scope='module', autouse=True)
def few_memory_maps():
  """Forgets compiled programs once they take half of the 65,530 memory maps that Linux allows a process.

  A program takes some for each of its kernels, and the one that gets no more crashes the process.
  """
  yield
  maps = pathlib.Path('/proc/self/maps')
  if maps.exists() and len(maps.read_bytes().splitlines()) > 30_000:
    jax.clear_caches()
