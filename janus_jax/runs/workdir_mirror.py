"""A workdir in a bucket. Orbax writes the checkpoints there by itself; all else is small, and written as local files.

Every process of a run has a local directory of its own (hosts of a pod share no disk), which begins with what the
bucket has; process 0 uploads what it changes. Data that a run generates or indexes stays local.
"""

import contextlib
import dataclasses
import logging
import os
import pathlib
import shutil
import tempfile
import threading
from collections.abc import Iterator

import fsspec
import jax

from janus_jax.conversion.buckets import ORBAX_PROTOCOL, fetch, is_url, normalized, own_files, reaching
from janus_jax.errors import InputError
from janus_jax.models.files import CONFIG_FILE
from janus_jax.runs import workdirs
from janus_jax.runs.image_codes import DIRECTORY as CODES_DIRECTORY
from janus_jax.training.metrics import SAMPLES_DIRECTORY, TENSORBOARD_DIRECTORY
from janus_jax.training.ownership import owned

EVERY = 30.0  # Seconds between uploads along the way.
UPLOADED = (CODES_DIRECTORY, SAMPLES_DIRECTORY, TENSORBOARD_DIRECTORY)


@dataclasses.dataclass
class LocalWorkdir:
  """A workdir without a mirror: `path` is a local directory for everything but checkpoints, which go to `url`."""

  path: str
  url: str

  def download(self) -> None:
    """Copies the bucket's files to the directory."""

  def upload(self) -> None:
    """Returns when the bucket has the directory's files."""


class MirroredWorkdir(LocalWorkdir):
  """A workdir in a bucket, and the local directory that stands for it."""

  def __init__(self, path: str, url: str):
    super().__init__(path, url)
    self._uploaded: dict[str, tuple[int, int]] = {}
    self._one_at_a_time = threading.Lock()
    self._stopping = threading.Event()
    self._thread: threading.Thread | None = None

  def download(self) -> None:
    """Copies the files that a run needs to go on: those of the workdir itself, and the codes of images.

    Raises:
      InputError: no such bucket, no permission, or no driver.
    """
    for directory in ('', CODES_DIRECTORY):
      url = os.path.join(self.url, directory).rstrip('/')
      for name in own_files(url):
        fetch(url, name, os.path.join(self.path, directory))
        self._uploaded[os.path.join(directory, name)] = _state(pathlib.Path(self.path, directory, name))

  def upload(self) -> None:
    """Uploads changed files, in process 0, and from the first call on in the background too. Raises InputError."""
    if jax.process_index():
      return
    self._upload()
    if self._thread is None:
      self._thread = threading.Thread(target=self._keep_up, name='workdir mirror', daemon=True)
      self._thread.start()

  def close(self) -> None:
    """Uploads for the last time, if that ever began; raises as `upload`."""
    if self._thread is not None:
      self._stopping.set()
      self._thread.join()
      self._upload()

  def _keep_up(self) -> None:
    while not self._stopping.wait(EVERY):
      try:
        self._upload()
      except Exception as error:  # The next save or the end of the run meets it again, and raises.
        logging.warning('%s; it is tried again', error)

  def _upload(self) -> None:
    with self._one_at_a_time:
      # States before contents: a file that is written meanwhile has another state the next time.
      changed = {name: state for name, state in self._states().items() if state != self._uploaded.get(name)}
      # The file that marks the workdir as begun comes last.
      for names in (changed.keys() - {CONFIG_FILE}, changed.keys() & {CONFIG_FILE}):
        contents = {name: pathlib.Path(self.path, name).read_bytes() for name in names}
        with reaching(self.url, 'a bucket that can be written to'):
          system, path = fsspec.url_to_fs(self.url)
          system.pipe({f'{path}/{name}': content for name, content in contents.items()})
        self._uploaded |= {name: changed[name] for name in names}

  def _states(self) -> dict[str, tuple[int, int]]:
    """State of each file that belongs in the bucket, by its path in the workdir."""
    root = pathlib.Path(self.path)
    files = [*root.iterdir(), *(file for name in UPLOADED for file in (root / name).rglob('*'))]
    # The others are on their way to a name of their own.
    whole = (file for file in files if not file.name.endswith('.partial') and not file.name.startswith('.'))
    return {str(file.relative_to(root)): _state(file) for file in whole if file.is_file()}


def _state(file: pathlib.Path) -> tuple[int, int]:
  found = file.stat()
  return found.st_mtime_ns, found.st_size


@contextlib.contextmanager
def opened(workdir: str) -> Iterator[LocalWorkdir]:
  """The workdir of a run, local or 'gs://BUCKET/...', which process 0 owns for the block.

  However the block ends, the bucket has its files afterwards.

  Raises:
    InputError: in use by another process, another kind of URL, no such bucket, no permission, no driver.
    OSError: it cannot be written to; the last upload failed; says where the files are kept.
  """
  if is_url(workdir):
    if not workdir.startswith(ORBAX_PROTOCOL):
      raise InputError(f'{workdir}: expected a local directory or {ORBAX_PROTOCOL}BUCKET/..., all that Orbax writes to')
    own_files(workdir)  # Raises where something is wrong with the bucket.
    workdir = normalized(workdir)
  owner = contextlib.nullcontext() if jax.process_index() else owned(workdir)
  with owner, _mirrored(workdir) if is_url(workdir) else _local(workdir) as files:
    yield files


@contextlib.contextmanager
def _local(workdir: str) -> Iterator[LocalWorkdir]:
  try:
    yield LocalWorkdir(workdir, workdir)
  finally:
    workdirs.remove_empty(workdir)


@contextlib.contextmanager
def _mirrored(url: str) -> Iterator[MirroredWorkdir]:
  mirrored = MirroredWorkdir(tempfile.mkdtemp(prefix='janus_jax-workdir-'), url)
  failed = True
  try:
    mirrored.download()
    yield mirrored
    failed = False
  finally:
    try:
      mirrored.close()
    except InputError as error:
      line = f'{error}; what it does not have is kept in {mirrored.path}'
      if not failed:
        raise OSError(line) from error
      logging.warning('%s', line)  # The reason why the run ends is on its way up already.
    else:
      shutil.rmtree(mirrored.path)
