"""Configs of ablations: what is checked of them, and that the ones we ship are whole."""

import importlib.util
import pathlib

import numpy as np
import pytest
from ml_collections import ConfigDict
from recipes import recipe

from janus_jax.ablation import compute, sweep
from janus_jax.ablation.settings import ablation_config, read_ablation, scaled, toy_base
from janus_jax.ablation.variants import steps_to_train
from janus_jax.errors import InputError
from janus_jax.runs.config import TrainConfig, default_config, parse_config, replaced, unshared
from janus_jax.runs.recipes import read_recipe
from janus_jax.training.optimizer import learning_rates

ROOT = pathlib.Path(__file__).parents[2]
SHIPPED = sorted((ROOT / 'configs' / 'ablations').glob('*.py'))


def load(path: pathlib.Path):
  spec = importlib.util.spec_from_file_location('recipe', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_the_ablations_of_the_issue_are_there():
  assert {path.stem for path in SHIPPED} == {
    *('schedules', 'stage1_length', 'imagenet_role', 'stage3_ratio', 'real_synthetic', 'stage2_trainable'),
    *('guidance_dropout', 'stage_masks', 'encoders', 'world', 'sizes'),
  }


@pytest.mark.parametrize('path', SHIPPED, ids=lambda path: path.stem)
def test_shipped_ablations_are_whole(path):
  module = load(path)
  assert f'python -m janus_jax.ablate --config=configs/ablations/{path.name} --workdir=DIR' in module.__doc__
  if path.stem == 'sizes':
    with pytest.raises(InputError, match=r"^scale is 'small': expected a positive number, as tiny\.py alone"):
      module.get_config('small')
  else:
    small = read_ablation(module.get_config('small')).base
    assert (small.data.toy_shapes, small.evaluation.toy) == (6, 0)
  whole, tenth = (read_ablation(module.get_config(scale)) for scale in ('1', '0.1'))
  assert len(whole.seeds) == 3
  steps = []
  for ablation in (whole, tenth):
    runs = sweep.all_runs(ablation, ablation.configs)
    assert len({run.name for run in runs}) == 3 * len(ablation.variants)
    steps.append(steps_to_train(runs))
  assert steps[1] == pytest.approx(steps[0] / 10, rel=0.02)


@pytest.mark.parametrize('scale', ['1', '0.1'])
@pytest.mark.parametrize('path', SHIPPED, ids=lambda path: path.stem)
def test_a_stage_in_two_parts_is_one_stage_to_the_optimizer(path, scale):
  """Else a restart of the rate and of the moments would be compared as well."""
  for name, config in read_ablation(load(path).get_config(scale)).configs.items():
    stages = config.run_stages
    alike = [(stage.trainable, stage.learning_rate, stage.ratio) for stage in stages]
    split = [index for index in range(1, len(stages)) if alike[index] == alike[index - 1]]
    assert bool(split) == ((path.stem, name) in {('imagenet_role', 'first'), ('schedules', 'janus')}), name
    for index in split:
      parts = stages[index - 1 : index + 1]
      rates = [
        learning_rates(part.schedule, part.learning_rate, part.warmup_steps, part.steps, part.final_fraction)
        for part in parts
      ]
      first, steps = parts[0], sum(part.steps for part in parts)
      whole = learning_rates(first.schedule, first.learning_rate, first.warmup_steps, steps, first.final_fraction)
      np.testing.assert_array_equal(np.concatenate(rates), whole)
      assert parts[1].carry_moments


def test_the_order_of_the_data_is_all_that_imagenet_role_compares():
  """Rates and warm-up of Stage II are the same in all variants, at each of its steps."""
  configs = read_ablation(load(ROOT / 'configs' / 'ablations' / 'imagenet_role.py').get_config()).configs
  found = []
  for config in configs.values():
    stages = [stage for stage in config.run_stages if stage.name.startswith('stage2')]
    rates = [learning_rates(stage.schedule, stage.learning_rate, stage.warmup_steps, stage.steps) for stage in stages]
    found.append(np.concatenate(rates))
  assert len(found) == 3
  np.testing.assert_array_equal(found[1], found[0])
  np.testing.assert_array_equal(found[2], found[0])


def test_a_longer_first_stage_warms_up_for_as_long_a_part_of_it():
  configs = read_ablation(load(ROOT / 'configs' / 'ablations' / 'stage1_length.py').get_config()).configs
  parts = {
    stage.warmup_steps / stage.steps
    for config in configs.values()
    for stage in config.run_stages
    if stage.name == 'stage1'
  }
  assert max(parts) - min(parts) < 0.02


def test_stage3_ratio_trains_two_stages_once():
  ablation = read_ablation(load(ROOT / 'configs' / 'ablations' / 'stage3_ratio.py').get_config())
  runs = sweep.all_runs(ablation, ablation.configs)
  first, second, third = (stage.steps for stage in ablation.base.stages.values())
  assert steps_to_train(runs) == 3 * (first + second + 5 * third)
  assert sum(run.steps for run in runs) == 3 * 5 * (first + second + third)


def small() -> ConfigDict:
  return ablation_config(recipe('tiny'), {'a': {}, 'b': {'seed': 1}}, 'a')


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    ('baseline', 'c', r"^baseline is 'c': expected one of the variants, a, b$"),
    ('seeds', (), r'^seeds is empty'),
    ('seeds', (0, 0), r'^seeds are \(0, 0\): expected each once'),
    ('seeds', (-1,), r'^seeds are \(-1,\): expected integers from 0'),
    ('variants', ConfigDict(), r'^variants is empty'),
    ('variants', ConfigDict({'a': {}, 'b/c': {}}), r"^variants: 'b/c' is no name"),
    ('equal_flops', ConfigDict({'a': ('stage1',)}), r"^equal_flops: 'a': expected a variant other than the baseline"),
    ('base.data.name', 'files', r'^evaluation.scores is True: expected False'),
    ('evaluation.questions_per_kind', 0, r'^evaluation.questions_per_kind is 0: expected 1 or more'),
  ],
)
def test_wrong_settings(field, value, message):
  config = small()
  *parents, last = field.split('.')
  node = config
  for part in parents:
    node = node[part]
  node[last] = value
  with pytest.raises(InputError, match=message):
    read_ablation(config)


def test_an_ablation_starts_from_the_recipe_that_its_argument_names():
  configs = pathlib.Path(__file__).parents[2] / 'configs'
  steps = {name: toy_base(configs, name).stages.stage2.steps for name in ('1', '0.1', 'tiny', 'small', 'small,0.1')}
  recipes = {name: read_recipe(str(configs / f'{name}.py')) for name in ('tiny', 'small')}
  assert steps['1'] == steps['tiny'] == recipes['tiny'].stages.stage2.steps
  assert steps['small'] == recipes['small'].stages.stage2.steps
  assert (steps['0.1'], steps['small,0.1']) == (round(steps['tiny'] / 10), round(steps['small'] / 10))
  assert toy_base(configs, 'small,0.1').data.toy_shapes == 6
  with pytest.raises(InputError, match="scale is 'large': expected tiny or small, a positive number"):
    toy_base(configs, 'large')


@pytest.mark.parametrize('scale', ['0', '-1', 'half', 'inf', 'nan'])
def test_wrong_scales(scale):
  with pytest.raises(InputError, match='a positive number by which all steps'):
    scaled(default_config(), scale)


def test_runs_do_not_look_along_the_way():
  base = small().base
  assert (base.held_out_batches, base.sampling.num_images, base.eval_every) == (0, 0, 0)


def schedule() -> TrainConfig:
  config = parse_config(recipe('tiny'))
  return replaced(config, {f'stages.stage{n}.warmup_steps': 0 for n in (1, 2, 3)} | STEPS)


STEPS = {'stages.stage1.steps': 10, 'stages.stage2.steps': 100, 'stages.stage3.steps': 40}
PRICES = {'stage1': 1.0, 'stage2': 3.0, 'stage3': 5.0}


def test_equal_compute_keeps_the_proportions():
  # 10 + 300 + 200 = 510; twice that is wanted.
  steps = compute.matched_steps(schedule(), PRICES, 1020.0, ('stage1', 'stage2', 'stage3'), 'x')
  assert steps == {'stage1': 20, 'stage2': 200, 'stage3': 80}
  steps = compute.matched_steps(schedule(), PRICES, 1020.0, ('stage2',), 'x')
  assert steps == {'stage2': 270}
  changed = replaced(schedule(), {'stages.stage2.steps': 270})
  assert compute.total_flops(changed, PRICES) == 1020


@pytest.mark.parametrize(
  ('budget', 'stages', 'message'),
  [(200.0, ('stage1',), 'cost more than the whole baseline'), (900.0, ('stage9',), "x: 'stage9': expected stages")],
)
def test_equal_compute_that_cannot_be(budget, stages, message):
  with pytest.raises(InputError, match=message):
    compute.matched_steps(schedule(), PRICES, budget, stages, 'x')


def test_a_part_in_two_places_becomes_two():
  shared = {'a': {'b': 1}}
  config = ConfigDict({'x': shared, 'y': shared})
  copy = ConfigDict(unshared(config.to_dict()))
  copy.x.a.b = 2
  assert (copy.y.a.b, config.x.a.b) == (1, 1)
