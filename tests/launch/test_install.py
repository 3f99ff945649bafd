"""launch/install.sh: which Python the environment of a cloud's machine is made with."""

import os
import shutil
import subprocess

import pytest
from launch.commands import ROOT, fake, launch


@pytest.fixture
def tree(tmp_path):
  """A source tree of nothing but launch/."""
  shutil.copytree(ROOT / 'launch', tmp_path / 'tree' / 'launch')
  return tmp_path / 'tree'


def install(tree, tmp_path, version_is_enough: bool) -> list[str]:
  """What is run in place of every Python, one command a line."""
  environment = tree / '.venv' / 'bin'
  body = f"""
[ "$1" != -c ] || exit {0 if version_is_enough else 1}
echo "${{0##*/}} $*" >>{tmp_path}/record
[ "$2" != venv ] && [ "$2" != uv ] || {{ mkdir -p {environment}; cp "$0" {environment}/python; }}
"""
  for name in ('python', 'python3', 'python3.11', 'python3.12', 'python3.13'):
    path = fake(tmp_path, name, body)
  command = ['bash', str(tree / 'launch' / 'install.sh'), 'tpu,gcs']
  clean = {name: value for name, value in os.environ.items() if name != 'PYTHON'}
  subprocess.run(command, env={**clean, 'PATH': path}, check=True, capture_output=True, timeout=30)
  return (tmp_path / 'record').read_text().splitlines()


def test_an_old_python_brings_a_new_one(tree, tmp_path):
  pip, uv, project = install(tree, tmp_path, version_is_enough=False)
  assert pip == 'python3 -m pip install --quiet --user uv'
  assert uv == 'python3 -m uv venv --quiet --seed --python 3.12 .venv'
  assert project.endswith('--editable .[tpu,gcs]')


def test_a_python_that_will_do_is_used(tree, tmp_path):
  venv, project = install(tree, tmp_path, version_is_enough=True)
  assert venv == 'python3 -m venv .venv'
  assert project.endswith('--editable .[tpu,gcs]')


def test_what_is_there_is_kept(tree, tmp_path):
  install(tree, tmp_path, version_is_enough=True)
  (tmp_path / 'record').unlink()
  assert len(install(tree, tmp_path, version_is_enough=False)) == 1


@pytest.mark.parametrize('arguments', [(), ('tpu', 'gcs')])
def test_wrong_usage_is_one_line_and_status_2(arguments):
  result = launch('install.sh', *arguments)
  assert result.returncode == 2
  assert result.stderr.startswith('install.sh: expected EXTRA')
