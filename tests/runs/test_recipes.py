"""The recipes that read files: every source that a stage names is described, and is of the kind wanted there."""

import ast
import importlib.util
import pathlib
import re

import numpy as np
import pytest

from janus_jax.conversion.translate import parameter_shapes
from janus_jax.data.examples import TASKS
from janus_jax.data.sources.build import FORMATS, read_specs
from janus_jax.errors import InputError
from janus_jax.models.config import PRESETS
from janus_jax.runs.config import parse_config
from janus_jax.runs.data_checking import stage_fractions
from janus_jax.runs.finetuning import CARDS
from janus_jax.runs.report_data import TOKENS
from janus_jax.runs.start import find_start
from janus_jax.training.stages import stage_models

CONFIGS = pathlib.Path(__file__).parent.parent.parent / 'configs'
EXAMPLES = sorted(path.stem for path in (CONFIGS / 'data').glob('*.py'))


def load(path: pathlib.Path, *arguments: str):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*arguments)


def check(config) -> None:
  specs, used = read_specs(config.data.sources), set()
  assert config.data.name == 'files'
  for stage in parse_config(config).run_stages:
    for kind, share in zip(TASKS, stage.ratio):
      names = {name for name, weight in stage.sources.get(kind, {}).items() if weight}
      assert bool(names) >= bool(share), (stage.name, kind)
      assert {specs[name].kind for name in names} <= {kind}
      used |= names
  assert used == set(specs)


@pytest.mark.parametrize('name', EXAMPLES)
def test_examples_describe_what_they_train_on(name):
  check(load(CONFIGS / 'data' / f'{name}.py'))


@pytest.mark.parametrize('card', ['', *CARDS])
@pytest.mark.parametrize('name', ['pictures', 'questions', 'mixed'])
def test_recipes_for_one_card_train_factors_and_stop_early(name, card):
  config = load(CONFIGS / 'finetune' / f'{name}.py', f'/data:{card}' if card else '/data')
  check(config)
  parsed = parse_config(config)
  (stage,) = parsed.run_stages
  assert stage.lora.rank
  assert not stage.trainable
  assert parsed.init_from == CARDS[card or '1b_16gb'].init_from
  assert all(spec.held_out for spec in parsed.data.specs.values())
  assert parsed.patience * parsed.eval_every < stage.steps
  # What `plan` and `benchmark` start from without a download.
  start = find_start(parsed, name)
  assert start.dtypes.keys() == parameter_shapes(start.model, parsed.lora).keys()
  assert set(start.dtypes.values()) == {'bfloat16', 'float32', *(['int8'] if stage.lora.base_dtype else [])}


def test_an_unknown_card_is_refused():
  with pytest.raises(InputError, match="card is '8gb': expected one of 1b_16gb, 7b_24gb, 7b_80gb"):
    load(CONFIGS / 'finetune' / 'pictures.py', '/data:8gb')


def test_there_is_an_example_of_every_format():
  found = {
    spec.format for name in EXAMPLES for spec in read_specs(load(CONFIGS / 'data' / f'{name}.py').data.sources).values()
  }
  assert found == set(FORMATS)


def test_the_readme_of_configs_has_entries_that_are_read():
  text = (CONFIGS / 'README.md').read_text()
  (code,) = re.findall(r'```python\nconfig\.data\.sources = (.*?)```', text, re.DOTALL)
  specs = read_specs(ast.literal_eval(code))
  assert {spec.format for spec in specs.values()} == set(FORMATS)
  for name in EXAMPLES:
    assert f'data/{name}.py' in text


def test_the_readme_of_configs_counts_tokens_right():
  text = ' '.join((CONFIGS / 'README.md').read_text().split())
  stage = parse_config(load(CONFIGS / 'janus_pro_7b.py', '/data')).stages['stage2']
  assert stage.ratio == (2, 3, 5)
  for lengths, said in (((800, 4096, 650), '9 : 72 : 19'), (stage.expected_tokens, '23 : 27 : 50')):
    of_sources = {f'{kind}/{name}': n for kind, n in zip(TASKS, lengths) for name in stage.sources[kind]}
    found = stage_fractions(stage, of_sources)
    by_kind = [sum(tokens for name, (_, tokens) in found.items() if name.startswith(kind)) for kind in TASKS]
    assert ' : '.join(f'{100 * part:.0f}' for part in by_kind) == said
    assert f'it is {said}' in text or f'2 : 3 : 5 is {said}' in text


REPORTS = ('janus_1_3b', 'janus_pro_1b', 'janus_pro_7b')


@pytest.mark.parametrize('name', REPORTS)
def test_the_reports_read_their_own_data(name):
  check(load(CONFIGS / f'{name}.py', '/data'))


def generated(config) -> list[set[tuple]]:
  """What each stage generates: (where it lies, how often, template, part of the captions cut to a sentence)."""
  specs = read_specs(config.data.sources)

  def described(name: str, weight: int) -> tuple:
    where = specs[name].path[0].removeprefix('/data/').removesuffix('/*.tar')
    return where, weight, specs[name].template, specs[name].fields.first_sentence

  stages = [config.stages[stage].sources.generation for stage in config.run]
  return [{described(name, weight) for name, weight in weights.items()} for weights in stages]


def test_janus_generates_what_its_paper_says():
  """arXiv 2410.13848, section 4.1: ImageNet in Stage I and two thirds of Stage II, captions of which a quarter
  is cut in the last third, nothing synthetic, all as `<caption><image>`; conversations in Stage III.
  """
  config = load(CONFIGS / 'janus_1_3b.py', '/data')
  imagenet = ('imagenet2012', 1, 'raw', 0.0)
  assert generated(config) == [{imagenet}, {imagenet}, {('real', 1, 'raw', 0.25)}, {('real', 1, 'chat', 0.0)}]
  assert (
    config.stages.stage2_imagenet.steps / (config.stages.stage2_imagenet.steps + config.stages.stage2.steps) == 2 / 3
  )
  assert config.template == 'deepseek_old'


@pytest.mark.parametrize('name', ['janus_pro_1b', 'janus_pro_7b'])
def test_janus_pro_generates_what_its_report_says(name):
  """arXiv 2501.17811, sections 2.2 and 2.3: no ImageNet in Stage II, real : synthetic 1 : 1 there, dense captions."""
  config = load(CONFIGS / f'{name}.py', '/data')
  assert generated(config) == [
    {('imagenet2012', 1, 'raw', 0.0)},
    {('real', 1, 'raw', 0.0), ('synthetic', 1, 'raw', 0.0)},
    {('real', 1, 'chat', 0.0)},
  ]
  assert config.template in ('', 'deepseek')


@pytest.mark.parametrize('name', ['janus_pro_1b', 'janus_pro_7b'])
def test_sizes_are_stages_after_the_reports(name):
  plain, config = (parse_config(load(CONFIGS / f'{name}.py', f'/data{more}')) for more in ('', ',sizes=384-512-768'))
  assert config.run == (*plain.run, 'stage4_512', 'stage5_768')
  models = stage_models(PRESETS[name], config.run_stages)
  assert [model.image_size for model in models] == [model.vq.image_size for model in models] == [384] * 3 + [512, 768]
  third, fourth, fifth = (config.stages[stage] for stage in config.run[2:])
  assert third == plain.stages['stage3']
  # As many tokens an update, of fewer images.
  assert {stage.batch_size for stage in (third, fourth, fifth)} == {128}
  assert [stage.expected_tokens[2] - third.expected_tokens[2] for stage in (fourth, fifth)] == [1024 - 576, 2304 - 576]
  assert fifth.expected_tokens[1] == third.expected_tokens[1]
  assert [stage.learning_rate for stage in (fourth, fifth)] == [4e-5, 2e-5]


@pytest.mark.parametrize('sizes', ['512-384', '384-x', '384-384', ''])
def test_odd_sizes_are_refused(sizes):
  with pytest.raises(InputError, match=f"'sizes={sizes}': expected sizes=A-B-"):
    load(CONFIGS / 'janus_pro_7b.py', f'/data,sizes={sizes}')


@pytest.mark.parametrize('name', REPORTS)
def test_pretraining_understands_without_roles(name):
  """Janus paper: `<image><text>` in Stage I, `<image>Describe the image in detail.<caption>` in Stage II."""
  config = load(CONFIGS / f'{name}.py', '/data')
  specs = read_specs(config.data.sources)
  assert {specs[source].fields.questions for source in config.stages.stage1.sources.understanding} == {('',)}
  assert specs['captions'].fields.questions == ('Describe the image in detail.',)
  for stage in config.run:
    templates = {specs[source].template for source in config.stages[stage].sources.understanding}
    assert templates == ({'chat'} if stage == 'stage3' else {'raw'})


@pytest.mark.parametrize('name', REPORTS)
def test_the_lengths_that_plan_assumes_are_those_of_the_stage_s_sources(name):
  """With and without the data: `plan` reads none."""
  with_data = parse_config(load(CONFIGS / f'{name}.py', '/data')).run_stages
  for stage, other in zip(with_data, parse_config(load(CONFIGS / f'{name}.py')).run_stages):
    assert stage.expected_tokens == other.expected_tokens
    for kind, share, expected in zip(TASKS, stage.ratio, stage.expected_tokens):
      lengths = {TOKENS[source]: weight for source, weight in stage.sources.get(kind, {}).items()}
      if share:
        assert expected == np.average(list(lengths), weights=list(lengths.values()))
