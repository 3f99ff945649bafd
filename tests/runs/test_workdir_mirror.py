"""The small files of a workdir in a bucket, for which fsspec's memory stands (a server: e2e/test_buckets.py)."""

import logging
import pathlib
import tempfile
import time

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from janus_jax.errors import InputError
from janus_jax.runs import workdir_mirror
from janus_jax.runs.workdir_mirror import MirroredWorkdir, opened

URL = 'memory://bucket/run'


@pytest.fixture(autouse=True)
def memory(monkeypatch):
  monkeypatch.setattr(workdir_mirror, 'ORBAX_PROTOCOL', 'memory://')
  system = fsspec.filesystem('memory')
  system.store.clear()
  system.pseudo_dirs[:] = ['']
  return system


@pytest.fixture
def mirrored(tmp_path):
  mirrored = MirroredWorkdir(str(tmp_path), URL)
  yield mirrored
  mirrored.close()


def write(mirrored: MirroredWorkdir, **contents: str) -> None:
  for name, content in contents.items():
    path = pathlib.Path(mirrored.path, name.replace('__', '/'))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def stored(memory: MemoryFileSystem) -> dict[str, str]:
  return {name.removeprefix('/bucket/run/'): file.getvalue().decode() for name, file in memory.store.items()}


def test_what_changed_is_uploaded(mirrored, memory, monkeypatch):
  write(mirrored, metrics='1', tensorboard__events='a', samples__7__drawing='b', codes__x='c')
  write(mirrored, data__index__big='no', wandb__log='no')
  pathlib.Path(mirrored.path, 'config.json.partial').write_text('on its way')
  pathlib.Path(mirrored.path, '.metrics.jsonl.x').write_text('on its way')
  mirrored.upload()
  assert stored(memory) == {'metrics': '1', 'tensorboard/events': 'a', 'samples/7/drawing': 'b', 'codes/x': 'c'}
  sent, pipe = [], MemoryFileSystem.pipe
  monkeypatch.setattr(MemoryFileSystem, 'pipe', lambda self, files: sent.extend(files) or pipe(self, files))
  write(mirrored, metrics='12')
  mirrored.upload()
  assert sent == ['/bucket/run/metrics']
  assert stored(memory)['metrics'] == '12'


def test_what_says_that_it_is_begun_comes_last(mirrored, memory, monkeypatch):
  write(mirrored, tokenizer='1', **{'janus_config.json': '{}'})

  pipe = MemoryFileSystem.pipe

  def failing(self, files):
    if any(name.endswith('tokenizer') for name in files):
      raise OSError('no network')
    pipe(self, files)

  monkeypatch.setattr(MemoryFileSystem, 'pipe', failing)
  with pytest.raises(InputError, match=f'^{URL}: no network: expected a bucket that can be written to'):
    mirrored.upload()
  assert not stored(memory)


def test_a_run_goes_on_with_what_the_bucket_has(mirrored, memory, monkeypatch):
  for name in (
    'metrics.jsonl',
    'codes/x.npy',
    'samples/7/drawing.png',
    'checkpoints/3/params/_METADATA',
    'tensorboard/e',
  ):
    memory.pipe(f'{URL}/{name}', name.encode())
  mirrored.download()
  found = {str(path.relative_to(mirrored.path)) for path in pathlib.Path(mirrored.path).rglob('*') if path.is_file()}
  assert found == {'metrics.jsonl', 'codes/x.npy'}
  assert pathlib.Path(mirrored.path, 'codes', 'x.npy').read_text() == 'codes/x.npy'
  monkeypatch.setattr(MemoryFileSystem, 'pipe', lambda self, files: pytest.fail(str(files)) if files else None)
  mirrored.upload()


def test_uploads_along_the_way_are_tried_again(mirrored, memory, monkeypatch, caplog):
  monkeypatch.setattr(workdir_mirror, 'EVERY', 0.01)
  write(mirrored, metrics='1')
  mirrored.upload()
  pipe, failures = MemoryFileSystem.pipe, []

  def failing_twice(self, files):
    if files and len(failures) < 2:
      failures.append(files)
      raise OSError('no network')
    pipe(self, files)

  monkeypatch.setattr(MemoryFileSystem, 'pipe', failing_twice)
  with caplog.at_level(logging.WARNING):
    write(mirrored, metrics='12')
    end = time.monotonic() + 30
    while stored(memory)['metrics'] != '12':
      assert time.monotonic() < end
      time.sleep(0.01)
  assert caplog.messages == [f'{URL}: no network: expected a bucket that can be written to; it is tried again'] * 2


def run(*contents: str, error: Exception | None = None) -> str:
  """Uploads the first content along the way and leaves the others to the end; returns the local directory."""
  with opened(URL) as files:
    for number, content in enumerate(contents):
      write(files, metrics=content)
      if not number:
        files.upload()
    if error:
      raise error
  return files.path


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> pathlib.Path:
  """Where local directories are made."""
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
  return tmp_path


def test_when_a_run_ends_the_bucket_has_its_files(memory, temporary):
  run('1', '2')
  assert stored(memory) == {'metrics': '2'}
  assert not list(temporary.iterdir())


def test_when_a_run_fails_the_bucket_has_its_files(memory, temporary):
  with pytest.raises(RuntimeError, match='the reason'):
    run('1', '2', error=RuntimeError('the reason'))
  assert stored(memory) == {'metrics': '2'}
  assert not list(temporary.iterdir())


def test_a_run_that_is_refused_writes_nothing(memory, temporary):
  with pytest.raises(InputError, match='refused'):
    run(error=InputError('refused'))
  assert not stored(memory)
  assert not list(temporary.iterdir())


@pytest.mark.parametrize('error', [None, RuntimeError('the reason')])
def test_what_could_not_be_uploaded_at_last_is_kept(error, memory, temporary, monkeypatch, caplog):
  pipe = MemoryFileSystem.pipe

  def failing(self, files):
    if b'2' in files.values():
      raise OSError('no network')
    pipe(self, files)

  monkeypatch.setattr(MemoryFileSystem, 'pipe', failing)
  with pytest.raises(type(error or OSError())) as raised:
    run('1', '2', error=error)
  (kept,) = temporary.iterdir()
  assert (kept / 'metrics').read_text() == '2'
  line = f'{URL}: no network: expected a bucket that can be written to; what it does not have is kept in {kept}'
  assert (caplog.messages == [line] and raised.value is error) if error else str(raised.value) == line


def test_a_local_workdir_is_itself(tmp_path):
  with opened(str(tmp_path)) as files:
    assert (files.path, files.url) == (str(tmp_path), str(tmp_path))
    files.download()
    files.upload()
