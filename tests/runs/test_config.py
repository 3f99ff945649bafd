"""The config of a run: parsed once, written, read back, and described."""

import dataclasses
import itertools
import pathlib
import re
import shutil

import pytest
from ml_collections import ConfigDict
from recipes import recipe

from janus_jax.errors import InputError
from janus_jax.models.config import PRESETS, ComputeConfig
from janus_jax.runs import workdirs
from janus_jax.runs.config import (
  DataConfig,
  TrainConfig,
  default_config,
  filled,
  parse_config,
  replaced,
  set_stages,
  to_dict,
  to_json,
)
from janus_jax.runs.config_help import describe_fields, every_field, field_descriptions
from janus_jax.runs.setup import check_trainable
from janus_jax.training.stages import Stage

SAVED = pathlib.Path(__file__).parent / 'saved'  # What commit 79967ae wrote, of recipes that are here still.


@pytest.mark.parametrize('name', ['tiny', 'janus_pro_7b', 'data/llava', 'benchmarks/cpu'])
def test_what_is_parsed_is_written_as_it_was_read(name):
  config = parse_config(recipe(name))
  assert parse_config(type(recipe(name))(to_dict(config))) == config
  written = to_dict(config)
  for field, value in recipe(name).to_dict().items():
    if field != 'pretraining':  # Which gets the defaults that it leaves out.
      assert written[field] == value, field


def test_defaults_are_those_of_the_dataclasses():
  config = default_config()
  assert config.loss_chunk == TrainConfig().loss_chunk
  assert config.data.to_dict() == dataclasses.asdict(DataConfig())
  # A run computes in other types than a bare model.
  assert (config.compute.dtype, ComputeConfig().dtype) == ('bfloat16', 'float32')


def test_fields_are_replaced_by_their_dotted_names():
  config = parse_config(recipe('tiny'))
  changed = replaced(config, {'data.directory': 'x', 'seed': 3, 'stages.stage2.steps': 40, 'mesh.data': 2})
  assert (changed.data.directory, changed.seed, changed.stages['stage2'].steps, changed.mesh.data) == ('x', 3, 40, 2)
  back = {'data.directory': '', 'seed': 0, 'mesh.data': 1, 'stages.stage2.steps': config.stages['stage2'].steps}
  assert replaced(changed, back) == config


# Values of tiny.py when saved/tiny.json was written.
TINY_THEN = {
  'stages.stage2.steps': 4800,
  'stages.stage3.steps': 2300,
  'optimizer.muon': (),
  'data.toy_mixture': (0.5, 0.2, 0.3),
}


@pytest.mark.parametrize('name', ['tiny', 'data/llava'])
def test_an_older_workdir_is_that_of_the_same_recipe(name, tmp_path):
  shutil.copy(SAVED / f'{pathlib.Path(name).name}.json', tmp_path / 'config.json')
  config = recipe(name)
  config.init_from = 'parts'
  config.update_from_flattened_dict(TINY_THEN if name == 'tiny' else {})
  workdirs.check_config(str(tmp_path), to_json(parse_config(config)), force=False)
  with pytest.raises(InputError, match=r'a run with another config \(seed: 0 -> 1\): --force'):
    workdirs.check_config(str(tmp_path), to_json(parse_config(config)) | {'seed': 1}, force=False)


def test_a_saved_config_is_read_by_todays_names(tmp_path):
  shutil.copy(SAVED / 'tiny.json', tmp_path / 'config.json')
  assert workdirs.read_config(str(tmp_path)) == {}  # As long as it is no workdir.
  (tmp_path / 'janus_config.json').touch()
  found = workdirs.read_config(str(tmp_path))
  assert found['data']['name'] == found['pretraining']['model'] == 'toy'
  expected = replaced(parse_config(recipe('tiny')), {'init_from': 'parts', **TINY_THEN})
  assert parse_config(ConfigDict(filled(found))) == expected


def test_every_field_is_described():
  lines = describe_fields(every_field(), 80).splitlines()
  assert max(map(len, lines)) <= 80
  fields = [line for line in lines if line.startswith('  --config.')]
  texts = [after for line, after in itertools.pairwise(lines) if line in fields]
  assert [line for line in texts if not line.startswith(' ' * 6)] == []
  assert len(fields) > 90
  shown = [line.split('=')[0].removeprefix('  --config.') for line in fields]
  assert {'seed', 'data.name', 'stages.NAME.steps', 'pretraining.vq.learning_rate', 'mesh.fsdp'} <= set(shown)
  sections = [name.rpartition('.')[0] for name in shown]
  assert sections == sorted(sections)


def test_descriptions_are_those_of_the_owners():
  assert field_descriptions(Stage)['steps'] == 'updates.'
  # Also of what a dataclass inherits from, over several lines.
  assert field_descriptions(TrainConfig)['run'].endswith('repeat one: name it twice.')
  text = describe_fields({'base': {'data': {'sources': {'mine': {'path': 'x'}}}}}, 200)
  assert text.startswith("  --config.base.data.sources.mine.path='x'\n      paths, patterns")


@pytest.mark.parametrize('pattern', ['vq', 'vq/decoder/.*'])
def test_a_stage_that_would_train_the_vq_is_refused(pattern):
  config = recipe('tiny')
  config.stages.stage2.trainable = ('gen_head', pattern)
  groups = 'vision_encoder, vision_aligner, gen_embed, gen_aligner, gen_head, language_model'
  message = f"^stages.stage2.trainable has '{re.escape(pattern)}': expected any of {groups}: the VQ is frozen$"
  with pytest.raises(InputError, match=message):
    parse_config(config)


def test_a_pattern_that_matches_the_vq_is_refused():
  config = recipe('tiny')
  config.stages.stage2.trainable = ('.*',)
  paths = ['gen_head/kernel', 'vision_aligner/kernel', 'vision_encoder/x', 'gen_aligner/x', 'gen_embed/x']
  paths += ['language_model/x', 'vq/codebook']
  with pytest.raises(InputError, match=r"^stages.stage2.trainable has \('\.\*',\): expected parameters of vision_enc"):
    check_trainable(parse_config(config).run_stages, PRESETS['test_tiny'], paths)


def test_stages_that_are_set_run_in_their_order():
  config = recipe('tiny')
  fourth = {**config.stages.stage3.to_dict(), 'steps': 10, 'trainable': ('gen_head',)}
  set_stages(config, {**config.stages.to_dict(), 'stage4': fourth})
  assert [stage.name for stage in parse_config(config).run_stages] == ['stage1', 'stage2', 'stage3', 'stage4']
  config.run = ('stage1',)
  with pytest.raises(
    InputError, match=r"^stage is 'stage4': expected one of stage1; it is defined, but not in config.run$"
  ):
    parse_config(config).find_stage('stage4')
