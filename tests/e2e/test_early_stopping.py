"""A run that ends where its held-out loss does not fall any more, and is opened where it was lowest."""

import json
import math
import shutil

import numpy as np
import pytest

pytest.importorskip('sklearn')

from e2e import small_run
from e2e.small_run import leaves, losses

from janus_jax.conversion.checkpoint import open_checkpoint
from janus_jax.errors import InputError
from janus_jax.runs import setup
from janus_jax.runs.callbacks import HeldOutLoss
from janus_jax.runs.config import parse_config
from janus_jax.training.early_stopping import NO_BEST, Best

LOSSES = [
  3.0,
  2.5,
  2.0,
  2.2,
  math.nan,
  2.1,
  1.0,
]  # After steps 1, 2, ...; a run with a patience of 3 ends at the sixth.


def test_the_best_is_the_lowest_mean_over_tasks():
  best = NO_BEST.after(5, {'understanding': 2.0, 'generation': 4.0})
  assert best == Best(5, 3.0)
  assert best.after(10, {'understanding': 1.0, 'generation': 5.0}) == Best(5, 3.0, waited=1)
  assert best.after(10, {'text': math.nan}).after(15, {'text': 3.1}) == Best(5, 3.0, waited=2)
  assert best.after(10, {'text': 3.1}).after(15, {'text': 2.9}) == Best(15, 2.9)


def recipe(start: str, data: str):
  config = small_run.recipe(start, data)
  config.run, config.stages.stage3.steps = ('stage3',), 9
  config.eval_every, config.patience, config.save_every, config.keep_last = 1, 3, 9, 1
  return parse_config(config)


def train(config, workdir, monkeypatch, values=LOSSES) -> dict:
  monkeypatch.setattr(HeldOutLoss, 'measure', lambda self, params: {'text': next(left)})
  left = iter(values)
  return leaves(setup.train(config, str(workdir)))


@pytest.fixture(scope='module')
def run(start, data, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('run')
  with pytest.MonkeyPatch.context() as patch:
    return workdir, train(recipe(start, data), workdir, patch)


def test_it_ends_early_and_is_opened_at_its_best(run):
  workdir, params = run
  assert [line[0] for line in losses(workdir)] == [1, 2, 3, 4, 5, 6]
  steps = {int(path.name) for path in (workdir / 'checkpoints').iterdir()}
  assert steps == {3, 6}
  opened = {path: array[...] for path, array in open_checkpoint(str(workdir)).params.items()}
  shutil.copytree(workdir, workdir.parent / 'newest')
  shutil.rmtree(workdir.parent / 'newest' / 'checkpoints' / '6')
  third = open_checkpoint(str(workdir.parent / 'newest')).params
  path = 'language_model/layers/mlp/up/kernel'
  np.testing.assert_array_equal(opened[path], third[path][...])
  assert (opened[path] != params[path]).any()


def test_it_goes_on_as_it_would_have(run, start, data, tmp_path, monkeypatch, caplog):
  whole, params = run
  workdir = tmp_path / 'run'
  shutil.copytree(whole, workdir)
  shutil.rmtree(workdir / 'checkpoints' / '6')
  found = train(recipe(start, data), workdir, monkeypatch, LOSSES[3:])
  assert losses(workdir) == losses(whole)
  for path in params:
    np.testing.assert_array_equal(found[path], params[path], err_msg=path)
  # It is over: nothing is measured, nothing trains.
  train(recipe(start, data), workdir, monkeypatch, [])
  assert losses(workdir) == losses(whole)
  metadata = json.loads((workdir / 'checkpoints' / '6' / '_CHECKPOINT_METADATA').read_text())['custom_metadata']
  assert metadata['best'] == {'step': 3, 'loss': 2.0, 'waited': 3}


def test_patience_wants_something_to_wait_for(start, data, tmp_path):
  config = small_run.recipe(start, data)
  config.patience, config.eval_every = 2, 0
  with pytest.raises(InputError, match='patience is 2 and eval_every is 0: expected evaluations of the held-out loss'):
    parse_config(config)
