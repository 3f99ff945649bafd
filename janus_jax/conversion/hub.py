"""Models on the Hugging Face hub by name: ORGANISATION/NAME[@REVISION], where there is no directory of that name.

`huggingface_hub` downloads into its cache and obeys its variables: HF_HOME, HF_HUB_OFFLINE, HF_TOKEN, HF_ENDPOINT.
"""

import contextlib
import errno
import functools
import os
import re
from collections.abc import Iterator

from janus_jax.errors import InputError, one_line
from janus_jax.models.files import CHECKPOINTS_DIRECTORY, CONFIG_FILE, PARAMS_DIRECTORY

_NAME = re.compile(r'(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?')
# Configs, tokenizers and chat templates; of weights, what cannot run code where there is both.
_SMALL, _SAFE, _PICKLED = ['*.json', '*.jinja'], ['*.safetensors'], ['*.bin']
_SUBDIRECTORIES = ['*/*']
_ORBAX = [f'{PARAMS_DIRECTORY}/*', f'{CHECKPOINTS_DIRECTORY}/*']  # Of a run too: its samples and events are not needed.


def is_name(path: str) -> bool:
  """Says whether a path can only be a name on the hub: no file or directory is there."""
  return bool(_NAME.fullmatch(path)) and not os.path.lexists(path)


def resolved(path: str) -> str:
  """The path of a checkpoint, downloaded if it is a name on the hub; errors as of `download`."""
  return download(path) if is_name(path) else path


@functools.cache
def download(name: str) -> str:
  """Downloads what a checkpoint needs; returns its directory in the cache of `huggingface_hub`.

  A process asks once, so that all it reads is of one commit.

  Raises:
    InputError: no such model or revision, no permission, no network and no copy, or no space.
  """
  # A third of a second, which commands on local files need not wait.
  from huggingface_hub import snapshot_download

  found = _NAME.fullmatch(name)
  assert found, name

  def fetch(patterns: list[str], ignored: list[str] | None = _SUBDIRECTORIES) -> str:
    with _naming(name, found['repository'], found['revision']):
      return snapshot_download(
        found['repository'], revision=found['revision'], allow_patterns=patterns, ignore_patterns=ignored
      )

  directory = fetch([*_SMALL, *_SAFE])
  if os.path.exists(os.path.join(directory, CONFIG_FILE)):
    return fetch([*_SMALL, *_SAFE, *_ORBAX], None)
  if not any(file.endswith('.safetensors') for file in os.listdir(directory)):
    return fetch([*_SMALL, *_PICKLED])
  return directory


@contextlib.contextmanager
def _naming(name: str, repository: str, revision: str | None) -> Iterator[None]:
  """Turns what `huggingface_hub` raises in the block into an InputError of one line that names the model."""
  from huggingface_hub import constants, errors

  try:
    yield
  except errors.GatedRepoError:
    page = f'{constants.ENDPOINT}/{repository}'
    raise InputError(f'{name}: gated: expected access to be granted to you on {page}, and HF_TOKEN') from None
  except errors.RepositoryNotFoundError:
    missing = f'no such directory, and no such model on {constants.ENDPOINT}'
    raise InputError(f'{name}: {missing}: expected a PATH, or ORGANISATION/NAME (HF_TOKEN for a private one)') from None
  except errors.RevisionNotFoundError:
    raise InputError(f'{name}: {repository} has no revision {revision}: expected a branch, tag or commit') from None
  except errors.LocalEntryNotFoundError as error:
    reason = error.__cause__
    if isinstance(reason, errors.OfflineModeIsEnabled):
      state = 'HF_HUB_OFFLINE is set'
    else:
      state = f'{constants.ENDPOINT} cannot be reached ({one_line(reason or error)[:200]})'
    copy = f'a whole copy in {constants.HF_HUB_CACHE}'
    raise InputError(f'{name}: no such directory, and {state}: expected a PATH, or {copy}') from None
  except OSError as error:  # Of the disk, and of HTTP.
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    text = f'no space in {constants.HF_HUB_CACHE}' if full else one_line(error)[:300]
    raise InputError(f'{name}: {text}: expected to download it from {constants.ENDPOINT}') from error
