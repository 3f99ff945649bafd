"""Which code a run says it was: its own commit, never that of a repository around it."""

import json
import os
import pathlib
import shutil
import subprocess

import pytest

from janus_jax.runs import revision as module
from janus_jax.runs.revision import revision

VERSION = '0.1.0+test'


def git(directory: pathlib.Path, *arguments: str) -> str:
  """Runs git as nobody in particular; what it prints."""
  own = {name: value for name, value in os.environ.items() if not name.startswith('GIT_')}
  names = {f'GIT_{who}_{what}': 'a@b.c' for who in ('AUTHOR', 'COMMITTER') for what in ('NAME', 'EMAIL')}
  command = ['git', '-C', str(directory), *arguments]
  result = subprocess.run(command, env={**own, **names}, capture_output=True, text=True, check=True)
  return result.stdout.strip()


def repository(directory: pathlib.Path) -> str:
  """Commits all that is there. Returns the commit."""
  git(directory, 'init', '--quiet')
  git(directory, 'add', '--all', '--force')
  git(directory, 'commit', '--quiet', '--allow-empty', '--message=x')
  return git(directory, 'rev-parse', 'HEAD')


def package(root: pathlib.Path) -> str:
  """Puts the package into a directory."""
  (root / 'janus_jax').mkdir(parents=True)
  (root / 'janus_jax' / '__init__.py').touch()
  shutil.copy(module.__file__, root / 'janus_jax')
  return str(root / 'janus_jax')


def checkout(root: pathlib.Path) -> str:
  """Puts the source tree into a directory."""
  path = package(root)
  (root / 'setup.py').write_text("setup(\n  name='janus_jax',\n)\n")
  return path


def metadata(directory: pathlib.Path, **origin) -> None:
  """What pip leaves of a package that it has installed from `origin`."""
  place = directory / 'janus_jax-0.dist-info'
  place.mkdir(parents=True)
  (place / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: janus_jax\nVersion: {VERSION}\n')
  if origin:
    (place / 'direct_url.json').write_text(json.dumps(origin))


@pytest.fixture
def site(tmp_path, monkeypatch) -> pathlib.Path:
  """The site-packages of an environment inside the repository of a user, all of it committed there."""
  directory = tmp_path / 'mine' / '.venv' / 'lib' / 'site-packages'
  package(directory)
  (tmp_path / 'mine' / 'setup.py').write_text("setup(name='mine')")
  monkeypatch.syspath_prepend(str(directory))
  return directory


def test_a_checkout_of_this_package_is_its_commit(tmp_path):
  path = checkout(tmp_path)
  commit = repository(tmp_path)
  assert revision(path) == commit
  (tmp_path / 'setup.py').write_text("setup(name='janus_jax')  # changed")
  assert revision(path) == f'{commit}-dirty'


def test_a_hook_of_another_repository_changes_nothing(tmp_path, monkeypatch):
  path = checkout(tmp_path / 'janus')
  commit = repository(tmp_path / 'janus')
  (tmp_path / 'mine').mkdir()
  repository(tmp_path / 'mine')
  monkeypatch.setenv('GIT_DIR', str(tmp_path / 'mine' / '.git'))
  assert revision(path) == commit


def test_installed_inside_another_repository_it_is_the_version(site, tmp_path):
  metadata(site)
  repository(tmp_path / 'mine')
  assert revision(str(site / 'janus_jax')) == VERSION


def test_installed_from_a_repository_it_is_that_commit(site, tmp_path):
  metadata(site, url='https://host/janus_jax', vcs_info={'vcs': 'git', 'commit_id': 'c0ffee' * 6})
  repository(tmp_path / 'mine')
  assert revision(str(site / 'janus_jax')) == 'c0ffee' * 6


def test_an_editable_tree_without_git_is_its_version(site, tmp_path, monkeypatch):
  path = checkout(tmp_path / 'a b')
  metadata(site, url=(tmp_path / 'a b').as_uri(), dir_info={'editable': True})
  assert revision(path) == VERSION
  # Of the copy in the environment nothing is known: what is installed there is the tree.
  assert revision(str(site / 'janus_jax')) == 'unknown'


@pytest.mark.parametrize('root', ['mine', 'mine/vendored'])
def test_a_copy_in_another_repository_is_unknown(site, tmp_path, monkeypatch, root):
  # In one of them it lies where a checkout would have it, beside a setup.py.
  path = package(tmp_path / root)
  metadata(site)
  repository(tmp_path / 'mine')
  monkeypatch.chdir(tmp_path / root)
  assert revision(path) == 'unknown'


def test_files_that_nobody_has_committed_are_unknown(tmp_path, monkeypatch):
  (tmp_path / 'README').touch()
  repository(tmp_path)
  assert revision(checkout(tmp_path)) == 'unknown'


def test_without_git_it_is_unknown(tmp_path, monkeypatch):
  path = checkout(tmp_path)
  repository(tmp_path)
  monkeypatch.setenv('PATH', str(tmp_path))
  assert revision(path) == 'unknown'
