"""Real models planned for real TPUs by their own compiler, where that is installed: minutes.

What launch/README.md says fits is what is tested here.
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent

pytestmark = pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason="needs `pip install 'jax[tpu]'`")

HALF_MOMENTS = ('--config.optimizer.moment_dtype=bfloat16', '--config.optimizer.gradient_sum_dtype=bfloat16')
FITTING = [
  # Float32 masters and AdamW on 16 chips of 16 GB.
  ('janus_pro_7b', 'v5e-16', 'stage1', 4, ()),
  ('janus_pro_7b', 'v5e-16', 'stage2', 16, ()),
  ('janus_pro_7b', 'v5e-16', 'stage3', 4, ()),
  ('janus_pro_7b', 'v5e-8', 'stage1', 8, ()),
  ('janus_pro_7b', 'v5e-8', 'stage3', 16, HALF_MOMENTS),
  ('janus_pro_7b', 'v6e-16', 'stage3', 2, ()),
  ('janus_pro_7b', 'v5p-16', 'stage3', 2, ()),
  ('janus_pro_1b', 'v5e-8', 'stage3', 4, ()),
  ('janus_pro_1b', 'v6e-8', 'stage3', 2, ()),
  ('janus_pro_1b', 'v5p-8', 'stage3', 1, ()),
]


# As in the tables of launch/README.md.
AS_SAID = ('--config.data.precompute_codes=true', '--config.held_out_batches=0')


def plan(preset: str, topology: str, stage: str, *options: str) -> dict:
  command = [sys.executable, '-m', 'janus_jax.plan', f'--config=configs/{preset}.py', f'--topology={topology}']
  environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'JAX_OPTIMIZATION_LEVEL': 'O1'}
  done = subprocess.run(
    [*command, f'--stage={stage}', '--json', *AS_SAID, *options],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  (line,) = done.stdout.splitlines()
  return json.loads(line)


@pytest.mark.parametrize(('preset', 'topology', 'stage', 'accumulation', 'options'), FITTING)
def test_it_fits(preset, topology, stage, accumulation, options):
  found = plan(preset, topology, stage, f'--config.accumulation={accumulation}', '--nohints', *options)
  assert (found['stage'], found['topology'], found['sequence_length']) == (stage, topology, 4096)
  assert found['fits']
  assert found['argument_bytes_per_device'] < found['peak_bytes_per_device'] <= found['hbm_bytes_per_device']
  assert found['attention'] == found['vision_attention'] == 'splash'
  assert 0 < found['mfu_bound'] < 1
  # Every microbatch gathers the other chips' shares of the decoder's weights, in bfloat16, twice at least. (Rings of
  # permutes are one way to gather.)
  decoder = {'janus_pro_7b': 6.5e9, 'janus_pro_1b': 1.5e9}[preset]
  gathered = sum(found['collective_bytes_per_device'].values())
  assert gathered > accumulation * 2 * 2 * decoder * (1 - 1 / found['devices'])


def test_what_does_not_fit_is_told_with_what_would():
  found = plan('janus_pro_7b', 'v5e-16', 'stage1')
  assert not found['fits']
  assert found['options_to_fit'] in (
    ['--config.stages.stage1.accumulation=2'],
    ['--config.stages.stage1.accumulation=4'],
  )
  assert found['peak_bytes_per_device_with_options'] <= found['hbm_bytes_per_device'] < found['peak_bytes_per_device']
