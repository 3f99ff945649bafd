"""Checkpoints in buckets; fsspec's memory file system stands for one (tests/e2e/test_buckets.py: a real server's)."""

import os
import pathlib

import fsspec
import numpy as np
import pytest
from e2e.small_run import write_start

from janus_jax.conversion.buckets import absolute, local_file, local_files, normalized
from janus_jax.conversion.checkpoint import open_checkpoint, write_checkpoint
from janus_jax.conversion.export import exporting
from janus_jax.conversion.parts import compose
from janus_jax.errors import InputError


@pytest.fixture
def bucket(request):
  """An empty one; of its own name, as copies are remembered."""
  yield f'memory://{request.node.name}'
  fsspec.filesystem('memory').store.clear()


def put(url: str, **contents: str) -> None:
  for name, content in contents.items():
    fsspec.filesystem('memory').pipe(f'{url}/{name.replace("__", "/")}', content.encode())


def test_a_local_path_is_itself():
  assert local_files('a/b') == local_file('a/b') == 'a/b'
  assert normalized('a//b/') == 'a/b'
  assert absolute('a') == os.path.abspath('a')
  assert normalized('gs://a/b/') == absolute('gs://a/b/') == 'gs://a/b'


def test_the_files_of_a_directory_are_copied_and_those_below_it_are_not(bucket):
  put(bucket, config='1', weights='2', params__large='3')
  directory = pathlib.Path(local_files(f'{bucket}/'))
  assert {path.name: path.read_text() for path in directory.iterdir()} == {'config': '1', 'weights': '2'}


def test_a_later_call_copies_what_has_changed(bucket, monkeypatch):
  put(bucket, config='1', weights='2')
  directory = pathlib.Path(local_files(bucket))
  with open(directory / 'weights') as reader:
    put(bucket, weights='3')
    kept = (directory / 'config').stat()
    assert local_files(bucket) == str(directory)
    assert (directory / 'weights').read_text() == '3'
    assert (directory / 'config').stat() == kept
    assert reader.read() == '2'


def test_one_file_is_copied_alone(bucket):
  put(bucket, vq='1', other='2')
  path = pathlib.Path(local_file(f'{bucket}/vq'))
  assert path.read_text() == '1'
  assert [other.name for other in path.parent.iterdir()] == ['vq']


@pytest.mark.parametrize(
  ('url', 'message'),
  [
    ('memory://nothing/here', 'memory://nothing/here: no such directory: expected one with files'),
    ('nosuch://bucket/x', 'nosuch://bucket/x: Protocol not known: nosuch: expected a directory of a bucket'),
  ],
)
def test_what_is_not_there_is_one_line(url, message):
  with pytest.raises(InputError, match=f'^{message}') as raised:
    open_checkpoint(url)
  assert '\n' not in str(raised.value)


def test_no_such_file(bucket):
  with pytest.raises(InputError, match=f'^{bucket}/vq.pt: '):
    local_file(f'{bucket}/vq.pt')


def test_pytorchs_layouts_open_from_any_bucket(bucket, tmp_path):
  (tmp_path / 'ours').mkdir()
  ours = open_checkpoint(write_start(tmp_path / 'ours'))
  (tmp_path / 'theirs').mkdir()
  write_checkpoint(ours, str(tmp_path / 'theirs'), 'deepseek', lambda _: None)
  fsspec.filesystem('memory').put(f'{tmp_path}/theirs/', f'{bucket}/', recursive=True)
  found, expected = open_checkpoint(bucket), open_checkpoint(str(tmp_path / 'theirs'))
  assert (found.config, found.tokenizer_files) == (expected.config, expected.tokenizer_files)
  for path, leaf in expected.params.items():
    np.testing.assert_array_equal(found.params[path][...], leaf[...])


def test_pretrained_parts_open_from_any_bucket(bucket, tmp_path):
  pytest.importorskip('torch')
  pytest.importorskip('transformers')
  from conversion.pretrained import save_parts

  local = save_parts(tmp_path)
  fsspec.filesystem('memory').put(f'{tmp_path}/', f'{bucket}/', recursive=True)
  remote = {name: path.replace(str(tmp_path), bucket) for name, path in local.items()}
  found, expected = (compose(**parts, gen_embed='codebook', seed=0) for parts in (remote, local))
  assert (found.config, found.tokenizer_files) == (expected.config, expected.tokenizer_files)
  assert found.sources == tuple(remote[name] for name in ('vision_encoder', 'vq', 'language_model'))
  for path, leaf in expected.params.items():
    np.testing.assert_array_equal(found.params[path][...], leaf[...])


def test_orbax_reads_from_google_alone(bucket, tmp_path):
  write_start(tmp_path)
  fsspec.filesystem('memory').put(f'{tmp_path}/', f'{bucket}/', recursive=True)
  with pytest.raises(InputError, match=f'^{bucket}/params: expected a local copy or gs://BUCKET/'):
    open_checkpoint(bucket)


def test_exports_are_local(tmp_path):
  checkpoint = open_checkpoint(write_start(tmp_path))
  with pytest.raises(InputError, match=r'^gs://bucket/out: expected a local directory'):
    exporting(checkpoint, 'gs://bucket/out', 'orbax', False).__enter__()
