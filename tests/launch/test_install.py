"""launch/install.sh: the Python that a cloud's machine gets its environment from. How the set-up scripts are used."""

import pytest
from launch.commands import ROOT, fake, launch
from launch.fake_python import Tree

PIP = '-m pip install --quiet --disable-pip-version-check --no-compile --editable .[gcs]'


def test_an_old_python_brings_a_new_one(tmp_path):
  tree = Tree(tmp_path, '3.10')
  assert tree.install() == (0, '')
  pip, uv, project = tree.commands()
  assert pip == 'python3 -m pip install --quiet --user uv'
  assert uv == 'python3 -m uv venv --quiet --seed --python 3.12 .venv.partial'
  assert project == f'python {PIP}'
  assert tree.is_whole()


def test_a_python_that_will_do_is_used(tmp_path):
  tree = Tree(tmp_path, '3.10')
  tree.python('python3.13', '3.13')
  assert tree.install() == (0, '')
  assert tree.commands() == ['python3.13 -m venv .venv.partial', f'python {PIP}']


def test_an_environment_that_is_there_needs_no_other_python(tmp_path):
  tree = Tree(tmp_path)
  tree.install()
  tree.commands()
  for name in ('python', 'python3', 'python3.11', 'python3.12', 'python3.13'):
    tree.python(name, '3.10')
  assert tree.install() == (0, '')
  assert tree.commands() == [f'python {PIP}']


@pytest.mark.parametrize(
  ('script', 'arguments', 'message'),
  [
    ('install.sh', (), 'expected EXTRA'),
    ('install.sh', ('tpu', 'gcs'), 'expected EXTRA'),
    (
      'install.sh',
      ('tpu,gsc',),
      'extra is gsc: expected one of quickstart report evaluation judge torch demo gcs s3 tpu gpu test',
    ),
    ('install.sh', ('--tpu',), 'extra is --tpu: expected one of'),
    ('quickstart.sh', ('--steps=3',), '--steps=3 is no flag: expected [DIR], --recipe=tiny, --gpu or --help'),
    ('quickstart.sh', ('-v',), '-v is no flag'),
    ('quickstart.sh', ('--recipe=large', 'one'), 'large is no recipe for it: expected tiny or small'),
    ('quickstart.sh', ('one', 'two'), 'expected one DIR, not one and two'),
  ],
)
def test_wrong_usage_is_one_line_and_status_2_and_makes_nothing(tmp_path, script, arguments, message):
  path = fake(tmp_path, 'python3', f'touch {tmp_path}/begun')
  before = {path.name for path in ROOT.iterdir()}
  result = launch(script, *arguments, PATH=path)
  assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, '', 1)
  assert result.stderr.startswith(f'{script}: {message}')
  assert not (tmp_path / 'begun').exists()
  assert {path.name for path in ROOT.iterdir()} & set(arguments) <= before


@pytest.mark.parametrize('script', ['install.sh', 'quickstart.sh', 'test.sh', 'run.sh', 'tpu_vm.sh'])
@pytest.mark.parametrize('flag', ['--help', '-h'])
def test_help_is_how_it_is_used_and_runs_nothing(tmp_path, script, flag):
  path = fake(tmp_path, 'python3', f'touch {tmp_path}/begun')
  result = launch(script, flag, PATH=path)
  assert (result.returncode, result.stderr) == (0, '')
  assert f'bash launch/{script}' in result.stdout
  assert not [line for line in result.stdout.splitlines() if line.startswith('#')]
  assert not (tmp_path / 'begun').exists()
