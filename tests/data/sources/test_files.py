"""Copies on the local disk of what lies in buckets; fsspec's memory file system stands for one."""

import os
import pathlib

import fsspec
import pytest

from janus_jax.data.sources.array_record import ShardWriter, encode_example
from janus_jax.data.sources.build import items, read_specs
from janus_jax.data.sources.files import local_copy
from janus_jax.errors import InputError


def test_local_paths_stay(tmp_path):
  assert local_copy('shards/x.array_record', str(tmp_path)) == 'shards/x.array_record'
  assert os.listdir(tmp_path) == []


def test_files_of_one_name_are_kept_apart_and_copied_once(tmp_path):
  for place in ('a', 'b'):
    with fsspec.open(f'memory://bucket/{place}/x', 'wb') as file:
      file.write(place.encode())
  first, second = (local_copy(f'memory://bucket/{place}/x', str(tmp_path)) for place in ('a', 'b'))
  assert [pathlib.Path(path).read_bytes() for path in (first, second)] == [b'a', b'b']
  fsspec.filesystem('memory').rm('memory://bucket/a/x')
  assert local_copy('memory://bucket/a/x', str(tmp_path)) == first


def test_a_copy_that_was_cut_short_is_made_anew(tmp_path):
  with fsspec.open('memory://bucket/y', 'wb') as file:
    file.write(b'whole')
  path = local_copy('memory://bucket/y', str(tmp_path))
  os.rename(path, f'{path}.partial')
  with open(f'{path}.partial', 'wb') as file:
    file.write(b'wh')
  assert pathlib.Path(local_copy('memory://bucket/y', str(tmp_path))).read_bytes() == b'whole'


def test_what_is_not_there_leaves_nothing(tmp_path):
  with pytest.raises(InputError, match=r'memory://bucket/nothing: .*expected a file or folder to copy'):
    local_copy('memory://bucket/nothing', str(tmp_path))
  with pytest.raises(InputError):
    local_copy('memory://bucket/nothing', str(tmp_path))


def test_array_record_files_of_a_bucket_are_read(tmp_path):
  made = str(tmp_path / 'made.array_record')
  with ShardWriter(made) as writer:
    writer.write(encode_example({'text': 'a'}))
  fsspec.filesystem('memory').put(made, 'memory://bucket/text.array_record')
  os.remove(made)
  spec = read_specs({'t': {'kind': 'text', 'format': 'array_record', 'path': 'memory://bucket/*.array_record'}})['t']
  assert items(spec, str(tmp_path / 'index'))[0]['text'] == b'a'
