"""Files of every format through the commands: a look at them, their codes, a run that is stopped and goes on."""

import json
import logging
import multiprocessing
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
import small_checkpoint
from e2e import forks
from ml_collections import ConfigDict
from PIL import Image

pytest.importorskip('sklearn')
pytest.importorskip('transformers')

from data import datasets
from data.datasets import ITEMS, NAMES

from janus_jax.data.packing import WAITING
from janus_jax.data.resizing import fast
from janus_jax.data.sources.build import ImageSizes, open_sources, read_specs
from janus_jax.runs import loading, setup
from janus_jax.runs.config import default_config, parse_config
from janus_jax.runs.image_codes import image_encoder
from janus_jax.runs.tokenizing import load_vq
from janus_jax.training import loop

STEPS = 4
RECIPE = """
import json
from janus_jax.runs.config import default_config

def get_config():
  config = default_config()
  config.update(json.loads({overrides!r}))
  config.data.sources = json.loads({sources!r})
  config.run = ('only',)
  config.stages = json.loads({stages!r})
  return config
"""
ADAPTORS = ['vision_aligner', 'gen_aligner', 'gen_embed', 'gen_head']


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory) -> str:
  return small_checkpoint.write(tmp_path_factory.mktemp('checkpoint'))


@pytest.fixture(scope='module')
def entries(tmp_path_factory) -> dict[str, dict]:
  return datasets.write(tmp_path_factory.mktemp('datasets') / 'data')


def parts_of(entries: dict[str, dict], checkpoint: str) -> dict[str, dict]:
  """What a recipe of one stage consists of."""
  sources = {kind: {name: 1 for name in names if name in entries} for kind, names in NAMES.items()}
  stage = {
    'steps': STEPS,
    'batch_size': 8,
    'learning_rate': 1e-3,
    'ratio': [len(names) for names in sources.values()],
    'sources': sources,
    'trainable': ADAPTORS,
  }
  overrides = {
    'init_from': checkpoint,
    'sequence_length': 256,
    'log_every': 1,
    'eval_every': 0,
    'loss_chunk': 256,
    'compute': {'dtype': 'float32', 'remat': 'none'},
    'data': {'name': 'files'},
    'sampling': {'num_images': 0},
  }
  return {'overrides': overrides, 'sources': entries, 'stages': {'only': stage}}


def write_recipe(path: pathlib.Path, parts: dict[str, dict]) -> str:
  path.write_text(RECIPE.format(**{name: json.dumps(part) for name, part in parts.items()}))
  return str(path)


def config_of(parts: dict[str, dict]) -> ConfigDict:
  config = default_config()
  config.update(parts['overrides'])
  config.data.sources, config.stages, config.run = parts['sources'], ConfigDict(parts['stages']), ('only',)
  config.mesh.data, config.mesh.fsdp = 2, 4  # The tests' eight simulated devices.
  return config


def run(*arguments: str) -> subprocess.CompletedProcess:
  return forks.run([sys.executable, '-m', *arguments])


def test_a_look_at_the_data(entries, checkpoint, tmp_path):
  poisoned = tmp_path / 'bad.jsonl'
  poisoned.write_text('{"talk": ["Hello?", "Yes."]}\n{"talk": "no list"}\n')
  parts = parts_of(entries, checkpoint)
  parts['sources'] = entries | {'talks': entries['talks'] | {'path': str(poisoned)}}
  recipe = write_recipe(tmp_path / 'recipe.py', parts)
  process = run('janus_jax.data_check', f'--config={recipe}', f'--out={tmp_path / "out"}', '--json')
  assert process.returncode == 0, process.stderr
  found = {(line.get('kind'), line['name']): line for line in map(json.loads, process.stdout.splitlines())}
  assert set(found) == {(kind, name) for kind, names in NAMES.items() for name in names} | {(None, 'only')}
  for key, line in found.items():
    if key[1] not in ('only', 'talks'):
      assert (line['records'], line['read'], line['skipped']) == (ITEMS, ITEMS, {}), line
  assert found['understanding', 'llava']['images'] == 1.5
  talks = found['text', 'talks']
  assert talks['skipped'] == {'conversation': 1}
  assert talks['messages'] == [f'{tmp_path}/bad.jsonl:2: talk: a str: expected a list of turns']
  assert 0.3 < found[None, 'only']['packing'] <= 1
  sheet = Image.open(tmp_path / 'out' / 'examples.png')
  assert sheet.size == (6 * 200 - 8, -(-(8 * ITEMS + 1) // 6) * 392 - 8)


def test_codes_of_a_source_train_in_place_of_its_images(entries, checkpoint, tmp_path):
  recipe = write_recipe(tmp_path / 'recipe.py', parts_of(entries, checkpoint))
  arguments = [f'--checkpoint={checkpoint}', f'--output={tmp_path / "codes"}', '--batch_size=4']
  process = run('janus_jax.tokenize', f'--input={recipe}:web', *arguments)
  assert process.returncode == 0, process.stderr
  vq, _ = load_vq(checkpoint)
  coded = {
    'kind': 'generation',
    'format': 'array_record',
    'path': str(tmp_path / 'codes' / '*.array_record'),
    'codes': 'codes',
  }
  specs = read_specs({'web': entries['web'], 'codes': coded})
  sources = open_sources(specs, ImageSizes(24, vq.image_size, fast), 0, str(tmp_path / 'index'))['train']['generation']
  encode = image_encoder(vq, loading.load(checkpoint, 'float32').params['vq'])
  for index in range(ITEMS):
    pixels, codes = sources['web'][index], sources['codes'][index]
    assert pixels['prompt'] == codes['prompt']
    np.testing.assert_array_equal(codes['codes'], encode(pixels['image'][None])[0])
  unknown = run('janus_jax.tokenize', f'--input={recipe}:llava', *arguments)
  assert (unknown.returncode, unknown.stderr.count('\n')) == (1, 1)
  assert (
    "no generation source of images 'llava': expected one of ['classes', 'folder', 'records', 'web']" in unknown.stderr
  )


def test_a_run_on_every_format_stops_and_goes_on(entries, checkpoint, tmp_path, monkeypatch, caplog):
  (tmp_path / 'talks.jsonl').write_text('\n'.join(['{"talk": ["Hello?", "Yes."]}'] * 5 + ['{"talk": "no list"}']))
  config = config_of(
    parts_of(entries | {'talks': entries['talks'] | {'path': str(tmp_path / 'talks.jsonl')}}, checkpoint)
  )
  config.workers = 2
  whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
  with caplog.at_level(logging.INFO):
    setup.train(parse_config(config), str(whole))
  said = [record.getMessage() for record in caplog.records]
  workers = []

  def interrupted(self, label: str, steps: int = 1) -> None:
    workers.append(len(multiprocessing.active_children()))
    if len(workers) == 2:
      signal.raise_signal(signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(loop.Progress, 'update', interrupted)
    setup.train(parse_config(config), str(stopped))
  assert workers == [2, 2]
  config.workers = 0
  setup.train(parse_config(config), str(stopped), force=True)
  lines = {path: list(map(json.loads, (path / 'metrics.jsonl').read_text().splitlines())) for path in (whole, stopped)}
  first, second = ([(line['step'], line['loss']) for line in found if 'loss' in line] for found in lines.values())
  assert len(first) == STEPS
  assert first == second
  last = lines[whole][-1]
  # What is read holds the ratio exactly; up to so many of each stream still wait for a row.
  counts = {last[f'examples/{kind}/{name}'] for kind, names in NAMES.items() for name in names}
  assert min(counts) > 0
  assert max(counts) - min(counts) <= WAITING
  assert last['skipped_records'] > 0
  assert f'records skipped so far: text/talks: conversation {last["skipped_records"]}' in said


def test_how_fast_the_data_comes(entries, checkpoint, tmp_path):
  recipe = write_recipe(tmp_path / 'recipe.py', parts_of(entries, checkpoint))
  arguments = ['--mode=data', f'--config={recipe}', '--seconds=0.5', '--step_seconds=0.05', '--json']
  process = run('janus_jax.benchmark', *arguments)
  assert process.returncode == 0, process.stderr
  found = json.loads(process.stdout)
  assert found['examples_per_second'] == pytest.approx(found['cores'] * found['examples_per_second_and_core'], rel=1e-2)
  # A batch has 18 examples on average; three in nine are understood, four drawn, one image each or one and a half.
  assert found['images_per_second'] / found['examples_per_second'] == pytest.approx((3.5 + 4) / 9, rel=0.1)
  assert found['batches'] <= 10
  process = run('janus_jax.benchmark', *arguments, '--stage=stage9')
  assert (process.returncode, process.stderr.strip()) == (1, "error: stage is 'stage9': expected one of only")
