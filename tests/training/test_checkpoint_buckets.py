"""Checkpoints in a bucket: what is whole there, what is left over, and what a bucket that fails says of neither."""

import importlib
import re

import fsspec
import pytest
from bucket_server import INSTALLED, serving

if not INSTALLED:
  pytest.skip('needs gcsfs and gcp-storage-emulator', allow_module_level=True)

from training.test_checkpoint import assert_same, make_state, restore, save

from janus_jax.conversion.workdir import is_workdir, read_newest
from janus_jax.training import checkpoint
from janus_jax.training.checkpoint import Checkpoints


@pytest.fixture(scope='module')
def bucket():
  with serving() as url:
    yield url


@pytest.fixture
def files(bucket):
  return fsspec.filesystem('gs', use_listings_cache=False)


@pytest.fixture
def workdir(bucket, request) -> str:
  """Holds checkpoints 1 and 2."""
  workdir = f'{bucket}/{request.node.name}'
  with Checkpoints(workdir, save_every=1) as checkpoints:
    assert restore(checkpoints) is None
    for step in (1, 2):
      save(checkpoints, step)
  return workdir


def test_the_newest_comes_back_bit_for_bit_and_the_oldest_goes(workdir, files):
  with Checkpoints(workdir, save_every=1) as checkpoints:
    restored = restore(checkpoints)
    assert (restored.step, restored.data_states, restored.metadata['stage']) == (2, [{'position': 2}], 'stage1')
    assert_same(restored.state, make_state(2))
    save(checkpoints, 3)
    checkpoints.wait()
    assert checkpoints.steps == [2, 3]
  assert not files.exists(f'{workdir}/checkpoints/1')


def test_what_another_process_saves_is_seen(workdir, files):
  assert read_newest(workdir)[0] == f'{workdir}/checkpoints/2/params'
  files.cp(f'{workdir}/checkpoints/2/', f'{workdir}/checkpoints/3/', recursive=True)
  assert read_newest(workdir)[0] == f'{workdir}/checkpoints/3/params'
  with Checkpoints(workdir, save_every=1, keep_last=3) as checkpoints:
    assert checkpoints.steps == [1, 2, 3]


def test_one_that_was_cut_short_is_none_and_its_files_go(workdir, files):
  files.rm(f'{workdir}/checkpoints/2/commit_success.txt')
  assert is_workdir(workdir)
  assert read_newest(workdir)[0] == f'{workdir}/checkpoints/1/params'
  with Checkpoints(workdir, save_every=1) as checkpoints:
    assert not files.exists(f'{workdir}/checkpoints/2')
    assert restore(checkpoints).step == 1
    save(checkpoints, 2)
  assert read_newest(workdir)[0] == f'{workdir}/checkpoints/2/params'


def test_a_damaged_one_is_passed_over_and_set_aside(workdir, files, caplog, monkeypatch):
  # The server does not know how to move, of which gcsfs would convince itself for half a minute before it copies.
  monkeypatch.setattr('gcsfs.retry.is_retriable', lambda error: False)
  files.rm(f'{workdir}/checkpoints/2/params/d', recursive=True)
  assert read_newest(workdir)[0] == f'{workdir}/checkpoints/1/params'
  with Checkpoints(workdir, save_every=1) as checkpoints:
    assert restore(checkpoints).step == 1
    assert f'{workdir}/checkpoints/2: damaged, passed over' in caplog.text
    assert files.exists(f'{workdir}/checkpoints/2.damaged')
    assert not files.exists(f'{workdir}/checkpoints/2')
    save(checkpoints, 2)
  assert read_newest(workdir)[0] == f'{workdir}/checkpoints/2/params'


def test_a_bucket_that_cannot_be_read_is_not_taken_for_damage(workdir, files, monkeypatch):
  http = importlib.import_module('gcsfs.retry').HttpError({'code': 503, 'message': 'try later'})
  for error in (OSError('Forbidden'), ValueError('UNAVAILABLE: try later'), http):

    def read(directory, error=error):
      raise error

    monkeypatch.setattr(checkpoint, '_read_process_jsons', read)
    message = re.escape(f'{workdir}/checkpoints: {type(error).__name__}: {error}')
    with Checkpoints(workdir, save_every=1) as checkpoints, pytest.raises(OSError, match=message):
      restore(checkpoints)
  assert files.exists(f'{workdir}/checkpoints/2')
