"""The recipes that read files: every source that a stage names is described, and is of the kind wanted there."""

import importlib.util
import pathlib

import pytest

from janus_jax.data.examples import KINDS
from janus_jax.data.sources.build import FORMATS, read_specs
from janus_jax.training.stages import read_stages

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
  for stage in read_stages(config):
    for kind, share in zip(KINDS, stage.ratio):
      names = {name for name, weight in stage.sources.get(kind, {}).items() if weight}
      assert bool(names) >= bool(share), (stage.name, kind)
      assert {specs[name].kind for name in names} <= {kind}
      used |= names
  assert used == set(specs)


@pytest.mark.parametrize('name', EXAMPLES)
def test_examples_describe_what_they_train_on(name):
  check(load(CONFIGS / 'data' / f'{name}.py'))


def test_there_is_an_example_of_every_format():
  found = {
    spec.format for name in EXAMPLES for spec in read_specs(load(CONFIGS / 'data' / f'{name}.py').data.sources).values()
  }
  assert found == set(FORMATS)


@pytest.mark.parametrize('name', ['janus_pro_1b', 'janus_pro_7b', 'janus_1_3b'])
def test_the_reports_read_their_own_data(name):
  check(load(CONFIGS / f'{name}.py', '/data'))
  stages = {stage.name: stage.sources for stage in read_stages(load(CONFIGS / f'{name}.py', '/data'))}
  assert stages['stage1']['generation'] == {'imagenet': 1}
  assert stages['stage2']['generation'] == stages['stage3']['generation'] == {'real': 1, 'synthetic': 1}
