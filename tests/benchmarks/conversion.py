"""Time and peak memory of converting a checkpoint of real size, against copying the same bytes.

    python tests/benchmarks/conversion.py --preset=janus_pro_7b --workdir=/tmp/conversion

Writes random bfloat16 weights in transformers' layout, then converts them through the command itself: to Orbax, back,
and to DeepSeek's layout, each beside a plain copy of its input. Needs 4 times the checkpoint's size on disk.
"""

import argparse
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import time

import ml_dtypes
import numpy as np

from janus_jax.conversion.checkpoint import Checkpoint, write_checkpoint
from janus_jax.conversion.lazy import LazyArray
from janus_jax.conversion.translate import parameter_shapes
from janus_jax.models.config import PRESETS

BLOCK = np.random.default_rng(0).normal(0, 0.02, 1 << 22).astype(ml_dtypes.bfloat16)


def random_checkpoint(preset: str) -> Checkpoint:
  """Values are one block of normal numbers over and over: as hard to compress as weights, and quick to make."""

  def read(index, shape):
    first = np.broadcast_to(np.empty((), np.uint8), shape)[index]  # Only its shape is of interest.
    return np.resize(BLOCK, first.shape)

  config = PRESETS[preset]
  params = {
    path: LazyArray(shape, BLOCK.dtype, lambda index, shape=shape: read(index, shape), path)
    for path, shape in parameter_shapes(config).items()
  }
  return Checkpoint(config, params, {}, {}, ())


def timed(command: list[str], environment: dict[str, str]) -> dict[str, float]:
  """Wall seconds of a command with its writes flushed, and its own peak resident memory, mapped file pages included."""
  start = time.perf_counter()
  child = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
  _, status, usage = os.wait4(child.pid, 0)
  os.sync()
  if status:
    raise SystemExit(f'{" ".join(command)} failed; run it by itself to see why')
  return {'seconds': round(time.perf_counter() - start, 1), 'peak_gb': round(usage.ru_maxrss * 1024 / 1e9, 2)}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--preset', default='janus_pro_7b', choices=sorted(PRESETS))
  parser.add_argument('--workdir', required=True, type=pathlib.Path)
  arguments = parser.parse_args()
  root = arguments.workdir
  root.mkdir(parents=True)
  source = root / 'huggingface'
  source.mkdir()
  write_checkpoint(random_checkpoint(arguments.preset), str(source), 'huggingface', lambda _: None)
  size = sum(file.stat().st_size for file in source.iterdir())
  print(json.dumps({'preset': arguments.preset, 'gigabytes': round(size / 1e9, 2)}), flush=True)
  convert = [sys.executable, '-m', 'janus_jax.convert']
  for source_format, target in (('huggingface', 'orbax'), ('orbax', 'back'), ('huggingface', 'deepseek')):
    output, copy = root / target, root / 'copy'
    layout = 'huggingface' if target == 'back' else target
    copied = timed(['cp', '-r', str(root / source_format), str(copy)], dict(os.environ))
    shutil.rmtree(copy)
    flags = [f'--input={root / source_format}', f'--output={output}', f'--format={layout}']
    converted = timed([*convert, *flags], dict(os.environ))
    row = {'from': source_format, 'to': layout, **converted, 'copy_seconds': copied['seconds']}
    print(json.dumps({**row, 'ratio': round(converted['seconds'] / copied['seconds'], 2)}), flush=True)
    if target == 'back':
      compared = [subprocess.run(['cmp', file, output / file.name]) for file in source.glob('*.safetensors')]
      same = not any(result.returncode for result in compared)
      print(json.dumps({'round_trip_bit_exact': same}), flush=True)
    if target != 'orbax':
      shutil.rmtree(output)
  # A child's peak starts at what its parent held: the figures above are true only if this one is smaller.
  print(json.dumps({'own_peak_gb': round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)}))


if __name__ == '__main__':
  main()
