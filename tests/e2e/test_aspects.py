"""Images that are not square through the commands: their codes, a run that trains on them, images it generates."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('torch')
pytest.importorskip('transformers')
pytest.importorskip('sklearn')

import small_checkpoint
from e2e import forks

import janus_jax

ROOT = pathlib.Path(__file__).parents[2]
COUNT = 24
# The square has 4 x 4 codes of 4 pixels. Widths and heights, and the grid of each.
SIZES = {(30, 20): '3 x 5', (20, 30): '5 x 3', (20, 20): '4 x 4'}
RECIPE = """
from janus_jax.runs.config import default_config
from ml_collections import ConfigDict

def get_config():
  config = default_config()
  config.init_from, config.sequence_length, config.loss_chunk = {checkpoint!r}, 128, 128
  config.log_every, config.eval_every, config.sampling.num_images = 1, 0, 0
  config.compute.dtype, config.compute.remat = 'float32', 'none'
  config.data.name = 'files'
  entry = {{'kind': 'generation', 'format': 'array_record', 'path': {codes!r}, 'codes': 'codes', 'grid': {grid!r}}}
  config.data.sources = {{'mine': entry}}
  stage = {{'steps': 3, 'batch_size': 4, 'learning_rate': 1e-3, 'ratio': (0, 0, 1), 'trainable': ('gen_head',)}}
  config.stages = ConfigDict({{'only': {{**stage, 'sources': {{'generation': {{'mine': 1}}}}}}}})
  config.run = ('only',)
  return config
"""


def run(verb: str, *arguments: str) -> subprocess.CompletedProcess:
  return forks.run([sys.executable, '-m', f'janus_jax.{verb}', *arguments], cwd=ROOT)


def check(process: subprocess.CompletedProcess) -> str:
  assert process.returncode == 0, process.stderr
  return process.stdout


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory) -> str:
  return small_checkpoint.write(tmp_path_factory.mktemp('aspects') / 'checkpoint')


@pytest.fixture(scope='module')
def recipe(checkpoint, tmp_path_factory) -> pathlib.Path:
  """Of codes that `tokenize --aspects` made of a folder."""
  root = tmp_path_factory.mktemp('recipe')
  (root / 'images').mkdir()
  rng = np.random.default_rng(0)
  for number in range(COUNT):
    width, height = list(SIZES)[number % 3]
    Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(root / 'images' / f'{number:02}.png')
    (root / 'images' / f'{number:02}.txt').write_text(f'image {number}')
  made = [f'--checkpoint={checkpoint}', f'--output={root}/codes', '--aspects', '--batch_size=2']
  check(run('tokenize', f'--input={root}/images', *made))
  path = root / 'recipe.py'
  path.write_text(RECIPE.format(checkpoint=checkpoint, codes=f'{root}/codes/*.array_record', grid='grid'))
  return path


@pytest.fixture(scope='module')
def trained(recipe) -> str:
  """A workdir."""
  workdir = recipe.parent / 'run'
  check(run('train', f'--config={recipe}', f'--workdir={workdir}'))
  return str(workdir)


def test_data_check_counts_them(recipe, tmp_path):
  process = run('data_check', f'--config={recipe}', f'--out={tmp_path}', '--json')
  source, _ = map(json.loads, check(process).splitlines())
  assert source['grids'] == dict.fromkeys(SIZES.values(), COUNT // 3)
  assert source['skipped'] == {}
  shown = check(run('data_check', f'--config={recipe}', f'--out={tmp_path}'))
  assert '\n    rows x columns of codes: 3 x 5: 8, 4 x 4: 8, 5 x 3: 8\n' in shown


def test_a_run_trains_on_all_of_them(trained):
  lines = [json.loads(line) for line in (pathlib.Path(trained) / 'metrics.jsonl').read_text().splitlines()]
  losses = [line['loss'] for line in lines if 'loss' in line]
  assert len(losses) == 3
  assert np.isfinite(losses).all()
  assert not any(value for line in lines for name, value in line.items() if name.startswith('skipped'))


def test_a_recipe_that_names_no_grid_is_refused_before_anything_is_written(recipe, tmp_path):
  path = tmp_path / 'recipe.py'
  path.write_text(recipe.read_text().replace("'grid': 'grid'", "'grid': ''"))
  process = run('train', f'--config={path}', f'--workdir={tmp_path}/run')
  assert process.returncode == 1
  message = f"data.sources.mine.grid is '': expected 'grid', as the codes of {recipe.parent}/codes/manifest.json have"
  assert process.stderr.splitlines()[-1] == f'error: {message} aspects'
  assert not (tmp_path / 'run' / 'checkpoints').exists()


def test_images_of_an_aspect(trained, tmp_path):
  out = tmp_path / 'out'
  arguments = [f'--checkpoint={trained}', '--prompt=image 1', '--prompt=image 2', '--num_images=2', f'--out={out}']
  arguments += ['--dtype=float32', '--json']
  process = run('generate', *arguments, '--aspect=3:2')
  lines = sorted(map(json.loads, check(process).splitlines()), key=lambda line: line['path'])
  assert 'aspect 3:2: 3 rows of 5 codes, images of 20 x 12 pixels' in process.stderr
  assert 'nothing says' not in process.stderr
  janus = janus_jax.load(trained, 'float32')
  expected = janus_jax.generate_images(janus, ['image 1', 'image 2'], num_images=2, aspect='3:2')
  for line, image in zip(lines, [image for row in expected for image in row], strict=True):
    assert (line['grid'], line['codes']) == ([3, 5], image.codes.tolist())
    with Image.open(line['path']) as file:
      assert (file.size, file.text['grid']) == ((20, 12), '3 x 5')
      np.testing.assert_array_equal(np.asarray(file), image.pixels)
  with Image.open(out / 'sheet.png') as sheet:
    assert sheet.size == (2 * 20 + 8, 2 * 12 + 8)
  # What is there already stays, by whatever ratio the same grid is asked for; another grid is refused.
  pathlib.Path(lines[1]['path']).unlink()
  again = run('generate', *arguments, '--aspect=6:4')
  assert sorted(check(again).splitlines()) == sorted(process.stdout.splitlines())
  assert '1 images generated, 3 already there' in again.stderr
  for aspect, wanted in (('2:3', "'5 x 3'"), ('1:1', 'none')):
    refused = run('generate', *arguments, f'--aspect={aspect}')
    assert refused.returncode == 1
    assert refused.stderr.endswith(f"has grid '3 x 5': expected {wanted}; --overwrite replaces it\n")


def test_a_checkpoint_that_was_not_trained_on_them_comes_with_a_warning(checkpoint, tmp_path):
  process = run(
    'generate', f'--checkpoint={checkpoint}', '--prompt=a', f'--out={tmp_path}', '--num_images=1', '--aspect=2:3'
  )
  check(process)
  warnings = [line for line in process.stderr.splitlines() if '--aspect=2:3: nothing says that the checkpoint' in line]
  assert len(warnings) == 1
  with Image.open(tmp_path / '00000-00.png') as image:
    assert image.size == (12, 20)


@pytest.mark.parametrize('aspect', ['0:1', '5:1', 'x', ''])
def test_other_aspects_are_one_line_before_anything_is_opened(tmp_path, aspect):
  process = run('generate', '--checkpoint=/no/such/place', '--prompt=a', f'--out={tmp_path}/out', f'--aspect={aspect}')
  message = f'error: aspect is {aspect!r}: expected WIDTH:HEIGHT from 1:2 to 2:1'
  assert (process.returncode, process.stderr.strip()) == (1, message)
  assert not list(tmp_path.iterdir())
