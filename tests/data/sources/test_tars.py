import concurrent.futures
import io
import os
import pickle
import tarfile

import fsspec
import numpy as np
import pytest
from PIL import Image

from janus_jax.data.sources import tars
from janus_jax.data.sources.tars import TarSamples
from janus_jax.errors import InputError, RecordError


def content(i: int) -> dict[str, bytes]:
  return {'jpg': encoded('JPEG', i), 'txt': f'caption {i}'.encode(), 'seg.png': encoded('PNG', i)}


def encoded(form: str, i: int) -> bytes:
  file = io.BytesIO()
  Image.new('RGB', (8, 8), (i, 0, 0)).save(file, form)
  return file.getvalue()


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
  assert source.block_sizes == (5, 7)


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


@pytest.mark.parametrize('place', ['memory://bucket', ''])
def test_threads_other_processes_and_buckets_read_the_same(place, tmp_path):
  path = write_tar(f'{place or tmp_path}/x.tar', members_of(range(9)))
  source = pickle.loads(pickle.dumps(TarSamples([path], str(tmp_path))))
  order = np.random.default_rng(0).integers(9, size=100).tolist()
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert [item['txt'] for item in pool.map(source.__getitem__, order)] == [content(i)['txt'] for i in order]


def test_members_that_would_lie_outside_are_bad_samples(tmp_path):
  members = members_of([1]) | {'../../x': b'out'} | members_of([2]) | {'/etc/y.txt': b'out'}
  path = write_tar(tmp_path / 'x.tar', members, links=(('a/0003.jpg', '/etc/passwd'),))
  source = TarSamples([path], str(tmp_path / 'index'))
  assert len(source) == 4  # The link is no sample.
  assert [source[i]['__key__'] for i in (0, 2)] == ['a/0001', 'a/0002']
  for index, name in ((1, r'\.\./\.\./x'), (3, r'/etc/y\.txt')):
    with pytest.raises(RecordError, match=rf"x\.tar: member '{name}': expected a path inside") as caught:
      source[index]
    assert caught.value.reason == 'tar member'
  assert sorted(os.listdir(tmp_path)) == ['index', 'x.tar']


def test_files_that_belong_to_no_sample_do_not_part_one(tmp_path):
  members = {'a/._0.jpg': b'mac', 'a/0.JPG': b'x', 'README': b'r', 'a/._0.txt': b'mac', 'a/0.txt': b'y', 'a/0.': b''}
  source = TarSamples([write_tar(tmp_path / 'x.tar', members)], str(tmp_path))
  assert [source[i] for i in range(len(source))] == [{'__key__': 'a/0', 'jpg': b'x', 'txt': b'y'}]


def read_all(source: TarSamples) -> tuple[list[dict], list[int]]:
  """The samples, and the places of those that are cut off."""
  good, cut = [], []
  for index in range(len(source)):
    try:
      good.append(source[index])
    except RecordError as error:
      if 'x.tar: cut off or damaged after' not in str(error):
        raise
      cut.append(index)
  return good, cut


def starts(path: str) -> list[int]:
  """Where each sample of three members begins, and where the tar's end is marked."""
  with tarfile.open(path) as tar:
    last = tar.getmembers()[-1]
    return [member.offset for member in tar.getmembers()[::3]] + [last.offset_data + -(-last.size // 512) * 512]


def test_what_is_whole_in_a_tar_that_was_cut_off_is_kept(tmp_path):
  path, whole = str(tmp_path / 'x.tar'), [{'__key__': f'a/{i:04}', **content(i)} for i in range(3)]
  write_tar(path, members_of(range(3)))
  begins = starts(path)
  for size in range(begins[-1] + 768, 511, -128):
    os.truncate(path, size)
    # Only the header that follows shows that a sample has no more members.
    kept = sum(begin + 512 <= size for begin in begins[1:])
    assert read_all(TarSamples([path], str(tmp_path / 'index'))) == (whole[:kept], [kept] if kept < 3 else []), size


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path):
  path = write_tar(tmp_path / 'x.tar', members_of(range(4)))
  with open(path, 'r+b') as file:
    file.seek(starts(path)[2] + 100)
    file.write(b'\xff' * 8)
  assert read_all(TarSamples([path], str(tmp_path))) == ([{'__key__': 'a/0000', **content(0)}], [1])


def test_a_member_of_negative_size_does_not_hold_up_the_walk(tmp_path):
  write_tar(tmp_path / 'x.tar', members_of([1]))
  with tarfile.open(tmp_path / 'x.tar', 'a', format=tarfile.PAX_FORMAT) as tar:
    info = tarfile.TarInfo('b/0.jpg')
    info.pax_headers = {'size': '-1536'}  # Its own headers: the next member would be itself.
    tar.addfile(info)
  assert read_all(TarSamples([str(tmp_path / 'x.tar')], str(tmp_path))) == ([], [0])


def test_a_tar_that_shrinks_after_it_was_indexed_gives_bad_records(shards, tmp_path):
  source = TarSamples(shards, str(tmp_path / 'index'))
  os.truncate(shards[0], 700)
  with pytest.raises(RecordError, match=r'0\.tar: a/0004\.jpg: cut off since'):
    source[4]
  assert source[5]['__key__'] == 'a/0005'


def test_compressed_tars_and_other_files_are_refused(tmp_path):
  paths = [write_tar(tmp_path / 'x.tar.gz', members_of([1]), 'w:gz'), str(tmp_path / 'y.tar')]
  (tmp_path / 'y.tar').write_bytes(b'no tar at all' * 100)
  for path in paths:
    with pytest.raises(InputError, match=r'[xy]\.tar.*: expected an uncompressed tar'):
      TarSamples([path], str(tmp_path / 'index'))
  assert not os.listdir(tmp_path / 'index')
