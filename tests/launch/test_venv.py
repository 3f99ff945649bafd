"""launch/venv.sh: .venv appears whole, is tried before it is used, and is never lost without a word."""

import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
from launch.commands import ROOT, inherited
from launch.fake_python import BODY, Tree

BACKEND = """
import pathlib, zipfile

def build_editable(directory, config_settings=None, metadata_directory=None):
  name, info = 'janus_jax-1-py3-none-any.whl', 'janus_jax-1.dist-info'
  with zipfile.ZipFile(pathlib.Path(directory, name), 'w') as wheel:
    wheel.writestr('janus_tool.py', 'import sys\\ndef main(): print(sys.prefix)')
    wheel.writestr(f'{info}/METADATA', 'Metadata-Version: 2.1\\nName: janus_jax\\nVersion: 1\\nProvides-Extra: gcs\\n')
    wheel.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
    wheel.writestr(f'{info}/entry_points.txt', '[console_scripts]\\njanus_tool = janus_tool:main\\n')
    wheel.writestr(f'{info}/RECORD', '')
  return name
"""


@pytest.fixture
def tree(tmp_path) -> Tree:
  return Tree(tmp_path)


def contents(directory: pathlib.Path) -> dict[str, bytes]:
  return {str(path): path.read_bytes() for path in directory.rglob('*') if path.is_file()}


def lines(errors: str) -> int:
  return len(errors.splitlines())


def test_a_real_environment_is_whole_and_its_programs_know_where_they_are(tmp_path):
  root = tmp_path / 'a b'
  shutil.copytree(ROOT / 'launch', root / 'launch')
  shutil.copy(ROOT / 'setup.py', root)
  (root / 'pyproject.toml').write_text('[build-system]\nrequires=[]\nbuild-backend="backend"\nbackend-path=["."]\n')
  (root / 'backend.py').write_text(BACKEND)
  own = {name: value for name, value in inherited().items() if name != 'PYTHONPATH'}
  python = getattr(sys, '_base_executable', sys.executable)
  command = ['bash', 'launch/install.sh', 'gcs']
  subprocess.run(command, cwd=root, env={**own, 'PYTHON': python, 'PIP_NO_INDEX': '1'}, check=True, timeout=120)
  for program in ('janus_tool', 'pip'):
    said = subprocess.run([root / '.venv/bin' / program, '--version'], capture_output=True, text=True, check=True)
    assert str(root / '.venv') in said.stdout
    assert '.partial' not in said.stdout
  activated = subprocess.run(
    ['bash', '-c', 'source .venv/bin/activate && command -v janus_tool'], cwd=root, capture_output=True, text=True
  )
  assert activated.stdout == f'{root}/.venv/bin/janus_tool\n'


@pytest.mark.parametrize('moment', ['ON_VENV', 'ON_PIP'])
def test_killed_while_it_is_made_there_is_none_and_the_next_call_makes_it(tree, moment):
  status, _ = tree.install(**{moment: 'kill -KILL 0'})
  assert status == -signal.SIGKILL
  assert not (tree.root / '.venv').exists()
  assert tree.install() == (0, '')
  assert tree.is_whole()


@pytest.mark.parametrize('moment', ['ON_VENV', 'ON_PIP'])
def test_a_failure_is_one_line_and_the_next_call_makes_it(tree, moment):
  said = 'echo "  WARNING: Retrying"; echo "  ERROR: No matching distribution"; echo more >&2; exit 1'
  status, errors = tree.install(**{moment: said})
  assert (status, lines(errors)) == (1, 1)
  assert errors.startswith('install.sh: ')
  assert not (tree.root / '.venv').exists()
  if moment == 'ON_PIP':
    assert 'ERROR: No matching distribution' in errors
    log = pathlib.Path(errors.split(' ')[-1].strip())
    assert log.read_text().splitlines()[-1] == 'more'
    log.unlink()
  assert tree.install() == (0, '')
  assert tree.is_whole()


@pytest.mark.parametrize(('failing', 'message'), [('ON_UV', 'could not install uv'), ('ON_VENV', 'uv could not bring')])
def test_without_a_network_there_is_no_uv_and_one_line_says_so(tmp_path, failing, message):
  tree = Tree(tmp_path, '3.10')
  status, errors = tree.install(**{failing: 'echo retrying; echo no network >&2; exit 1'})
  assert (status, lines(errors)) == (1, 1)
  assert errors.startswith(f'install.sh: {message}')
  assert errors.endswith('no network\n')
  assert tree.install() == (0, '')
  assert tree.is_whole()


def test_what_is_whole_is_kept(tree):
  tree.install()
  before = contents(tree.root)
  tree.commands()
  assert tree.install() == (0, '')
  assert [command.split()[2] for command in tree.commands()] == ['pip']
  assert contents(tree.root) == before


def foreign(tree: Tree) -> pathlib.Path:
  """An environment with packages that a user has made."""
  tree.install()
  (tree.root / '.venv' / 'janus_jax.txt').unlink()
  tree.commands()
  return tree.root / '.venv'


@pytest.mark.parametrize('linked', [False, True])
def test_an_environment_of_the_user_is_used(tree, tmp_path, linked):
  environment = foreign(tree)
  if linked:
    (tmp_path / 'link').symlink_to(tree.root)
    shutil.copytree(ROOT / 'launch', tmp_path / 'other' / 'launch')
    shutil.copy(ROOT / 'setup.py', tmp_path / 'other')
    tree.root = tmp_path / 'other'
    (tree.root / '.venv').symlink_to(tmp_path / 'link' / '.venv')
  assert tree.install() == (0, '')
  assert [command.split()[2] for command in tree.commands()] == ['pip']
  assert environment.exists()


def no_pip(environment: pathlib.Path) -> None:
  (environment / 'bin' / 'pip').unlink()


def old(environment: pathlib.Path) -> None:
  python = environment / 'bin' / 'python'
  python.write_text(python.read_text().replace('version=3.12', 'version=3.10'))


def without_python(environment: pathlib.Path) -> None:
  (environment / 'bin' / 'python').unlink()
  (environment / 'bin' / 'python').symlink_to('/nowhere/python3')


def moved(environment: pathlib.Path) -> None:
  # As after `mv`: pip's script names a Python that is no more.
  pip = environment / 'bin' / 'pip'
  pip.write_text(pip.read_text().replace('tree of mine', 'elsewhere'))


def copied(environment: pathlib.Path) -> None:
  # As after `cp`: pip's script runs, with the Python of where it was.
  shutil.copytree(environment, environment.parent.parent / 'elsewhere' / '.venv')
  moved(environment)
  moved(environment.parent.parent / 'elsewhere' / '.venv')


FAULTS = {
  no_pip: 'has no pip that starts',
  old: 'has 3.10: expected Python 3.11 or newer',
  without_python: 'has no Python that starts: expected Python 3.11 or newer',
  moved: 'has no pip that starts',
  copied: 'has the pip of',
}


@pytest.mark.parametrize('damage', FAULTS, ids=[damage.__name__ for damage in FAULTS])
def test_a_damaged_one_is_made_anew_where_it_is_ours(tree, damage):
  tree.install()
  damage(tree.root / '.venv')
  status, errors = tree.install()
  assert (status, lines(errors)) == (0, 1)
  assert errors.startswith(f'install.sh: .venv {FAULTS[damage]}')
  assert errors.endswith('it is made anew\n')
  assert tree.is_whole()


@pytest.mark.parametrize('damage', FAULTS, ids=[damage.__name__ for damage in FAULTS])
def test_a_damaged_one_of_the_user_stays_and_it_is_said_what_to_do(tree, damage):
  environment = foreign(tree)
  damage(environment)
  before = contents(environment)
  status, errors = tree.install()
  assert (status, lines(errors)) == (1, 1)
  assert errors.startswith(f'install.sh: .venv {FAULTS[damage]}')
  assert 'mv .venv .venv.old' in errors
  assert contents(environment) == before
  assert not tree.commands()
  environment.rename(tree.root.parent / '.venv.old')
  assert tree.install() == (0, '')
  assert tree.is_whole()


def half_made(place: pathlib.Path) -> None:
  (place / 'bin').mkdir(parents=True)
  (place / 'lib/python3.12/site-packages/pip').mkdir(parents=True)
  (place / 'bin' / 'python').write_text(f'#!/usr/bin/env bash{BODY.format(version="3.12", record="/dev/null")}')
  (place / 'bin' / 'python').chmod(0o755)


WITHOUT_PACKAGES = {
  'empty': lambda place: place.mkdir(),
  'half_made': half_made,
  'dangling': lambda place: place.symlink_to('/nowhere/.venv'),
}


@pytest.mark.parametrize('kind', WITHOUT_PACKAGES)
def test_what_holds_nothing_is_made_anew(tree, kind):
  WITHOUT_PACKAGES[kind](tree.root / '.venv')
  status, errors = tree.install()
  assert (status, lines(errors)) == (0, 1)
  assert tree.is_whole()


def test_files_of_another_kind_stay(tree):
  (tree.root / '.venv').mkdir()
  (tree.root / '.venv' / 'notes').write_text('mine')
  status, errors = tree.install()
  assert (status, lines(errors)) == (1, 1)
  assert (tree.root / '.venv' / 'notes').read_text() == 'mine'


@pytest.mark.parametrize('there', [False, True])
@pytest.mark.parametrize(('name', 'said'), [('python3.10', '3.10'), ('/nowhere/python', 'it does not start')])
def test_a_python_that_was_asked_for_and_will_not_do_is_refused(tree, there, name, said):
  tree.python('python3.10', '3.10')
  if there:
    tree.install()
  tree.commands()
  expected = f'install.sh: PYTHON is {name} ({said}): expected Python 3.11 or newer\n'
  assert tree.install(PYTHON=name) == (1, expected)
  assert not tree.commands()
  assert (tree.root / '.venv').exists() == there


def test_the_python_that_was_asked_for_is_taken_and_no_other_kept(tree):
  tree.python('mine', '3.14')
  assert tree.install(PYTHON='mine') == (0, '')
  assert tree.commands()[0] == 'mine -m venv .venv.partial'
  assert tree.install(PYTHON='mine') == (0, '')
  status, errors = tree.install(PYTHON='python3')
  assert (status, lines(errors)) == (1, 1)
  assert 'PYTHON is python3 (3.12) and .venv has 3.14' in errors


def test_of_two_at_once_one_waits(tree, tmp_path):
  hold = f"until [ -e '{tmp_path}/go' ]; do sleep 0.05; done"
  first = tree.start(ON_PIP=hold)
  while 'pip' not in (tree.record.read_text() if tree.record.exists() else ''):
    time.sleep(0.02)
  second = tree.start()
  assert second.stderr.readline() == 'install.sh: waiting for the set-up of .venv that is under way\n'
  (tmp_path / 'go').touch()
  assert first.wait(timeout=30) == second.wait(timeout=30) == 0
  assert [command.split()[2] for command in tree.commands()] == ['venv', 'pip', 'pip']
  assert tree.is_whole()


def test_what_pip_was_stopped_in_the_middle_of_is_installed_again(tree):
  tree.install()
  packages = tree.root / '.venv/lib/python3.12/site-packages'
  for name in ('whole-1.dist-info/INSTALLER', 'half-1.dist-info/METADATA'):
    (packages / name).parent.mkdir()
    (packages / name).touch()
  # pip takes what has a dist-info for installed.
  assert tree.install() == (0, '')
  assert {path.name for path in packages.glob('*.dist-info')} == {'whole-1.dist-info'}


@pytest.mark.parametrize('script', ['test.sh', 'quickstart.sh'])
def test_the_other_scripts_stop_where_there_is_no_environment(tmp_path, script):
  tree = Tree(tmp_path, '3.10')
  process = tree.start(f'launch/{script}')
  errors = process.communicate(timeout=30)[1]
  assert (process.returncode, lines(errors)) == (1, 1)
  assert errors.startswith(f'{script}: no Python 3.11 or newer found; name one: PYTHON=')
  assert not (tree.root / '.venv').exists()
