"""`convert --push`: what arrives on a hub, what its card says, and what is said where nothing may arrive."""

import os
import pathlib
import re
import subprocess
import sys

import hub_server
import numpy as np
import pytest
import small_checkpoint
from e2e import forks, small_run
from huggingface_hub import ModelCard

from janus_jax.conversion import hub
from janus_jax.conversion.checkpoint import open_checkpoint
from janus_jax.errors import InputError


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> str:
  return small_checkpoint.write(tmp_path_factory.mktemp('machine') / 'small')


def convert(place: pathlib.Path, *arguments: str, endpoint: str, **variables: str) -> subprocess.CompletedProcess:
  """Runs the command in a directory; temporary files are in its tmp/."""
  (place / 'tmp').mkdir(exist_ok=True)
  environment = {
    **os.environ,
    'TMPDIR': str(place / 'tmp'),
    'HF_HOME': str(place / 'home'),
    'HF_ENDPOINT': endpoint,
    'HF_HUB_OFFLINE': '0',
    'HF_HUB_DISABLE_XET': '1',
    'HF_TOKEN': hub_server.TOKEN,
    **variables,
  }
  return forks.run([sys.executable, '-m', 'janus_jax.convert', *arguments], cwd=place, env=environment)


def assert_same_params(found: str, expected: str) -> None:
  found, expected = open_checkpoint(found), open_checkpoint(expected)
  assert found.config == expected.config
  assert found.params.keys() == expected.params.keys()
  for path, leaf in expected.params.items():
    np.testing.assert_array_equal(found.params[path][...], leaf[...])


def test_what_was_pushed_opens_by_its_name(tmp_path, source):
  uploads, private = tmp_path / 'hub', set()
  pushed = uploads / 'someone' / 'janus'
  with hub_server.serving({}, uploads=uploads, private=private) as (url, _):
    first = convert(
      tmp_path, f'--input={source}', '--push=someone/janus', '--format=huggingface', '--private', endpoint=url
    )
    assert first.returncode == 0, first.stderr
    assert 'converting: 100%' in first.stderr
    assert 'model.safetensors: 100%' in first.stderr
    assert first.stderr.splitlines()[-1] == f'uploaded {url}/someone/janus (huggingface)'
    assert (private, os.listdir(tmp_path / 'tmp')) == ({'someone/janus'}, [])
    card = ModelCard.load(pushed / 'README.md')
    assert card.data.to_dict() == {
      'library_name': 'transformers',
      'pipeline_tag': 'any-to-any',
      'tags': ['janus', 'janus_jax'],
    }
    assert "JanusForConditionalGeneration.from_pretrained('someone/janus')" in card.text
    assert "janus_jax.load('someone/janus')" in card.text
    assert 'from `small`' in card.text
    assert os.path.dirname(source) not in card.content

    # In another layout over it: what is left of the first would be opened. A file of somebody's stays.
    (pushed / 'notes.txt').write_text('')
    second = convert(
      tmp_path, f'--input={source}', '--push=someone/janus', '--format=orbax', '--output=kept', endpoint=url
    )
    assert second.returncode == 0, second.stderr
    assert 'wrote kept (orbax)' in second.stderr.splitlines()
    files = {path.relative_to(pushed).as_posix() for path in pushed.rglob('*') if path.is_file()}
    kept = {path.relative_to(tmp_path / 'kept').as_posix() for path in tmp_path.glob('kept/**/*') if path.is_file()}
    assert files == {*kept, 'notes.txt'}
    assert ModelCard.load(pushed / 'README.md').data.library_name == 'janus_jax'

    back = convert(tmp_path, '--input=someone/janus', '--output=back', '--format=deepseek', endpoint=url)
    assert back.returncode == 0, back.stderr
  assert not (tmp_path / 'back' / 'README.md').exists()
  assert_same_params(str(tmp_path / 'back'), source)
  assert_same_params(str(tmp_path / 'kept'), source)


def test_who_may_not_upload_is_told_before_the_conversion(tmp_path, source):
  uploads, others = tmp_path / 'hub', {'other/theirs': pathlib.Path(source), 'someone/public': pathlib.Path(source)}
  with hub_server.serving(others, uploads=uploads) as (url, _):
    may = f'expected HF_TOKEN, or `hf auth login`, with permission to write to {url}'
    for name, message, changes in (
      ('someone/a', f'no token: {may}/someone/a', {'HF_TOKEN': ''}),
      ('other/a', f'not permitted (no rights under other): {may}/other/a', {}),
      ('other/theirs', f'not permitted (no rights under other): {may}/other/theirs', {}),
      ('someone/reserved', f'this name is reserved: expected to upload it to {url}', {}),
      ('someone/public', f'public on {url}, and --private: expected a new name, or a private model', {}),
      ('someone/a', f'HF_HUB_OFFLINE is set: expected it unset, to upload to {url}', {'HF_HUB_OFFLINE': '1'}),
      ('someone/a', 'http://127.0.0.1:9 cannot be reached (', {'HF_ENDPOINT': 'http://127.0.0.1:9'}),
    ):
      arguments = f'--input={source}', f'--push={name}', '--format=orbax', '--private', '--output=out'
      result = convert(tmp_path, *arguments, **{'endpoint': url, **changes})
      assert result.returncode == 1
      assert result.stderr.startswith(f'error: {name}: {message}')
      assert len(result.stderr.splitlines()) == 1
  assert sorted(os.listdir(tmp_path)) == ['tmp']


def test_an_upload_that_fails_is_one_line_and_keeps_the_export_at_output(tmp_path, source):
  arguments = f'--input={source}', '--push=someone/full', '--format=deepseek', '--output=kept'
  with hub_server.serving({}, uploads=tmp_path / 'hub') as (url, _):
    result = convert(tmp_path, *arguments, endpoint=url)
  assert result.returncode == 1
  assert re.search(rf"error: someone/full: .*'413 .*: expected to upload it to {url}\n", result.stderr)
  assert 'Traceback' not in result.stderr
  assert not list((tmp_path / 'hub' / 'someone' / 'full').iterdir())
  assert_same_params(str(tmp_path / 'kept'), source)


def test_a_wrong_name_is_refused_before_anything_is_read(tmp_path):
  expected = "expected ORGANISATION/NAME of letters, digits, '-', '_' and '.'"
  for name in ('janus', 'someone/a--b', '../janus', 'a/b/c', 'a b/c', ''):
    with pytest.raises(InputError, match=f'^{re.escape(repr(name))} is no model.s name: {expected}$'):
      hub.check_new_name(name)
  arguments = '--input=/no/such/place', '--push=someone/janus@v1', '--format=orbax'
  result = convert(tmp_path, *arguments, endpoint='http://127.0.0.1:9')
  assert (result.returncode, result.stderr) == (1, f"error: 'someone/janus@v1' is no model's name: {expected}\n")


def test_a_layout_that_cannot_express_a_model_is_refused_before_the_hub_is_asked(tmp_path):
  (tmp_path / 'start').mkdir()
  small_run.write_start(tmp_path / 'start')
  arguments = '--input=start', '--push=someone/a', '--format=huggingface'
  result = convert(tmp_path, *arguments, endpoint='http://127.0.0.1:9')
  assert result.returncode == 1
  assert '127.0.0.1' not in result.stderr
  assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], 'expected --output=DIR, --push=ORGANISATION/NAME, or both\n'),
    (['--output=out', '--noprivate'], '--private says how --push makes a model: expected --push=ORGANISATION/NAME\n'),
  ],
)
def test_wrong_usage(tmp_path, arguments, message):
  result = convert(tmp_path, '--format=orbax', *arguments, endpoint='http://127.0.0.1:9')
  assert (result.returncode, result.stderr) == (2, message)
