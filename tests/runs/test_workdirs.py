"""The files of a training workdir: written once, compared when the run is resumed."""

import json
import re

import pytest
from conversion.checkpoints import TINY, TOKENIZER
from conversion.fixtures import BOI, BOS, EOI, EOS, PAD, make_tokenizer

from janus_jax.conversion.checkpoint import Checkpoint
from janus_jax.errors import InputError
from janus_jax.runs import workdirs
from janus_jax.runs.config import STAGE_DEFAULTS, TrainConfig, to_json

DEFAULTS = to_json(TrainConfig())
START = Checkpoint(TINY, {}, {'tokenizer.json': TOKENIZER}, {}, ())


def config(**changes) -> dict:
  return {'seed': 0, 'stages': {'stage1': {'steps': 3, 'ratio': [1, 0, 3]}}, **changes}


def begin(workdir, config, checkpoint, force=False):
  if checkpoint is None:
    workdirs.check_config(workdir, config, force)
  workdirs.begin(workdir, config, checkpoint)


def test_empty_directories_of_a_workdir_that_is_not_begun_are_removed(tmp_path):
  """What a refused run leaves; an index that it made is not lost."""
  for name in ('data/index', 'checkpoints', 'kept'):
    (tmp_path / name).mkdir(parents=True)
  (tmp_path / 'kept' / 'index.npy').touch()
  workdirs.remove_empty(tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ['kept']
  begin(tmp_path, config(), START)
  (tmp_path / 'checkpoints').mkdir()
  workdirs.remove_empty(tmp_path)
  assert (tmp_path / 'checkpoints').exists()


def test_a_config_from_before_a_field_was_there_meant_its_default(tmp_path):
  begin(tmp_path, config(), START, force=False)
  begin(tmp_path, config(template='', optimizer=DEFAULTS['optimizer']), None, force=False)
  with_stage_fields = config(template='')
  with_stage_fields['stages']['stage1'] |= json.loads(json.dumps(STAGE_DEFAULTS))
  begin(tmp_path, with_stage_fields, None, force=False)
  with pytest.raises(InputError, match=r'optimizer\.ema_decay: 0\.0 -> 0\.5'):
    begin(tmp_path, config(optimizer={**DEFAULTS['optimizer'], 'ema_decay': 0.5}), None, force=False)


def test_a_new_workdir_holds_model_tokenizer_config_and_revision(tmp_path):
  workdir = tmp_path / 'new' / 'run'
  assert not workdirs.is_begun(workdir)
  begin(workdir, config(), START, force=False)
  assert workdirs.is_begun(workdir)
  assert workdirs.read_model(workdir) == TINY
  assert json.loads((workdir / 'config.json').read_text())['stages']['stage1']['ratio'] == [1, 0, 3]
  assert (workdir / 'tokenizer.json').read_bytes() == TOKENIZER
  assert (workdir / 'revision.txt').read_text().strip()
  assert re.fullmatch(r'8 x cpu, 1 process, \d+ cores of \w+\n', (workdir / 'machine.txt').read_text())


def test_a_checkpoint_keeps_its_own_template():
  """`template` is what a Janus made of parts is taught; a checkpoint has been taught already."""
  for name in ('', 'deepseek'):
    workdirs.check_template(name, 'PATH', START)
  old = Checkpoint(TINY, {}, {'tokenizer.json': make_tokenizer((BOS, EOS, PAD, BOI, EOI))}, {}, ())
  workdirs.check_template('deepseek_old', 'PATH', old)
  for name, start, own in (('deepseek_old', START, 'deepseek'), ('deepseek', old, 'deepseek_old'), ('x', old, '.*')):
    with pytest.raises(InputError, match=rf"^template is '{name}': expected '{own}' or nothing, as PATH was trained"):
      workdirs.check_template(name, 'PATH', start)


@pytest.mark.parametrize('name', ['workers', 'log_every', 'save_every', 'keep_last'])
def test_fields_that_nothing_computed_depends_on_may_change(tmp_path, name):
  begin(tmp_path, config(**{name: 8}), START, force=False)
  begin(tmp_path, config(**{name: 8}), None, force=False)
  begin(tmp_path, config(**{name: 1}), None, force=False)
  assert json.loads((tmp_path / 'config.json').read_text())[name] == 1
  with pytest.raises(InputError, match=r'another config \(seed: 0 -> 1\)'):
    begin(tmp_path, config(**{name: 8}, seed=1), None, force=False)


def test_fields_without_effect_are_fields():
  fields = {*DEFAULTS, *(f'evaluation.{name}' for name in DEFAULTS['evaluation'])}
  assert set(workdirs.WITHOUT_EFFECT) <= fields


def test_another_config_is_shown_field_by_field_and_refused(tmp_path, caplog):
  begin(tmp_path, config(), START, force=False)
  before = (tmp_path / 'config.json').read_bytes()
  changed = config(seed=1, stages={'stage1': {'steps': 5, 'ratio': [1, 0, 3]}})
  with pytest.raises(InputError, match=r'another config \(2 fields\): --force'):
    begin(tmp_path, changed, None, force=False)
  assert caplog.messages[0].splitlines()[1:] == ['  seed: 0 -> 1', '  stages.stage1.steps: 3 -> 5']
  assert (tmp_path / 'config.json').read_bytes() == before
  begin(tmp_path, changed, None, force=True)
  assert json.loads((tmp_path / 'config.json').read_text())['seed'] == 1


def test_another_toy_world_is_refused_in_one_line(tmp_path):
  begin(tmp_path, config(), START)  # From before worlds had a number of colours: the default's.
  world = {**DEFAULTS['data'], 'toy_colours': 8}
  with pytest.raises(InputError, match=r'^[^\n]*another config \(data\.toy_colours: 6 -> 8\): --force[^\n]*$'):
    begin(tmp_path, config(data=world), None)
  begin(tmp_path, config(evaluation={**DEFAULTS['evaluation'], 'toy': 5}), None)


def test_differences_name_added_and_removed_fields():
  assert workdirs.differences({'a': 1, 'b': {'c': 2}}, {'b': {'c': 2, 'd': 3}}) == ['a: 1 -> null', 'b.d: null -> 3']
  assert workdirs.differences({'a': [1, 2]}, {'a': [1, 2]}) == []


def test_settings_of_generated_images_are_read_from_workdirs_only(tmp_path):
  sampling = {'cfg_weight': 2, 'top_k': 3, 'num_images': 8}
  (tmp_path / 'config.json').write_text(json.dumps({'sampling': sampling}))
  # Not ours: a PyTorch checkpoint has a file of this name too.
  assert workdirs.read_sampling(tmp_path) == {'cfg_weight': 5.0, 'temperature': 1.0, 'top_k': 0}
  begin(tmp_path, config(sampling=sampling), START, force=False)
  found = workdirs.read_sampling(tmp_path)
  assert found == {'cfg_weight': 2.0, 'temperature': 1.0, 'top_k': 3}
  assert str(found['cfg_weight']) == '2.0'


@pytest.mark.parametrize(
  ('weight', 'run', 'expected'), [(1, ['a', 'b'], True), (0, ['a', 'b'], False), (1, ['a'], False), (1, [], False)]
)
def test_a_workdir_says_whether_a_stage_read_codes_with_grids(tmp_path, weight, run, expected):
  stages = {'a': {'sources': {'generation': {'squares': 1}}}, 'b': {'sources': {'generation': {'wide': weight}}}}
  sources = {'squares': {'codes': 'codes'}, 'wide': {'codes': 'codes', 'grid': 'grid'}}
  begin(tmp_path, config(run=run, stages=stages, data={'sources': sources}), START)
  assert workdirs.has_aspects(str(tmp_path)) == expected


def test_other_checkpoints_say_nothing_about_aspects(tmp_path):
  begin(tmp_path / 'old', config(), START)  # From before sources were in configs.
  (tmp_path / 'plain').mkdir()
  assert not workdirs.has_aspects(str(tmp_path / 'old'))
  assert not workdirs.has_aspects(str(tmp_path / 'plain'))
