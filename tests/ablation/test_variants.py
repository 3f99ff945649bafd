"""Overrides of fields, and which runs share which stages."""

import pytest
from ml_collections import ConfigDict

from janus_jax.ablation.settings import ablation_config, read_ablation
from janus_jax.ablation.variants import in_order, planned, shared_stages, steps_to_train
from janus_jax.errors import InputError
from janus_jax.runs.config import TrainConfig, default_config, parse_config, replaced


def base_config() -> ConfigDict:
  config = default_config()
  config.init_from = 'somewhere'
  sources = {'understanding': {'shapes': 1}, 'text': {'captions': 1}, 'generation': {'shapes': 3, 'digits': 1}}
  # One dict in three stages, as configs/tiny.py has it.
  common = {'sources': sources, 'batch_size': 4, 'learning_rate': 1e-3, 'ratio': (1, 1, 1), 'trainable': ('gen_head',)}
  config.stages = {name: {**common, 'steps': 10 * number} for number, name in enumerate(config.run, start=1)}
  return config


def overridden(overrides: dict, name: str = 'x') -> TrainConfig:
  config = ablation_config(base_config(), {name: overrides}, name)
  config.evaluation.scores = False
  return read_ablation(config).configs[name]


def run_of(overrides: dict, seed: int = 0, variant: str = 'x'):
  return planned(variant, seed, overridden(overrides, variant))


def test_a_field_of_one_stage_is_not_that_of_the_others():
  base = base_config()
  assert base.stages.stage1.sources is base.stages.stage2.sources  # What ConfigDict makes of one dict given twice.
  changed = overridden({'stages.stage2.sources.generation': {'digits': 1}, 'stages.stage1.steps': 7}).stages
  assert changed['stage2'].sources['generation'] == {'digits': 1}
  assert changed['stage1'].sources['generation'] == {'shapes': 3, 'digits': 1}
  assert (changed['stage1'].steps, base.stages.stage1.steps) == (7, 10)


def test_stages_and_their_optional_fields_may_be_new():
  stage = base_config().stages.stage2.to_dict()
  changed = overridden({'stages.extra': stage, 'stages.stage1.weight_decay': 0.1}).stages
  assert changed['extra'].steps == 20
  assert changed['stage1'].weight_decay == 0.1


@pytest.mark.parametrize(
  ('name', 'value', 'message'),
  [
    ('stages.stage1.stepz', 1, r'^variant a: stages\.stage1\.stepz is unknown: did you mean steps\?$'),
    ('guidance', 0.1, r'^variant a: guidance is unknown: did you mean guidance_dropout\?$'),
    ('seed.x', 1, r"^variant a: seed is {'x': 1}: expected an integer"),
    ('stages.stage9.steps', 1, r'^variant a: stages\.stage9\.\w+ is missing$'),
    ('stages.stage1.steps', 'many', r"^variant a: stages\.stage1\.steps is 'many': expected an integer, 1 or more$"),
  ],
)
def test_wrong_overrides(name, value, message):
  with pytest.raises(InputError, match=message):
    overridden({name: value}, 'a')


def test_runs_share_what_is_the_same_from_the_first_stage_on():
  run = run_of({})
  assert run.ends == (10, 30, 60)
  for overrides, shared in (
    ({'stages.stage3.steps': 1}, 2),
    ({'stages.stage2.ratio': (1, 0, 1)}, 1),
    ({'stages.stage1.steps': 11}, 0),
    ({'guidance_dropout': 0.2}, 0),
    ({'optimizer.b1': 0.8}, 0),
    ({'sampling.cfg_weight': 1.0}, 3),
    ({'run': ('stage1', 'stage2')}, 2),
    ({'run': ('stage2', 'stage3')}, 0),
    ({'init_from': 'elsewhere'}, 0),
  ):
    assert shared_stages(run, run_of(overrides).prefixes) == shared, overrides
  assert shared_stages(run, run_of({}, seed=1).prefixes) == 0


def test_traced_masks_carry_the_moments_of_later_stages():
  traced = {'stage_masks': 'traced'}
  later = {**traced, 'stages.stage3.trainable': ('gen_head', 'language_model')}
  assert shared_stages(run_of(traced), run_of(later).prefixes) == 0
  assert shared_stages(run_of({}), run_of({'stages.stage3.trainable': ('language_model',)}).prefixes) == 2


def test_a_run_with_factors_shares_nothing_with_one_without():
  later = run_of({'stages.stage3.lora.rank': 4})
  assert shared_stages(run_of({}), later.prefixes) == 0
  assert shared_stages(later, run_of({'stages.stage3.lora.rank': 4, 'stages.stage3.steps': 1}).prefixes) == 2


def test_another_config_is_another_run():
  assert run_of({}).name == run_of({}).name
  assert run_of({}).name != run_of({'sampling.cfg_weight': 1.0}).name
  assert run_of({}).name.startswith('x-seed0-')


def test_parts_are_made_once_or_once_per_seed():
  config = base_config()
  config.init_from, config.pretraining = '', {'model': 'test_tiny'}
  config = parse_config(config)
  one, two = (planned('x', seed, config) for seed in (1, 2))
  assert one.parts == two.parts != ''
  assert one.parts_seed == two.parts_seed == config.seed
  for change in ({'data.toy_colours': 7}, {'data.num_train': 0}, {'pretraining.contrast.near_misses': 3}):
    assert planned('x', 1, replaced(config, change)).parts != one.parts
  one, two = (planned('x', seed, config, parts_per_seed=True) for seed in (1, 2))
  assert one.parts != two.parts
  assert (one.parts_seed, two.parts_seed) == (1, 2)
  other = planned('x', 1, config)
  assert other.name != one.name
  assert shared_stages(other, one.prefixes) == 0
  with pytest.raises(InputError, match=r'^base.init_from is empty and there is no base.pretraining'):
    planned('x', 1, replaced(config, {'pretraining': None}))


def test_the_order_of_runs_and_the_steps_they_need():
  variants = {'a': {}, 'b': {'stages.stage1.steps': 5}, 'c': {'stages.stage3.steps': 1}}
  runs = [run_of(overrides, seed, name) for seed in (1, 0) for name, overrides in variants.items()]
  assert [(run.seed, run.variant) for run in in_order(runs)] == [
    (seed, name) for seed in (1, 0) for name in ('a', 'c', 'b')
  ]
  assert steps_to_train(runs) == 2 * (60 + 1 + 55)


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    ({'run': ('stage1', 'stage4')}, r"^variant x: run: no stage is called 'stage4'"),
    ({'run': ()}, r'^variant x: run is \(\): expected a tuple of one or more names$'),
  ],
)
def test_wrong_schedules(overrides, message):
  with pytest.raises(InputError, match=message):
    run_of(overrides)
