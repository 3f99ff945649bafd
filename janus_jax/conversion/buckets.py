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
  """The absolute path of a local one, normalized; a URL is one already."""
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
  """Files that a directory itself holds: name -> what changes when the file does; none where it does not exist.

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


@functools.cache
def _local_copy(url: str) -> tuple[tempfile.TemporaryDirectory, dict[str, str]]:
  """A directory for copies that lasts as long as the process, and each copied file's state when it was copied."""
  return tempfile.TemporaryDirectory(prefix='janus_jax-'), {}


def local_files(path: str) -> str:
  """A local directory with the files of a directory, but not those of its subdirectories: itself, if it is local.

  Files of a bucket are copied to a directory that lasts as long as the process; a later call copies what has changed.

  Raises:
    InputError: no such bucket or directory, no permission, no driver.
  """
  if not is_url(path):
    return os.path.expanduser(path)
  url = normalized(path)
  directory, copied = _local_copy(url)
  found = own_files(url)
  if not found:
    raise InputError(f'{url}: no such directory: expected one with files')
  changed = [name for name, state in found.items() if copied.get(name) != state]
  if changed:
    logging.info('copying %d files of %s to %s', len(changed), url, directory.name)
  for name in changed:
    fetch(url, name, directory.name)
    copied[name] = found[name]
  return directory.name


def local_file(path: str) -> str:
  """A local path of one file, which is copied if it lies in a bucket; errors as of `local_files`."""
  if not is_url(path):
    return os.path.expanduser(path)
  url, name = path.rsplit('/', 1)
  directory, _ = _local_copy(path)
  fetch(url, name, directory.name)
  return os.path.join(directory.name, name)
