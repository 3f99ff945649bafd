"""The stage schedule: the reports' numbers in configs/, and what is refused."""

import dataclasses
import importlib.util
import pathlib

import pytest
from ml_collections import ConfigDict

from janus_jax.conversion.translate import parameter_shapes
from janus_jax.errors import InputError
from janus_jax.models.config import PRESETS
from janus_jax.runs.config import parse_config
from janus_jax.training.stages import Stage, stage_ends, stage_models, trained_groups, trained_paths

CONFIGS = pathlib.Path(__file__).parent.parent.parent / 'configs'
SHAPES = parameter_shapes(PRESETS['test_tiny'])


def recipe(name: str) -> ConfigDict:
  spec = importlib.util.spec_from_file_location(name, CONFIGS / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()


# Janus paper, Table 1; Janus-Pro report, Table 2 and section 3.1 (Stage II stopped at 270K).
TABLES = {
  'janus_1_3b': {
    # Stage II in two parts (section 4.1): ImageNet's images in the first 120K of its 180K steps. Its rate is constant
    # and warms up once.
    'steps': (10_000, 120_000, 60_000, 24_000),
    'batch_size': (256, 512, 512, 256),
    'learning_rate': (1e-3, 1e-4, 1e-4, 2e-5),
    'warmup_steps': (300, 5000, 0, 0),
    'weight_decay': (0, 0, 0, 0.1),
    'schedule': ('cosine', 'constant', 'constant', 'constant'),
    'ratio': ((1, 0, 1), (2, 3, 5), (2, 3, 5), (7, 3, 10)),
    'carry_moments': (False, False, True, False),
  },
  'janus_pro_1b': {
    'steps': (20_000, 270_000, 80_000),
    'batch_size': (256, 512, 128),
    'learning_rate': (1e-3, 1e-4, 4e-5),
    'warmup_steps': (600, 5000, 0),
    'weight_decay': (0, 0, 0),
    'schedule': ('constant',) * 3,
    'ratio': ((1, 0, 3), (2, 3, 5), (5, 1, 4)),
    'carry_moments': (False,) * 3,
  },
}
TABLES['janus_pro_7b'] = {**TABLES['janus_pro_1b'], 'steps': (20_000, 270_000, 40_000)}


@pytest.mark.parametrize('name', TABLES)
def test_recipes_hold_the_tables(name):
  config = recipe(name)
  stages = parse_config(config).run_stages
  for field, values in TABLES[name].items():
    assert tuple(getattr(stage, field) for stage in stages) == values, field
  optimizer = config.optimizer
  assert (optimizer.b1, optimizer.b2, optimizer.max_grad_norm) == (0.9, 0.95, 1.0)
  assert config.guidance_dropout == 0.1
  assert all(stage.loss_weights == (1, 1, 1) for stage in stages)


@pytest.mark.parametrize('name', [*TABLES, 'tiny'])
def test_a_stage_changes_alone(name):
  config = recipe(name)
  before = config.stages.stage3.to_dict()
  config.stages.stage2.sources.understanding.shapes = 7
  assert config.stages.stage2.sources.understanding.shapes == 7
  assert config.stages.stage3.to_dict() == before


@pytest.mark.parametrize('name', [*TABLES, 'tiny', 'data/folder'])
def test_every_field_of_a_stage_can_be_a_flag(name):
  """A flag changes what is there already."""
  fields = {field.name for field in dataclasses.fields(Stage)} - {'name'}
  for stage in recipe(name).stages.values():
    assert set(stage) == fields


@pytest.mark.parametrize('name', [*TABLES, 'tiny'])
def test_each_stage_trains_what_the_paper_says(name):
  first = {'vision_aligner', 'gen_aligner', 'gen_head', 'gen_embed'}
  expected = {'1': first, '2': first | {'language_model'}, '3': first | {'language_model', 'vision_encoder'}}
  for stage in parse_config(recipe(name)).run_stages:
    number = stage.name.removeprefix('stage').removesuffix('_imagenet')
    assert trained_groups(trained_paths(stage, SHAPES)) == expected[number]


def test_run_chooses_and_repeats_stages():
  config = recipe('tiny')
  config.run = ('stage2', 'stage3', 'stage2')
  stages = parse_config(config).run_stages
  assert [stage.name for stage in stages] == ['stage2', 'stage3', 'stage2']
  ends = stage_ends(stages)
  assert [ends[0], ends[1] - ends[0], ends[2] - ends[1]] == [stage.steps for stage in stages]


def test_a_group_is_not_taken_for_one_whose_name_it_ends():
  config = recipe('tiny')
  config.stages.stage1.trainable = ('gen_aligner',)
  paths = trained_paths(parse_config(config).run_stages[0], SHAPES)
  assert paths
  assert all(path.startswith('gen_aligner/') for path in paths)


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    ('ratio', (0, 0, 0), r'^stages\.stage2\.ratio is \(0, 0, 0\): expected understanding:text:generation'),
    ('ratio', (1, -1, 1), r'is \(1, -1, 1\): expected .*, each an integer, 0 or more, not all 0$'),
    (
      'sources',
      {'text': {'captions': 1}},
      r'^stages\.stage2\.sources: no source of understanding, of which the ratio has 2',
    ),
    ('steps', 0, r'^stages\.stage2\.steps is 0: expected 1 or more$'),
    ('schedule', 'step', r"^stages\.stage2\.schedule is 'step': expected one of constant, cosine, linear$"),
    (
      'trainable',
      (),
      r'^stages\.stage2\.trainable is empty: expected parameters that train, or stages\.stage2\.lora\.rank$',
    ),
    (
      'expected_tokens',
      (800, 0, 650),
      r'^stages\.stage2\.expected_tokens is \(800, 0, 650\): .*, each a number above 0$',
    ),
    ('expected_tokens', (800,), r'^stages\.stage2\.expected_tokens is \(800,\): expected understanding:text:gen'),
    ('carry_moments', 'yes', r"^stages\.stage2\.carry_moments is 'yes': expected True or False$"),
    ('learning_rat', 1.0, r'^stages\.stage2\.learning_rat is unknown: did you mean learning_rate\?$'),
  ],
)
def test_bad_stages_are_refused(field, value, message):
  config = recipe('tiny')
  with config.unlocked(), config.ignore_type():
    config.stages.stage2[field] = ConfigDict(value) if isinstance(value, dict) else value
  with pytest.raises(InputError, match=message):
    parse_config(config)


def test_unknown_stage_and_empty_run():
  config = recipe('tiny')
  config.run = ('stage4',)
  with pytest.raises(InputError, match=r"^run: no stage is called 'stage4': expected some of stage1"):
    parse_config(config)
  config.run = ()
  with pytest.raises(InputError, match=r'^run is \(\): expected a tuple of one or more names$'):
    parse_config(config)


@pytest.mark.parametrize(('pattern', 'message'), [('aligner', 'matches no parameter'), ('(', 'no regular expression')])
def test_patterns_that_match_nothing(pattern, message):
  config = recipe('tiny')
  config.stages.stage1.trainable = (pattern,)
  with pytest.raises(InputError, match=rf'^stages\.stage1\.trainable: .*{message}'):
    trained_paths(parse_config(config).run_stages[0], SHAPES)


def staged(*sizes: tuple[int, int]) -> list[Stage]:
  fields = {'steps': 1, 'batch_size': 1, 'trainable': (), 'learning_rate': 1.0, 'ratio': (1, 0, 0), 'sources': {}}
  return [Stage(name=f's{i}', image_size=u, generation_size=g, **fields) for i, (u, g) in enumerate(sizes)]


def test_sizes_hold_until_a_stage_names_others():
  found = stage_models(PRESETS['janus_pro_7b'], staged((0, 0), (512, 0), (0, 768), (768, 0)))
  assert [(m.image_size, m.vq.image_size) for m in found] == [(384, 384), (512, 384), (512, 768), (768, 768)]
  assert [(m.num_image_tokens, m.vq.num_tokens) for m in found][-1] == (2304, 2304)
  assert stage_models(PRESETS['janus_pro_7b'], staged((256, 256)))[0].image_size == 256  # The first may begin smaller.


@pytest.mark.parametrize(
  ('sizes', 'message'),
  [
    (((0, 0), (368, 0)), r'^stages\.s1\.image_size is 368: expected at least 384, as in the stage before it, or 0$'),
    (((512, 512), (0, 384)), r'^stages\.s1\.generation_size is 384: expected at least 512'),
    (((400, 0), (500, 0)), r'^stages\.s1: vision_encoder\.image_size is 500: expected a multiple of 16 '),
    (((0, 500),), r'^stages\.s0: vq\.image_size is 500: expected a multiple of 16 '),
  ],
)
def test_sizes_that_shrink_or_do_not_divide_are_refused(sizes, message):
  with pytest.raises(InputError, match=message):
    stage_models(PRESETS['janus_pro_7b'], staged(*sizes))
