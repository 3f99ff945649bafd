"""A refiner from the command that trains it to images twice as large."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('torch')
pytest.importorskip('transformers')

import small_checkpoint
from e2e import forks

ROOT = pathlib.Path(__file__).parents[2]
# configs/refiner.py for images of a folder, cut short.
RECIPE = f"""
from janus_jax.runs.recipes import read_recipe


def get_config(checkpoint):
  config = read_recipe({str(ROOT / 'configs' / 'refiner.py')!r} + ':' + checkpoint)
  config.max_bad_record_fraction = 0.5
  config.data.name, config.data.precompute_codes = 'files', False
  config.data.sources = {{'mine': {{'kind': 'generation', 'format': 'folder', 'path': 'FOLDER'}}}}
  config.refining.update(steps=4, warmup_steps=1, held_out=2, flow_steps=2)
  config.refining.update(block_out_channels=(8, 8), norm_num_groups=4)
  return config
"""


def run(verb: str, *arguments: str) -> subprocess.CompletedProcess:
  return forks.run([sys.executable, '-m', f'janus_jax.{verb}', *arguments], cwd=ROOT)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory) -> str:
  return small_checkpoint.write(tmp_path_factory.mktemp('start') / 'checkpoint')


@pytest.fixture(scope='module')
def trained(checkpoint, tmp_path_factory) -> tuple[list[str], pathlib.Path, subprocess.CompletedProcess]:
  """Arguments of `pretrain`, the refiner's directory, and what the command said."""
  root = tmp_path_factory.mktemp('refiner')
  (root / 'images').mkdir()
  rng = np.random.default_rng(0)
  for number in range(20):
    path = root / 'images' / f'{number}.png'
    Image.fromarray(rng.integers(0, 256, (40, 50, 3)).astype(np.uint8)).save(path)
    path.with_suffix('.txt').write_text(f'image {number}')
  (root / 'images' / '7.png').write_bytes(b'no image')
  (root / 'recipe.py').write_text(RECIPE.replace('FOLDER', str(root / 'images')))
  arguments = [f'--config={root}/recipe.py:{checkpoint}', f'--output={root}/made/refiner']
  return arguments, root / 'made' / 'refiner', run('pretrain', *arguments)


def test_a_refiner_is_trained_and_measured(trained):
  arguments, directory, process = trained
  assert process.returncode == 0, process.stderr
  assert 'Skipped (image damaged): ' in process.stderr
  assert f'wrote {directory} in ' in process.stderr
  metrics = json.loads((directory / 'metrics.json').read_text())
  assert (metrics['images'], metrics['size']) == (2, 32)
  assert process.stdout.startswith('2 held-out images of 32 pixels, encoded and decoded by the VQ\n')
  for name in ('bicubic', 'refined'):
    assert f'\n{name} ' in process.stdout
    assert f'{metrics["psnr"][name]:.2f}' in process.stdout
  # Nothing is left beside it but the index of the images.
  assert sorted(path.name for path in directory.parent.iterdir()) == ['data', 'refiner']
  assert sorted(path.name for path in directory.iterdir()) == [
    'config.json',
    'diffusion_pytorch_model.safetensors',
    'metrics.json',
  ]
  again = run('pretrain', *arguments)
  assert (again.returncode, again.stderr) == (1, f'error: {directory}: exists already; --overwrite replaces it\n')


def test_images_come_out_twice_as_large_with_the_same_codes(checkpoint, trained, tmp_path):
  arguments = [f'--checkpoint={checkpoint}', '--prompt=a red circle', '--prompt=two', '--num_images=2']
  arguments += ['--dtype=float32', '--json']
  made = {}
  for name, more in {
    'plain': [],
    'refined': [f'--refiner={trained[1]}'],
    'one': [f'--refiner={trained[1]}', '--batch_size=1'],
  }.items():
    process = run('generate', *arguments, *more, f'--out={tmp_path}/{name}')
    assert process.returncode == 0, process.stderr
    made[name] = sorted(map(json.loads, process.stdout.splitlines()), key=lambda line: line['path'])
    assert ('images of 16 x 16 pixels become 32 x 32, in 2 steps each' in process.stderr) == bool(more)
  for lines in zip(*made.values(), strict=True):
    assert lines[0]['codes'] == lines[1]['codes'] == lines[2]['codes']
    assert [line.get('size') for line in lines] == [None, 32, 32]
    plain, refined, one = (np.asarray(Image.open(line['path'])) for line in lines)
    assert (plain.shape, refined.shape) == ((16, 16, 3), (32, 32, 3))
    np.testing.assert_array_equal(refined, one)
  # Neither are refined images taken for plain ones, nor the other way round.
  for name, more, said in (
    ('plain', [f'--refiner={trained[1]}'], f"has refiner None: expected '{trained[1]}'; --overwrite replaces it"),
    ('refined', [], f"has refiner '{trained[1]}': expected none; --overwrite replaces it"),
  ):
    process = run('generate', *arguments, *more, f'--out={tmp_path}/{name}')
    assert process.returncode == 1
    assert said in process.stderr


def test_images_that_are_not_square_come_out_twice_as_large(checkpoint, trained, tmp_path):
  arguments = [f'--checkpoint={checkpoint}', '--prompt=a', '--num_images=1', '--aspect=3:2', '--json']
  process = run('generate', *arguments, f'--refiner={trained[1]}', f'--out={tmp_path}')
  assert process.returncode == 0, process.stderr
  assert 'images of 20 x 12 pixels become 40 x 24' in process.stderr
  (line,) = map(json.loads, process.stdout.splitlines())
  assert (line['grid'], line['size'], len(line['codes'])) == ([3, 5], [40, 24], 15)
  assert Image.open(line['path']).size == (40, 24)


def test_a_refiner_that_does_not_fit_is_refused_before_anything_is_made(checkpoint, trained, tmp_path):
  other = tmp_path / 'other'
  other.mkdir()
  for path in trained[1].iterdir():
    (other / path.name).write_bytes(path.read_bytes())
  config = json.loads((other / 'config.json').read_text())
  (other / 'config.json').write_text(json.dumps({**config, '_janus_jax': {**config['_janus_jax'], 'vq': 'abcd'}}))
  for directory, said in ((other, 'was trained for the VQ abcd: expected '), (tmp_path / 'x', 'no such directory: ')):
    arguments = [f'--checkpoint={checkpoint}', '--prompt=a', f'--refiner={directory}', f'--out={tmp_path}/out']
    process = run('generate', *arguments)
    assert process.returncode == 1
    assert process.stderr.startswith(f'error: {directory}: {said}')
    assert process.stderr.count('\n') == 1
  assert not os.path.exists(tmp_path / 'out')
