"""Which code this is: the commit of its checkout, or what was installed."""

import importlib.metadata
import json
import os
import subprocess
import urllib.parse
import urllib.request

import janus_jax

# They name another repository, inside a hook of it.
HOOKS = {'GIT_DIR', 'GIT_WORK_TREE', 'GIT_INDEX_FILE'}
PACKAGE = os.path.dirname(os.path.realpath(janus_jax.__file__))


def revision(package: str = PACKAGE) -> str:
  """The commit of this source tree, with '-dirty' after it where files differ; else that or the version which pip has
  installed; else 'unknown'.

  Args:
    package: the directory of this package. A repository that merely holds it, such as a user's with an environment in
      it, is not asked.
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
  """What git prints, None where it fails."""
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
    place = str(distribution.locate_file(''))
    if origin.get('dir_info', {}).get('editable'):
      place = urllib.request.url2pathname(urllib.parse.urlsplit(origin['url']).path)
    if os.path.realpath(place) == root:
      return origin.get('vcs_info', {}).get('commit_id') or distribution.version
  return None
