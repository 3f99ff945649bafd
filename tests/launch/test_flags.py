"""The flag files: every flag explained, and known to the XLA and the libtpu that are installed."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest
from launch.commands import ROOT

FILES = sorted((ROOT / 'launch' / 'flags').glob('*.env'))
ACCELERATORS = [path.stem for path in FILES]
TOPOLOGIES = {'v5e': 'v5e:4x4', 'v5p': 'v5p:2x2x2', 'v6e': 'v6e:4x4'}


def values(accelerator: str, name: str) -> list[str]:
  lines = (ROOT / 'launch' / 'flags' / f'{accelerator}.env').read_text().splitlines()
  return [line.removeprefix(f'{name}=') for line in lines if line.startswith(f'{name}=')]


@pytest.mark.parametrize('path', FILES, ids=ACCELERATORS)
def test_every_flag_has_a_comment_of_its_own_above_it(path):
  lines = path.read_text().splitlines()
  assert lines[0].startswith('# ')
  for number, line in enumerate(lines):
    if line and not line.startswith('#'):
      assert re.fullmatch(r'[A-Z_]+=\S+', line), line
      assert lines[number - 1].startswith('# '), line
      # What heads the file is no comment on its first flag.
      assert '' in lines[:number], line


@pytest.mark.parametrize('path', FILES, ids=ACCELERATORS)
def test_no_flag_is_given_twice(path):
  lines = [line for line in path.read_text().splitlines() if line and not line.startswith('#')]
  flags = [line.split('=')[1] if line.split('=')[1].startswith('--') else line.split('=')[0] for line in lines]
  assert len(flags) == len(set(flags))


@pytest.mark.parametrize('accelerator', ACCELERATORS)
def test_nothing_is_taken_out_of_cuda_graphs(accelerator):
  """A list without + replaces XLA's own: what it leaves out cuts the graph of a decode step."""
  name = '--xla_gpu_enable_command_buffer='
  lists = [flag.removeprefix(name) for flag in values(accelerator, 'XLA_FLAGS') if flag.startswith(name)]
  assert all(kind.startswith('+') for kinds in lists for kind in kinds.split(','))


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
  return subprocess.run(
    [sys.executable, '-c', code, *arguments],
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', **environment},
    capture_output=True,
    text=True,
    timeout=300,
  )


@pytest.mark.parametrize('accelerator', [name for name in ACCELERATORS if values(name, 'XLA_FLAGS')])
def test_xla_knows_the_flags(accelerator):
  # A flag unknown to XLA ends the program. The CPU's XLA knows those of the GPU.
  flags = ' '.join(values(accelerator, 'XLA_FLAGS'))
  result = run('import jax; print(jax.devices())', XLA_FLAGS=flags)
  assert result.returncode == 0, result.stderr


def test_a_flag_that_xla_does_not_know_would_be_seen():
  flags = ' '.join([*values('h100', 'XLA_FLAGS'), '--xla_gpu_no_such_flag=1'])
  assert 'xla_gpu_no_such_flag' in run('import jax; jax.devices()', XLA_FLAGS=flags).stderr


# Weights over all chips: what there is to gather, overlap and fuse. To know a flag is not enough: libtpu may refuse to
# compile with it for the chip.
COMPILE = """
import sys
import jax, numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
devices = topologies.get_topology_desc(platform='tpu', topology_name=sys.argv[1]).devices
mesh = Mesh(np.array(devices), ('fsdp',), axis_types=(AxisType.Auto,))
array = jax.ShapeDtypeStruct((1024, 1024), 'bfloat16', sharding=NamedSharding(mesh, PartitionSpec('fsdp')))
jax.jit(lambda x, w: (x @ w).sum()).lower(array, array).compile()
"""


def compiled(topology: str, flags: str) -> subprocess.CompletedProcess[str]:
  if importlib.util.find_spec('libtpu') is None:
    pytest.skip('libtpu is not installed: pip install janus_jax[tpu]')
  # Several tests may hold the compiler at once.
  environment = {'TPU_SKIP_MDS_QUERY': '1', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1', 'LIBTPU_INIT_ARGS': flags}
  return run(COMPILE, topology, **environment)


@pytest.mark.parametrize('accelerator', sorted(TOPOLOGIES))
def test_libtpu_compiles_for_the_chip_with_the_flags(accelerator):
  result = compiled(TOPOLOGIES[accelerator], ' '.join(values(accelerator, 'LIBTPU_INIT_ARGS')))
  assert result.returncode == 0, result.stderr


def test_what_libtpu_does_not_take_would_be_seen():
  assert 'Unknown command line flag' in compiled('v6e:4x4', '--xla_tpu_no_such_flag=1').stderr
  # What recipes for v6e still list, and what ends every program there.
  fusion = [f'--xla_tpu_enable_async_collective_fusion{end}=true' for end in ('', '_fuse_all_gather')]
  flags = [*fusion, '--xla_enable_async_all_gather=true']
  assert 'FAILED_PRECONDITION' in compiled('v6e:4x4', ' '.join(flags)).stderr


def test_every_tpu_file_is_checked_against_a_topology():
  assert {name for name in ACCELERATORS if 'tpu,cpu' in values(name, 'JAX_PLATFORMS')} == set(TOPOLOGIES)


@pytest.mark.parametrize('accelerator', ACCELERATORS)
def test_jax_takes_the_names_of_the_platforms(accelerator):
  (platforms,) = values(accelerator, 'JAX_PLATFORMS')
  assert set(platforms.split(',')) <= {'cpu', 'tpu', 'cuda'}
