"""A training workdir opens like a checkpoint: the parameters of its newest whole one."""

import json
import logging
import os
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from conversion.fixtures import write_files
from flax import traverse_util
from orbax.checkpoint import v1 as ocp

from janus_jax.conversion.checkpoint import open_checkpoint
from janus_jax.conversion.load import load_params
from janus_jax.conversion.translate import parameter_shapes
from janus_jax.errors import InputError
from janus_jax.models.config import PRESETS, config_to_dict
from janus_jax.runs import workdirs

CONFIG = PRESETS['test_tiny']


def make_params(step):
  shapes = parameter_shapes(CONFIG)
  flat = {path: jnp.full(shape, step + i / 1000, jnp.float32) for i, (path, shape) in enumerate(shapes.items())}
  # One that compression cannot make small enough for Orbax to store it inside its index.
  path = 'language_model/embed_tokens/table'
  flat[path] = jnp.asarray(np.random.default_rng(step).normal(size=shapes[path]), jnp.float32)
  return traverse_util.unflatten_dict(flat, sep='/')


def save(workdir, step, ema=None):
  """As the training loop does, by Orbax alone."""
  train = {'step': jnp.int32(step), 'mu': {'a/b': jnp.ones(3)}, 'ema': ema}
  ocp.save_checkpointables(workdir / 'checkpoints' / str(step), {'params': make_params(step), 'train': train})


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A workdir with checkpoints 8, 9 and 10: the order of their names is not that of the steps."""
  directory = tmp_path_factory.mktemp('saved')
  (directory / 'janus_config.json').write_text(json.dumps(config_to_dict(CONFIG)))
  write_files(directory, {'tokenizer.json': b'{}', 'metrics.jsonl': b''})
  for step in (8, 9, 10):
    save(directory, step)
  return directory


@pytest.fixture
def workdir(saved, tmp_path):
  """A copy, to be damaged."""
  return pathlib.Path(shutil.copytree(saved, tmp_path / 'workdir'))


def assert_opens(workdir, step, averages=None, suffix=''):
  found = open_checkpoint(f'{workdir}{suffix}')
  assert found.config == CONFIG
  assert found.sources == (str(workdir), f'{workdir}/checkpoints/{step}/params')
  assert found.tokenizer_files == {'tokenizer.json': b'{}'}
  loaded = traverse_util.flatten_dict(load_params(found, None), sep='/')
  expected = traverse_util.flatten_dict(make_params(step), sep='/') | (averages or {})
  assert loaded.keys() == expected.keys()
  for path, value in expected.items():
    np.testing.assert_array_equal(loaded[path], value, err_msg=path)


def largest_file(directory):
  return max((path for path in directory.rglob('*') if path.is_file()), key=lambda path: path.stat().st_size)


def test_opens_the_newest(workdir):
  (workdir / 'checkpoints' / '11.orbax-checkpoint-tmp').mkdir()
  (workdir / 'checkpoints' / '12.damaged').mkdir()
  assert_opens(workdir, 10)


AVERAGED = 'language_model/lm_head/kernel'


@pytest.fixture
def averages(workdir):
  """Of checkpoints 11 and 12: step -> path -> array."""
  found = {}
  for step in (11, 12):
    found[step] = {AVERAGED: jnp.full(parameter_shapes(CONFIG)[AVERAGED], step / 7, jnp.float32)}
    save(workdir, step, found[step])
  return found


def test_averages_of_the_parameters_that_have_one(workdir, averages):
  assert_opens(workdir, 12)
  assert_opens(workdir, 12, averages[12], '@ema')
  (workdir / 'config.json').write_text('{"sampling": {"top_k": 3}}')
  assert workdirs.read_sampling(f'{workdir}@ema')['top_k'] == 3


def test_damaged_averages_are_passed_over(workdir, averages, caplog):
  largest_file(workdir / 'checkpoints' / '12' / 'train').unlink()
  assert_opens(workdir, 12)
  with caplog.at_level(logging.WARNING):
    assert_opens(workdir, 11, averages[11], '@ema')
  assert 'damaged' in caplog.text


def test_a_checkpoint_without_averages_is_one_line(workdir, averages):
  save(workdir, 13)
  expected = f'{workdir}/checkpoints/13: no averages: expected a run with optimizer.ema_decay, or the path without @ema'
  with pytest.raises(InputError) as error:
    open_checkpoint(f'{workdir}@ema')
  assert str(error.value) == expected
  shutil.move(workdir / 'checkpoints' / '13' / 'params', workdir / 'params')
  shutil.rmtree(workdir / 'checkpoints')
  with pytest.raises(
    InputError, match=r'no training workdir: nothing but a run with optimizer\.ema_decay has averages'
  ):
    open_checkpoint(f'{workdir}@ema')


def cut_short(path):
  os.truncate(path, path.stat().st_size // 2)


def change_first_byte(path):
  path.write_bytes(b'x' + path.read_bytes()[1:])


DAMAGE = {
  'empty': lambda d: [path.unlink() for path in d.rglob('*') if path.is_file()],
  'a data file cut short': lambda d: cut_short(largest_file(d / 'params')),
  'a data file gone': lambda d: largest_file(d / 'params').unlink(),
  'an empty index': lambda d: os.truncate(d / 'params' / 'manifest.ocdbt', 0),
  'no index': lambda d: (d / 'params' / 'manifest.ocdbt').unlink(),
  'a changed index': lambda d: [change_first_byte(path) for path in (d / 'params' / 'd').iterdir()],
  'empty tree metadata': lambda d: os.truncate(d / 'params' / '_METADATA', 0),
  'no parameters': lambda d: (d / 'params').rename(d / 'elsewhere'),
}


@pytest.mark.parametrize('damage', DAMAGE)
def test_a_damaged_newest_checkpoint_is_passed_over_with_one_line(damage, workdir, caplog):
  newest = workdir / 'checkpoints' / '10'
  DAMAGE[damage](newest)
  with caplog.at_level(logging.WARNING):
    assert_opens(workdir, 9)
  lines = [record.getMessage() for record in caplog.records if str(newest) in record.getMessage()]
  assert len(lines) == 1
  assert 'damaged' in lines[0]
  assert '\n' not in lines[0]


def test_a_workdir_without_a_whole_checkpoint_is_one_line(workdir):
  for step in ('8', '9', '10'):
    DAMAGE['an empty index'](workdir / 'checkpoints' / step)
  with pytest.raises(InputError, match='none of 3 checkpoints is whole'):
    open_checkpoint(str(workdir))


def test_a_workdir_without_a_checkpoint_is_one_line(workdir):
  for step in ('8', '9', '10'):
    (workdir / 'checkpoints' / step).rename(workdir / 'checkpoints' / f'{step}.damaged')
  with pytest.raises(InputError, match='no checkpoint yet'):
    open_checkpoint(str(workdir))


def test_parameters_of_another_architecture_are_refused_and_not_passed_over(workdir):
  ocp.save_checkpointables(workdir / 'checkpoints' / '11', {'params': {'a': jnp.ones(3)}})
  with pytest.raises(InputError, match='11'):
    open_checkpoint(str(workdir))
