"""Models on the Hugging Face hub by name: ORGANISATION/NAME[@REVISION], where there is no directory of that name.

`huggingface_hub` downloads into its cache, and uploads. It obeys its variables: HF_HOME, HF_HUB_OFFLINE, HF_TOKEN,
HF_ENDPOINT.
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


def repository(path: str) -> str | None:
  """ORGANISATION/NAME of a path that can only be a name on the hub, as no file or directory is there; else None."""
  found = _NAME.fullmatch(path)
  return found['repository'] if found and not os.path.lexists(path) else None


def is_name(path: str) -> bool:
  """Says whether a path can only be a name on the hub: no file or directory is there."""
  return repository(path) is not None


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


def check_new_name(name: str) -> None:
  """Raises InputError for what no model on the hub can be called; nothing is asked of the hub."""
  from huggingface_hub.utils import HFValidationError, validate_repo_id

  with contextlib.suppress(HFValidationError):
    validate_repo_id(name)
    if '/' in name:
      return
  raise InputError(f"{name!r} is no model's name: expected ORGANISATION/NAME of letters, digits, '-', '_' and '.'")


def create(name: str, private: bool | None) -> None:
  """Makes a model on the hub, where there is none of this name, and checks that it can be written to.

  Args:
    name: ORGANISATION/NAME.
    private: whether a new one is hidden from the public; None for what its owner has chosen.

  Raises:
    InputError: no token or permission, no network, a name that the hub refuses, or `private` and a public model.
  """
  from huggingface_hub import HfApi

  api = HfApi()
  with _uploading(name):
    api.create_repo(name, private=private, exist_ok=True)
    api.auth_check(name, write=True)  # `exist_ok` is content with a model that belongs to others.
    is_public = private and not api.model_info(name).private
  if is_public:
    raise InputError(f'{name}: public on {api.endpoint}, and --private: expected a new name, or a private model')


def upload(directory: str, name: str) -> str:
  """Uploads the files of a directory to a model on the hub; returns the URL of its page. Errors as of `create`.

  What `download` reads of an earlier upload goes unless it is replaced; other files stay.
  """
  from huggingface_hub import HfApi

  api = HfApi()
  with _uploading(name):
    api.upload_folder(
      repo_id=name,
      folder_path=directory,
      commit_message='Upload by janus_jax',
      delete_patterns=[*_SMALL, *_SAFE, *_PICKLED, *_ORBAX],
    )
  return f'{api.endpoint}/{name}'


@contextlib.contextmanager
def _uploading(name: str) -> Iterator[None]:
  """Turns what `huggingface_hub` raises in the block into an InputError of one line that names the model."""
  from huggingface_hub import constants, errors, get_token

  try:
    yield
  except errors.OfflineModeIsEnabled:
    raise InputError(f'{name}: HF_HUB_OFFLINE is set: expected it unset, to upload to {constants.ENDPOINT}') from None
  except errors.HfHubHTTPError as error:
    text = one_line(error.server_message or error)[:300]
    if error.response.status_code not in (401, 403):
      raise InputError(f'{name}: {text}: expected to upload it to {constants.ENDPOINT}') from error
    state = f'not permitted ({text})' if get_token() else 'no token'
    expected = f'HF_TOKEN, or `hf auth login`, with permission to write to {constants.ENDPOINT}/{name}'
    raise InputError(f'{name}: {state}: expected {expected}') from None
  except errors.HTTPError as error:
    raise InputError(f'{name}: {constants.ENDPOINT} cannot be reached ({one_line(error)[:200]})') from None
  except (OSError, RuntimeError, ValueError) as error:  # Of a file's upload, the reason is the cause.
    text = one_line(error.__cause__ or error)[:300]
    raise InputError(f'{name}: {text}: expected to upload it to {constants.ENDPOINT}') from error
