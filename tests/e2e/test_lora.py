"""A run with LoRA: what it saves, that it goes on where it was, and what becomes of its adapter."""

import json
import pathlib
import shutil
import sys

import numpy as np
import pytest

pytest.importorskip('sklearn')

from e2e import forks, small_run
from e2e.small_run import leaves, losses
from ml_collections import ConfigDict

import janus_jax
from janus_jax.conversion.checkpoint import open_checkpoint
from janus_jax.conversion.workdir import read_params
from janus_jax.errors import InputError
from janus_jax.models.lora import is_adapter, is_factor
from janus_jax.runs import setup
from janus_jax.runs.config import parse_config, set_stages

STEPS = 4
PARTS = ('gen_head/', 'gen_aligner/')


def verb(name: str, *flags: str):
  return forks.run([sys.executable, '-m', f'janus_jax.{name}', *flags])


def recipe(start: str, data: str, **lora) -> ConfigDict:
  config = small_run.recipe(start, data)
  stage = config.stages.stage3.to_dict()
  trainable = tuple(part[:-1] for part in PARTS)
  stage |= {'steps': STEPS, 'trainable': trainable, 'learning_rate': 1e-2, 'lora': {'rank': 2, 'alpha': 4.0, **lora}}
  set_stages(config, {'tune': stage})
  config.save_every, config.held_out_batches = 2, 0
  return config


@pytest.fixture(scope='module')
def run(start, data, tmp_path_factory) -> tuple[pathlib.Path, dict]:
  workdir = tmp_path_factory.mktemp('run')
  return workdir, leaves(setup.train(parse_config(recipe(start, data)), str(workdir)))


def test_checkpoints_hold_factors_and_named_parts_only(run, start):
  workdir, params = run
  saved = read_params(str(workdir / 'checkpoints' / str(STEPS)))
  assert {path for path in saved if not is_adapter(path)} == {path for path in params if path.startswith(PARTS)}
  assert {path for path in saved if is_adapter(path)} == {path for path in params if is_adapter(path)}
  for path, array in saved.items():
    np.testing.assert_array_equal(array[...], params[path], err_msg=path)
  before = open_checkpoint(start).params
  for path in params.keys() - saved.keys():
    np.testing.assert_array_equal(params[path], before[path][...], err_msg=path)
  assert all((params[path] != 0).any() for path in params if path.endswith('lora_b'))


def test_a_run_that_is_cut_short_goes_on_as_if_it_had_not(run, start, data, tmp_path):
  whole, params = run
  workdir = tmp_path / 'run'
  shutil.copytree(whole, workdir)
  shutil.rmtree(workdir / 'checkpoints' / str(STEPS))
  found = leaves(setup.train(parse_config(recipe(start, data)), str(workdir)))
  assert losses(workdir) == losses(whole)
  for path in params:
    np.testing.assert_array_equal(found[path], params[path], err_msg=path)


def test_a_run_whose_base_has_changed_is_refused(run, start, data, tmp_path):
  workdir, other = tmp_path / 'run', tmp_path / 'other'
  shutil.copytree(run[0], workdir)
  other.mkdir()
  small_run.write_start(other, poison='zero')
  path = workdir / 'janus_adapter.json'
  path.write_text(json.dumps({**json.loads(path.read_text()), 'fingerprint': 'another'}))
  with pytest.raises(InputError, match=f'an adapter for another base than {start}'):
    setup.train(parse_config(recipe(start, data)), str(workdir))


def test_the_adapter_is_a_checkpoint_everywhere(run, start, tmp_path):
  """The workdir, what is exported for peft, and merged weights are one model."""
  workdir, params = run
  adapter, merged = tmp_path / 'adapter', tmp_path / 'merged'
  done = [
    verb('convert', f'--input={workdir}', f'--output={adapter}', '--format=peft'),
    verb('convert', f'--input={adapter}', f'--output={merged}', '--format=orbax', '--merge'),
    verb('convert', f'--input={workdir}', f'--output={tmp_path}/no', '--format=orbax'),
    verb('convert', f'--input={start}', f'--output={tmp_path}/no', '--format=peft'),
  ]
  assert [one.returncode for one in done] == [0, 0, 1, 1], [one.stderr for one in done]
  assert done[2].stderr.endswith(f'{workdir}: an adapter: expected --format=peft, or --merge for whole weights\n')
  assert '--format=peft with whole weights: expected an adapter' in done[3].stderr
  assert not (tmp_path / 'no').exists()
  size = (adapter / 'adapter_model.safetensors').stat().st_size
  assert size < 1.2 * sum(leaf.nbytes for path, leaf in params.items() if is_factor(path) or path.startswith(PARTS))
  opened = [janus_jax.load(str(path)) for path in (workdir, adapter, merged, f'{start}+{adapter}')]
  first = leaves(opened[0].params)
  assert not any(map(is_adapter, first))
  for janus in opened[1:]:
    assert janus.tokenizer.encode('a red circle') == opened[0].tokenizer.encode('a red circle')
    for path, leaf in leaves(janus.params).items():
      np.testing.assert_array_equal(leaf, first[path], err_msg=path)
  base = leaves(janus_jax.load(start).params)
  changed = {path for path in base if (base[path] != first[path]).any()}
  kernels = {path for path in base if path.startswith('language_model/layers/') and path.endswith('/kernel')}
  assert changed == kernels | {path for path in base if path.startswith(PARTS)}
  made = verb(
    'generate', f'--checkpoint={adapter}', '--prompt=a red circle', f'--out={tmp_path}/images', '--num_images=1'
  )
  assert made.returncode == 0, made.stderr


def test_an_adapter_is_trained_on(run, start, data, tmp_path):
  workdir, params = run
  config = recipe(str(workdir), data)
  config.stages.tune.trainable, config.stages.tune.steps = (), 1
  again = tmp_path / 'again'
  found = leaves(setup.train(parse_config(config), str(again)))
  # Parts that the first adapter has in full stay in the second, though nothing trains them.
  for path in params:
    if path.startswith(PARTS):
      np.testing.assert_array_equal(found[path], params[path])
  assert json.loads((again / 'janus_adapter.json').read_text())['base'] == start
  opened = open_checkpoint(str(again))
  assert opened.adapter.full.keys() == {path for path in params if path.startswith(PARTS)}
  change = max(np.abs(found[path] - params[path]).max() for path in params if is_factor(path))
  assert 0 < change < 0.05


@pytest.mark.parametrize(
  ('changes', 'expected'),
  [
    ({'rank': 3}, 'lora.rank is 3: expected 2, the rank of'),
    ({'alpha': 5.0}, 'lora.alpha is 5: expected 4, that of'),
    (
      {'targets': ('language_model/layers/mlp/.*',)},
      'has factors of language_model/layers/attn/k: expected lora.targets',
    ),
  ],
)
def test_factors_of_another_kind_are_refused(run, data, tmp_path, changes, expected):
  with pytest.raises(InputError, match=expected):
    setup.train(parse_config(recipe(str(run[0]), data, **changes)), str(tmp_path / 'again'))
  assert not (tmp_path / 'again').exists() or not any((tmp_path / 'again').iterdir())


def test_a_base_in_int8_trains(start, data, tmp_path):
  config = recipe(start, data, base_dtype='int8')
  config.stages.tune.trainable = ()
  config.stages.tune.steps = 2
  params = leaves(setup.train(parse_config(config), str(tmp_path)))
  assert params['language_model/layers/mlp/up/int8'].dtype == np.int8
  assert 'language_model/layers/mlp/up/kernel' not in params
  # What is exported has the kernels of the base, which were never rounded.
  opened, base = open_checkpoint(str(tmp_path)), open_checkpoint(start)
  assert opened.adapter.base_params.keys() == base.params.keys()
  assert set(read_params(str(tmp_path / 'checkpoints' / '2'))) == {path for path in params if is_adapter(path)}
