"""A run whose images grow from stage to stage."""

import json
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip('sklearn')

from e2e import small_run
from e2e.small_run import STEPS, leaves, losses
from ml_collections import ConfigDict

import janus_jax
from janus_jax.conversion.checkpoint import open_checkpoint
from janus_jax.conversion.workdir import read_params
from janus_jax.models.siglip import POSITIONS, resample_positions
from janus_jax.runs import setup
from janus_jax.runs.config import parse_config, set_stages

SIZES = (24, 32, 48)


def recipe(start: str, data: str) -> ConfigDict:
  config = small_run.recipe(start, data)
  config.sequence_length = config.loss_chunk = 192  # An image of 48 pixels has 144 codes.
  config.data.toy_grid = 6
  config.optimizer.ema_decay = 0.5
  for stage, size in zip(config.stages.values(), SIZES):
    stage.image_size = stage.generation_size = size
  config.stages.stage1.image_size = config.stages.stage1.generation_size = 0  # As the start's.
  return config


def table(workdir: pathlib.Path, step: int, averaged: bool = False) -> np.ndarray:
  return read_params(str(workdir / 'checkpoints' / str(step)), averaged)[POSITIONS][...]


@pytest.fixture(scope='module')
def whole(start, data, tmp_path_factory) -> tuple[pathlib.Path, dict]:
  workdir = tmp_path_factory.mktemp('run')
  return workdir, leaves(setup.train(parse_config(recipe(start, data)), str(workdir)))


def test_the_table_of_positions_grows_at_boundaries(whole, start):
  workdir, params = whole
  first = open_checkpoint(start).params[POSITIONS][...]
  np.testing.assert_array_equal(table(workdir, STEPS), first)
  # The encoder trains in the last stage alone.
  second = np.asarray(resample_positions(jnp.asarray(first), 4))
  np.testing.assert_array_equal(table(workdir, 2 * STEPS), second)
  third = np.asarray(resample_positions(jnp.asarray(second), 6))
  moved = np.abs(params[POSITIONS] - third).max()
  assert 0 < moved < STEPS * 2e-3  # Adam's first steps are as long as the rate.
  assert np.abs(table(workdir, 3 * STEPS, averaged=True) - third).max() < moved


def test_a_workdir_is_opened_at_the_sizes_of_its_checkpoint(whole, tmp_path):
  workdir = whole[0]
  assert janus_jax.load(str(workdir)).config.vq.num_tokens == 144
  shutil.copytree(workdir, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / str(3 * STEPS))
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / str(3 * STEPS - 1))
  model = open_checkpoint(str(tmp_path / 'run')).config
  assert (model.image_size, model.vq.image_size, model.num_image_tokens) == (32, 32, 16)


@pytest.mark.parametrize('step', [STEPS, STEPS + 1, 2 * STEPS])
def test_a_run_that_is_cut_short_beside_a_boundary_goes_on_as_if_it_had_not(whole, start, data, tmp_path, step):
  workdir, params = whole
  own = tmp_path / 'run'
  shutil.copytree(workdir, own)
  config = recipe(start, data)
  config.keep_every = 1
  shutil.rmtree(own / 'checkpoints')
  kept = [STEPS, 2 * STEPS] if step == 2 * STEPS else [STEPS]
  for one in kept:
    shutil.copytree(workdir / 'checkpoints' / str(one), own / 'checkpoints' / str(one))
  if step == STEPS + 1:  # Goes on within a stage: stops there first.
    config.run = ('stage1', 'stage2')
    config.stages.stage2.steps = 1
    setup.train(parse_config(config), str(own), force=True)
    config = recipe(start, data)
  found = leaves(setup.train(parse_config(config), str(own), force=True))
  assert losses(own) == losses(workdir)
  for path in params:
    np.testing.assert_array_equal(found[path], params[path], err_msg=path)


def test_images_of_each_size_fill_rows_and_are_stored_as_codes(whole):
  workdir = whole[0]
  stored = sorted({path.name.split('-')[2].split('_')[0] for path in (workdir / 'codes').iterdir()})
  assert stored == [f'{size}px' for size in SIZES]
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines() if 'held_out' in line]
  assert [line['step'] for line in lines] == [STEPS, 2 * STEPS, 3 * STEPS]


def test_lora_keeps_the_table_of_its_size(start, data, tmp_path):
  config = recipe(start, data)
  stage = config.stages.stage3.to_dict() | {'steps': 1, 'trainable': ('gen_head',), 'lora': {'rank': 2, 'alpha': 4.0}}
  set_stages(config, {'tune': stage})
  config.optimizer.ema_decay, config.held_out_batches = 0.0, 0
  params = leaves(setup.train(parse_config(config), str(tmp_path)))
  first = open_checkpoint(start).params[POSITIONS][...]
  np.testing.assert_array_equal(params[POSITIONS], np.asarray(resample_positions(jnp.asarray(first), 6)))
  opened = open_checkpoint(str(tmp_path))
  assert opened.config.image_size == 48
  np.testing.assert_array_equal(opened.params[POSITIONS][...], params[POSITIONS])
