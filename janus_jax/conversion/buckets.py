"""Directories in buckets (`gs://`, `s3://`, ...: whatever fsspec knows): checkpoints, and the workdirs of runs.

What a directory itself holds (configs, tokenizer, PyTorch's weights) is copied to the local disk, for readers that open
nothing else. What lies in its subdirectories is Orbax's, and read where it is: a device reads no more than its shard.
"""

import contextlib
import functools
import logging
import os
import tempfile
from collections.abc import Iterator

import fsspec

from janus_jax.data.whole_files import replacing
from janus_jax.errors import InputError, one_line

DRIVERS = {'gs': 'gcsfs', 'gcs': 'gcsfs', 's3': 's3fs'}
# Else gcsfs misses what other processes change, a run that trains on for instance.
fsspec.config.conf['gcs'] = {'use_listings_cache': False}
# What Orbax and TensorStore write to and read from.
ORBAX_PROTOCOL = 'gs://'


def is_url(path: str | os.PathLike) -> bool:
  return '://' in os.fspath(path)


def normalized(path: str) -> str:
  """Normalizes a path as `os.path.normpath` does, which would take a slash out of 'gs://'; ~ is the home directory."""
  return path.rstrip('/') if is_url(path) else os.path.normpath(os.path.expanduser(path))


def absolute(path: str) -> str:
  """As `os.path.abspath`; a URL is one."""
  return normalized(path) if is_url(path) else os.path.abspath(normalized(path))


@contextlib.contextmanager
def reaching(url: str, expected: str) -> Iterator[None]:
  """Turns whatever a bucket's driver raises in the block into an InputError of one line that names the URL."""
  try:
    yield
  except InputError:
    raise
  except ImportError:
    protocol = url.split('://')[0]
    driver = DRIVERS.get(protocol, f"fsspec's driver for {protocol}://")
    raise InputError(f'{url}: its driver is not installed: expected {driver} (pip install {driver})') from None
  except Exception as error:  # Each driver has exceptions of its own, those of its credentials and its HTTP client too.
    text = one_line(error)[:300]
    raise InputError(f'{url}: {text or type(error).__name__}: expected {expected}') from error


def own_files(url: str) -> dict[str, str]:
  """The files that a directory itself holds: name -> what changes when the file does.

  Returns:
    Nothing where there is no such directory: buckets know none that is empty.

  Raises:
    InputError: no such bucket, no permission, or no driver.
  """
  with reaching(url, 'a directory of a bucket that can be read'):
    system, path = fsspec.url_to_fs(url)
    try:
      found = system.ls(path, detail=True, refresh=True)
    except FileNotFoundError:
      bucket = path.split('/')[0]
      try:
        system.info(bucket)
      except FileNotFoundError:
        raise InputError(f'{url}: no such bucket: expected {bucket} to exist') from None
      return {}
  # A name that ends with a slash stands for a directory itself: consoles make such objects.
  files = [info for info in found if info['type'] == 'file' and not info['name'].endswith('/')]
  return {os.path.basename(info['name']): str(sorted(info.items())) for info in files}


def fetch(url: str, name: str, directory: str) -> None:
  """Copies one file of a directory in a bucket; it appears whole or not at all, and readers of an old one keep that.

  Raises:
    InputError: it cannot be read.
    OSError: it cannot be written.
  """
  os.makedirs(directory, exist_ok=True)
  target = os.path.join(directory, name)
  source = f'{url.rstrip("/")}/{name}'
  with reaching(source, 'a file that can be read'), replacing(target) as partial:
    system, path = fsspec.url_to_fs(source)
    system.get_file(path, partial)


def local_files(path: str) -> str:
  """Where the files of a directory, not those of its subdirectories, can be opened: itself, if it is local.

  Those of a bucket are copied to a directory that lasts as long as the process; a later call copies what has changed.

  Raises:
    InputError: no such bucket or directory, no permission, no driver.
  """
  if not is_url(path):
    return os.path.expanduser(path)
  copy = _Copy.of(normalized(path))
  copy.refresh()
  return copy.directory


def local_file(path: str) -> str:
  """As `local_files`, of one file."""
  if not is_url(path):
    return os.path.expanduser(path)
  url, name = path.rsplit('/', 1)
  directory = _Copy.of(path).directory
  fetch(url, name, directory)
  return os.path.join(directory, name)


class _Copy:
  """The local copy of one directory."""

  def __init__(self, url: str):
    self._url = url
    self._temporary = tempfile.TemporaryDirectory(prefix='janus_jax-')
    self._known: dict[str, str] = {}

  @classmethod
  @functools.cache
  def of(cls, url: str) -> '_Copy':
    return cls(url)

  @property
  def directory(self) -> str:
    return self._temporary.name

  def refresh(self) -> None:
    found = own_files(self._url)
    if not found:
      raise InputError(f'{self._url}: no such directory: expected one with files')
    changed = [name for name, state in found.items() if self._known.get(name) != state]
    if changed:
      logging.info('copying %d files of %s to %s', len(changed), self._url, self.directory)
    for name in changed:
      fetch(self._url, name, self.directory)
      self._known[name] = found[name]
