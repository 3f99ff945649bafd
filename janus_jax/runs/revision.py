"""The revision of this code: the commit of its checkout, or the installed one."""

import importlib.metadata
import json
import os
import subprocess
import urllib.parse
import urllib.request

import janus_jax

# Variables that name another repository, inside a hook of it.
HOOKS = {'GIT_DIR', 'GIT_WORK_TREE', 'GIT_INDEX_FILE'}
PACKAGE = os.path.dirname(os.path.realpath(janus_jax.__file__))


def revision(package: str = PACKAGE) -> str:
  """The commit of the source tree of a package directory, with '-dirty' after it where files differ; else the commit or
  version that pip has installed; else 'unknown'. A repository that merely holds the package (a user's with an
  environment in it) is not asked.
  """
  return _checkout(package) or _installed(package) or 'unknown'


def _checkout(package: str) -> str | None:
  root, name = os.path.split(package)
  setup = os.path.join(root, 'setup.py')
  if not os.path.isfile(setup) or os.path.realpath(_git(root, 'rev-parse', '--show-toplevel') or '') != root:
    return None
  with open(setup, encoding='utf-8', errors='replace') as file:
    own = f"name='{name}'" in file.read()
  tracked = _git(root, 'ls-files', '--', os.path.join(name, '__init__.py'))
  return _git(root, 'describe', '--always', '--dirty', '--abbrev=40') if own and tracked else None


def _git(directory: str, *arguments: str) -> str | None:
  """The output of git, None where it fails."""
  environment = {name: value for name, value in os.environ.items() if name not in HOOKS}
  command = ['git', '-C', directory, *arguments]
  try:
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=10)
  except (OSError, subprocess.TimeoutExpired):
    return None
  return found.stdout.strip() or None


def _installed(package: str) -> str | None:
  """The commit that pip took from a repository, else the version; None where another copy is installed."""
  root, name = os.path.split(package)
  for distribution in importlib.metadata.distributions(name=name):
    origin = json.loads(distribution.read_text('direct_url.json') or '{}')
    directory = str(distribution.locate_file(''))
    if origin.get('dir_info', {}).get('editable'):
      directory = urllib.request.url2pathname(urllib.parse.urlsplit(origin['url']).path)
    if os.path.realpath(directory) == root:
      return origin.get('vcs_info', {}).get('commit_id') or distribution.version
  return None
