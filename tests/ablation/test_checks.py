"""What is found wrong with a sweep before anything is written."""

import dataclasses
import json
import sys

import pytest
from e2e.small_run import recipe, write_start
from ml_collections import ConfigDict

from janus_jax.ablation import settings, sweep
from janus_jax.ablation.checks import check_sweep
from janus_jax.errors import InputError
from janus_jax.runs.config import unshared


@pytest.fixture(scope='module')
def base(tmp_path_factory) -> ConfigDict:
  start = write_start(tmp_path_factory.mktemp('start'))
  return recipe(start, str(tmp_path_factory.mktemp('data')))


def refused(base: ConfigDict, tmp_path, overrides: dict, **fields) -> str:
  config = settings.ablation_config(base, {'base': {}, 'a': overrides}, 'base')
  for name, value in fields.items():
    config[name] = value
  with pytest.raises(InputError) as error:
    sweep.ablate(settings.read_ablation(config), str(tmp_path / 'w'))
  assert not (tmp_path / 'w').exists()
  assert '\n' not in str(error.value)
  return str(error.value)


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    ({'seed': 3}, "variant a: 'seed' is set by the sweep, in all runs alike: expected `seeds`"),
    ({'held_out_batches': 2}, "variant a: 'held_out_batches' is set by the sweep"),
    ({'eval_every': 2}, "variant a: 'eval_every' is set by the sweep"),
    ({'sampling.num_images': 2}, "variant a: 'sampling.num_images' is set by the sweep"),
    (
      {'sampling': {'num_images': 2, 'cfg_weight': 1.0, 'temperature': 1.0, 'top_k': 0}},
      "variant a: 'sampling.num_images' is set by the sweep",
    ),
    ({'pretraining.vq.steps': 700}, "variant a: 'pretraining.vq.steps' has no effect: expected an empty init_from"),
    ({'accumulation': 0}, 'variant a: accumulation is 0: expected'),
    ({'stages.stage2.steps': -1}, 'variant a: stages.stage2.steps is -1: expected'),
    ({'compute.dtype': 'float8'}, "variant a: compute.dtype is 'float8': expected"),
    ({'optimizer.moment_dtype': 'int8'}, "variant a: optimizer.moment_dtype is 'int8': expected"),
    ({'stages.stage3.trainable': ('nothing',)}, "variant a: stages.stage3.trainable: 'nothing' matches no parameter"),
    ({'stages.stage1.batch_size': 7}, 'variant a: stages.stage1'),
    ({'mesh.tensor': 3}, 'variant a: mesh'),
    ({'sequence_length': 8}, 'variant a: sequence_length is 8: expected at least'),
    ({'init_from': '/no/such/place'}, 'variant a: /no/such/place: no such directory'),
    ({'run': ('stage9',)}, 'variant a: run'),
    ({'optimizer.weight_decay_rules': (('nothing', 0.0),)}, 'variant a: optimizer.weight_decay_rules'),
  ],
)
def test_a_wrong_variant_is_found_before_any_trains(base, tmp_path, overrides, message):
  assert refused(base, tmp_path, overrides).startswith(message)


def test_names_fit_into_file_names(base, tmp_path):
  config = settings.ablation_config(base, {'base': {}, 'a' * 151: {}}, 'base')
  with pytest.raises(InputError, match=r"^variants: 'a+' has 151 letters: expected at most 150$"):
    settings.read_ablation(config)
  name = 'a' * settings.LONGEST_NAME
  longest = f'.{name}-seed{2**32 - 1}-0123456789.abcdefgh.partial'
  (tmp_path / longest).mkdir()


def test_stages_of_equal_compute_are_known(base, tmp_path):
  for stages, message in ((('stage9',), "equal_flops.a: 'stage9'"), ('stage1', "equal_flops.a is 'stage1'")):
    assert refused(base, tmp_path, {}, equal_flops=ConfigDict({'a': stages})).startswith(message)


def own_files(base: ConfigDict, tmp_path, variants: dict | None = None, **fields) -> settings.Ablation:
  """A sweep of text files."""
  path = tmp_path / 'text.jsonl'
  path.write_text(json.dumps({'text': 'a'}) + '\n')
  base = ConfigDict(unshared(base.to_dict()))
  base.data.name, base.data.precompute_codes = 'files', False
  base.data.sources = {'mine': {'kind': 'text', 'format': 'json_lines', 'path': str(path), **fields}}
  for stage in base.stages.values():
    stage.ratio, stage.sources = (0, 1, 0), ConfigDict({'text': {'mine': 1}})
  config = settings.ablation_config(base, {'base': {}, **(variants or {})}, 'base')
  config.evaluation.scores = False
  return settings.read_ablation(config)


def test_own_files_of_which_nothing_is_held_out(base, tmp_path):
  ablation = own_files(base, tmp_path)
  with pytest.raises(InputError, match=r'^base.data.sources: none of mine, .* has held_out: expected some'):
    check_sweep(ablation)
  check_sweep(dataclasses.replace(ablation, metrics=('cost/*',)))
  check_sweep(own_files(base, tmp_path, held_out=1))


def test_files_of_a_variant_are_looked_for(base, tmp_path):
  missing = {'data.sources.mine.path': str(tmp_path / 'other-*.jsonl')}
  ablation = own_files(base, tmp_path, {'a': missing}, held_out=1)
  with pytest.raises(InputError, match=r'^variant a: .*other-\*\.jsonl: no such file'):
    check_sweep(ablation)


def test_a_sweep_without_matplotlib_does_not_begin(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'matplotlib', None)
  with pytest.raises(InputError, match=r'pip install janus_jax\[report\]'):
    sweep.ablate(None, str(tmp_path / 'sweep'))
  assert not (tmp_path / 'sweep').exists()
