"""Stages that learn from rewards and pairs, as runs: over a mesh, with LoRA, cut short and taken up again."""

import json
import pathlib
import shutil

import numpy as np
import pytest

pytest.importorskip('sklearn')

from e2e import small_run
from e2e.small_run import leaves, losses
from ml_collections import ConfigDict
from PIL import Image

from janus_jax.conversion.checkpoint import open_checkpoint
from janus_jax.errors import InputError
from janus_jax.models.lora import is_factor
from janus_jax.runs import setup
from janus_jax.runs.config import parse_config, set_stages
from janus_jax.training.metrics import read_metrics

STEPS = 4
REWARDS = '''
def brightness(records, images):
  """Of images that nobody has trained to be anything: differs from one to the next."""
  return [float(image.mean()) for record, image in zip(records, images)]


def length(records, answers):
  return [float(len(answer)) for record, answer in zip(records, answers)]
'''


@pytest.fixture(scope='module')
def rewards(tmp_path_factory) -> dict:
  """By what is sampled."""
  path = tmp_path_factory.mktemp('rewards') / 'rewards.py'
  path.write_text(REWARDS)
  functions = {'images': 'brightness', 'answers': 'length'}
  return {what: {'own': {'function': f'{path}:{name}'}} for what, name in functions.items()}


def recipe(start: str, data: str, objective: str, trainable=('gen_head', 'language_model'), lora=0, **preference):
  config = small_run.recipe(start, data)
  stage = config.stages.stage3.to_dict()
  del stage['preference'], stage['lora']
  settings = {'num_prompts': 4, 'group': 2, 'beta': 0.1, 'cfg_weight': 2.0, **preference}
  stage |= {'steps': STEPS, 'trainable': trainable, 'learning_rate': 1e-2, 'objective': objective}
  stage |= {'preference': settings, 'lora': {'rank': lora}}
  set_stages(config, {'prefer': stage})
  config.save_every, config.held_out_batches = 2, 0
  return config


def train(config: ConfigDict, workdir: pathlib.Path) -> dict[str, np.ndarray]:
  return leaves(setup.train(parse_config(config), str(workdir)))


def figures(workdir: pathlib.Path) -> list[tuple]:
  """Of each update, what does not depend on time."""
  lines = read_metrics(str(workdir / 'metrics.jsonl'))
  names = ('step', 'loss', 'grad_norm', 'reward', 'reward/own', 'divergence', 'margin', 'pairs_right', 'log_prob')
  return [tuple(line.get(name) for name in names) for line in lines if 'loss' in line]


@pytest.mark.parametrize(
  'how',
  [
    {'objective': 'grpo', 'log_probs': 'sampled', 'samples': 'answers', 'max_new_tokens': 6},
    {'objective': 'dpo', 'lora': 2, 'trainable': (), 'supervised': 0.5},
  ],
  ids=['answers', 'dpo'],
)
def test_a_run_that_is_cut_short_repeats_its_samples(how, start, data, rewards, tmp_path):
  config = recipe(start, data, rewards=rewards[how.get('samples', 'images')], **how)
  whole, short = tmp_path / 'whole', tmp_path / 'short'
  params = train(config, whole)
  found = figures(whole)
  assert [line[0] for line in found] == list(range(1, STEPS + 1))
  assert all(line[2] > 0 for line in found)
  shutil.copytree(whole, short)
  shutil.rmtree(short / 'checkpoints' / str(STEPS))
  again = train(config, short)
  assert figures(short) == found
  assert losses(short) == losses(whole)
  before = open_checkpoint(start).params
  for path in params:
    np.testing.assert_array_equal(again[path], params[path], err_msg=path)
    trains = is_factor(path) if how.get('lora') else path.startswith(('gen_head/', 'language_model/'))
    if not trains and path in before:
      np.testing.assert_array_equal(params[path], before[path][...], err_msg=path)
  assert any(is_factor(path) or (path in before and (params[path] != before[path][...]).any()) for path in params)


def test_stored_pairs_are_learned_without_any_other_data(start, data, tmp_path):
  """Of codes and of image files: after some updates every pair is told apart by far."""
  rng = np.random.default_rng(0)
  codes = rng.integers(0, 16, (4, 2, 36)).tolist()
  for name in ('one', 'other'):
    Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(tmp_path / f'{name}.png')
  codes[0] = ['one.png', 'other.png']
  lines = [{'prompt': f'picture {i}', 'chosen': one, 'rejected': other} for i, (one, other) in enumerate(codes)]
  path = tmp_path / 'pairs.jsonl'
  path.write_text(''.join(f'{json.dumps(line)}\n' for line in lines))
  config = recipe(start, data, 'dpo', pairs=str(path), supervised=0.0)
  config.data.name, config.data.precompute_codes, config.stages.prefer.steps = 'files', False, 8
  train(config, tmp_path / 'run')
  found = figures(tmp_path / 'run')
  assert found[0][1] == pytest.approx(np.log(2), abs=1e-5)
  assert found[0][6] == pytest.approx(0, abs=1e-3)
  assert found[-1][1] < 0.1
  assert found[-1][7] == 1
  assert found[-1][6] > 20


def test_stored_answers_are_learned_as_pairs(start, data, tmp_path):
  """About one image, several and none; and what is no such pair is refused."""
  rng = np.random.default_rng(0)
  for name in ('one', 'other'):
    Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(tmp_path / f'{name}.png')
  seen = [{'image': 'one.png'}, {'images': ['one.png', 'other.png']}, {}, {'image': 'other.png'}]
  answers = {'prompt': 'What is it?', 'chosen': 'a red circle', 'rejected': 'the digit two'}
  path = tmp_path / 'pairs.jsonl'
  path.write_text(''.join(f'{json.dumps(answers | images)}\n' for images in seen))
  how = {'samples': 'answers', 'pairs': str(path), 'supervised': 0.0}
  config = recipe(start, data, 'dpo', **how)
  config.data.name, config.data.precompute_codes, config.stages.prefer.steps = 'files', False, 8
  train(config, tmp_path / 'run')
  found = figures(tmp_path / 'run')
  assert found[0][1] == pytest.approx(np.log(2), abs=1e-5)
  assert found[-1][1] < 0.1
  assert found[-1][7] == 1
  for changes, message in (
    ({'image': 'none.png'}, 'pairs.jsonl prompt 1: .*none.png: no such file'),
    ({'images': 'one.png', 'chosen': 5}, 'pairs.jsonl pair 1: chosen: 5: expected an answer'),
    ({'image': 7}, 'pairs.jsonl prompt 1: images are 7: expected a list of paths'),
    ({'prompt': ' '}, 'pairs.jsonl line 1: expected'),
    ({'chosen': 'a ' * 70}, 'pair 1: chosen: .* tokens: expected at most 64'),
  ):
    path.write_text(f'{json.dumps(answers | changes)}\n')
    with pytest.raises(InputError, match=message):
      train(recipe(start, data, 'dpo', **how), tmp_path / 'other')


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'rewards': {}}, 'rewards: expected one or more with a weight'),
    ({'rewards': {'best': {}}}, "reward 'best' has neither a function nor a command"),
    ({'rewards': {'mine': {'function': 'no_such_module:red'}}}, "reward 'mine': no_such_module:red"),
    ({'rewards': {'toy': {}}, 'skills': ('drawing',)}, "skills: 'drawing' is unknown"),
    ({'rewards': {'toy': {}}, 'prompts': 'PROMPTS'}, "rewards.toy judges the toy world's own prompts"),
    ({'rewards': {'toy': {}}, 'num_prompts': 3}, 'num_prompts x group is 6: expected a multiple of 8'),
    ({'rewards': {'toy': {}}, 'pairs': 'PROMPTS'}, "pairs is for the objective 'dpo'"),
    ({'rewards': {'toy': {}}, 'samples': 'answers'}, "reward 'toy' has neither .* or one called answer"),
    ({'rewards': {'answer': {}}, 'samples': 'answers', 'prompts': 'PROMPTS'}, "rewards.answer: expected an 'answer'"),
  ],
)
def test_what_cannot_be_learned_from_is_refused_before_anything_is_written(changes, message, start, data, tmp_path):
  prompts = tmp_path / 'prompts.txt'
  prompts.write_text('a cat\n')
  changes = {name: str(prompts) if value == 'PROMPTS' else value for name, value in changes.items()}
  with pytest.raises(InputError, match=f'stages.prefer.preference: {message}'):
    train(recipe(start, data, 'grpo', **changes), tmp_path / 'run')
  assert not (tmp_path / 'run' / 'config.json').exists()
