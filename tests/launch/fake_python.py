"""A source tree of nothing but launch/, and programs in the place of Python that are quick to make environments."""

import pathlib
import shutil
import subprocess

from launch.commands import ROOT, fake, inherited

NAMES = ('python', 'python3', 'python3.11', 'python3.12', 'python3.13')
# What an environment holds: the Python, pip with the path of its own, packages. ON_VENV, ON_PIP and
# ON_UV (where uv is installed) are what else is done.
BODY = """
version={version}
case "$1 $2" in
  -c*) echo $version; [ $version != 3.10 ] ;;
  "-m venv" | "-m uv")
    echo "${{0##*/}} $*" >>{record}
    made=${{@: -1}} path=$PWD/${{@: -1}}
    mkdir -p $made/bin $made/lib/python3.12/site-packages/pip
    sed "s/^version=.*/version=${{version/3.10/3.12}}/" "$0" >$made/bin/python
    chmod +x $made/bin/python
    eval "${{ON_VENV:-}}"
    printf '#!/usr/bin/env bash\\n[ -x "%s/bin/python" ] && ' "$path" >$made/bin/pip
    echo "echo 'pip 1 from $path/lib/python3.12/site-packages/pip (python 3.12)'" >>$made/bin/pip
    chmod +x $made/bin/pip
    touch $made/pyvenv.cfg
    ;;
  "-m pip")
    echo "${{0##*/}} $*" >>{record}
    [[ $0 = */bin/python ]] || {{ eval "${{ON_UV:-}}"; exit 0; }}
    echo "$PWD/$(dirname "$0")/python" >"$(dirname "$0")/tool"
    eval "${{ON_PIP:-}}"
    mkdir -p "$(dirname "$0")/../lib/python3.12/site-packages/jax"
    ;;
esac
"""


class Tree:
  """The tree, at `root`. `path` is the PATH on which every Python has the version `version`."""

  def __init__(self, directory: pathlib.Path, version: str = '3.12'):
    self.root = directory / 'tree of mine'
    self.record = directory / 'record'
    self.programs = directory / 'programs'
    self.programs.mkdir(parents=True)
    shutil.copytree(ROOT / 'launch', self.root / 'launch')
    shutil.copy(ROOT / 'setup.py', self.root)
    for name in NAMES:
      self.path = self.python(name, version)

  def python(self, name: str, version: str) -> str:
    """Puts a Python into the directory of programs. Returns the PATH."""
    return fake(self.programs, name, BODY.format(version=version, record=f"'{self.record}'"))

  def start(self, *command: str, **environment: str) -> subprocess.Popen[str]:
    command = command or ('launch/install.sh', 'gcs')
    own = {**inherited(), 'PATH': self.path, 'TMPDIR': str(self.programs), **environment}
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    # In a group of its own, which `kill -KILL 0` ends.
    return subprocess.Popen(['bash', *command], cwd=self.root, env=own, start_new_session=True, **pipes)

  def install(self, **environment: str) -> tuple[int, str]:
    """Runs launch/install.sh. Returns its status and errors."""
    process = self.start(**environment)
    errors = process.communicate(timeout=30)[1]
    return process.returncode, errors

  def commands(self) -> list[str]:
    """The commands of every Python since the last call."""
    lines = self.record.read_text().splitlines() if self.record.exists() else []
    self.record.unlink(missing_ok=True)
    return lines

  def is_whole(self) -> bool:
    """Whether .venv is one that the scripts make, with every path in it that of .venv."""
    environment = self.root / '.venv'
    names = {path.name for path in self.root.iterdir()}
    return (
      names == {'launch', 'setup.py', '.venv'}
      and (environment / 'janus_jax.txt').exists()
      and (environment / 'lib/python3.12/site-packages/jax').exists()
      and (environment / 'bin/tool').read_text() == f'{environment}/bin/python\n'
      and subprocess.run([environment / 'bin/pip'], capture_output=True).returncode == 0
      and not any(b'.partial' in path.read_bytes() for path in environment.rglob('*') if path.is_file())
    )
