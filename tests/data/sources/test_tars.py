import concurrent.futures
import io
import os
import pickle
import tarfile

import fsspec
import numpy as np
import pytest

from janus_jax.data.sources import tars
from janus_jax.data.sources.tars import TarSamples
from janus_jax.errors import InputError, RecordError


def content(i: int) -> dict[str, bytes]:
  return {'jpg': bytes([i]) * (600 + i), 'txt': f'caption {i}'.encode(), 'seg.png': b'\x89' * i}


def write_tar(path, members: dict[str, bytes], mode: str = 'w', links: tuple[tuple[str, str], ...] = ()) -> str:
  with fsspec.open(str(path), 'wb') as file, tarfile.open(fileobj=file, mode=mode) as tar:
    for name, data in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))
    for name, target in links:
      info = tarfile.TarInfo(name)
      info.type, info.linkname = tarfile.SYMTYPE, target
      tar.addfile(info)
  return str(path)


def members_of(numbers) -> dict[str, bytes]:
  return {f'a/{i:04}.{extension}': data for i in numbers for extension, data in content(i).items()}


@pytest.fixture
def shards(tmp_path):
  return [write_tar(tmp_path / f'{n}.tar', members_of(r)) for n, r in enumerate((range(5), range(5, 12)))]


def test_every_sample_is_read_once(shards, tmp_path):
  source = TarSamples(shards, str(tmp_path / 'index'))
  assert [source[i] for i in range(len(source))] == [{'__key__': f'a/{i:04}', **content(i)} for i in range(12)]


def test_a_tar_is_indexed_once_and_again_when_it_has_changed(shards, tmp_path, monkeypatch):
  index = str(tmp_path / 'index')
  TarSamples(shards, index)
  walked = []
  walk = tars._samples
  monkeypatch.setattr(tars, '_samples', lambda path: walked.append(path) or walk(path))
  assert len(TarSamples(shards, index)) == 12
  assert not walked
  write_tar(shards[1], members_of(range(20, 23)))
  assert TarSamples(shards, index)[6] == {'__key__': 'a/0021', **content(21)}
  assert walked == shards[1:]


def test_threads_other_processes_and_buckets_read_the_same(tmp_path):
  path = write_tar('memory://bucket/x.tar', members_of(range(9)))
  source = pickle.loads(pickle.dumps(TarSamples([path], str(tmp_path))))
  order = np.random.default_rng(0).integers(9, size=100).tolist()
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert [item['txt'] for item in pool.map(source.__getitem__, order)] == [content(i)['txt'] for i in order]


def test_members_that_would_lie_outside_are_bad_samples(tmp_path):
  members = members_of([1]) | {'../../x.txt': b'out'} | members_of([2]) | {'/etc/y.txt': b'out'}
  path = write_tar(tmp_path / 'x.tar', members, links=(('a/0003.jpg', '/etc/passwd'),))
  source = TarSamples([path], str(tmp_path / 'index'))
  assert len(source) == 4  # The link is no sample.
  assert [source[i]['__key__'] for i in (0, 2)] == ['a/0001', 'a/0002']
  for index, name in ((1, r'\.\./\.\./x\.txt'), (3, r'/etc/y\.txt')):
    with pytest.raises(RecordError, match=rf"x\.tar: member '{name}': expected a path inside") as caught:
      source[index]
    assert caught.value.reason == 'tar member'
  assert sorted(os.listdir(tmp_path)) == ['index', 'x.tar']


@pytest.mark.parametrize('missing', [3000, 1200, 11_000])
def test_what_is_whole_in_a_tar_that_was_cut_off_is_kept(missing, tmp_path):
  path = write_tar(tmp_path / 'x.tar', members_of(range(4)))
  os.truncate(path, os.path.getsize(path) - missing)
  source, good, bad = TarSamples([path], str(tmp_path / 'index')), [], []
  for index in range(len(source)):
    try:
      good.append(source[index])
    except RecordError as error:
      bad.append((index, 'cut off' in str(error)))
  whole = [{'__key__': f'a/{i:04}', **content(i)} for i in range(4)]
  assert len(good) >= len(whole) - 3
  assert bad in ([], [(len(source) - 1, True)])
  assert all({**sample} == {name: expected[name] for name in sample} for sample, expected in zip(good, whole))


def test_compressed_tars_and_other_files_are_refused(tmp_path):
  paths = [write_tar(tmp_path / 'x.tar.gz', members_of([1]), 'w:gz'), str(tmp_path / 'y.tar')]
  (tmp_path / 'y.tar').write_bytes(b'no tar at all' * 100)
  for path in paths:
    with pytest.raises(InputError, match=r'[xy]\.tar.*: expected an uncompressed tar'):
      TarSamples([path], str(tmp_path / 'index'))
  assert not os.listdir(tmp_path / 'index')
