import concurrent.futures
import io
import json
import os
import pickle
import tarfile

import fsspec
import numpy as np
import pytest
from PIL import Image

from janus_jax.data.sources import tars
from janus_jax.data.sources.build import ImageSizes, open_sources, read_specs
from janus_jax.data.sources.tars import TarSamples
from janus_jax.errors import InputError, RecordError


def content(i: int) -> dict[str, bytes]:
  return {'jpg': encoded('JPEG', i), 'txt': f'caption {i}'.encode(), 'seg.png': encoded('PNG', i)}


def encoded(form: str, i: int) -> bytes:
  file = io.BytesIO()
  Image.new('RGB', (8, 8), (i, 0, 0)).save(file, form)
  return file.getvalue()


def write_tar(
  path, members: dict[str, bytes], mode: str = 'w', links: tuple[tuple[str, str], ...] = (), **options
) -> str:
  with fsspec.open(str(path), 'wb') as file, tarfile.open(fileobj=file, mode=mode, **options) as tar:
    for name, data in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))
    for name, target in links:
      info = tarfile.TarInfo(name)
      hard = target.startswith('hard:')
      info.type, info.linkname = tarfile.LNKTYPE if hard else tarfile.SYMTYPE, target.removeprefix('hard:')
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


@pytest.mark.parametrize('root', ['memory://bucket', ''])
def test_threads_other_processes_and_buckets_read_the_same(root, tmp_path):
  path = write_tar(f'{root or tmp_path}/x.tar', members_of(range(9)))
  source = pickle.loads(pickle.dumps(TarSamples([path], str(tmp_path))))
  order = np.random.default_rng(0).integers(9, size=100).tolist()
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert [item['txt'] for item in pool.map(source.__getitem__, order)] == [content(i)['txt'] for i in order]


def test_members_that_would_lie_outside_are_bad_samples(tmp_path):
  members = members_of([1]) | {'../../x': b'out'} | members_of([2]) | {'/etc/y.txt': b'out'}
  path = write_tar(tmp_path / 'x.tar', members, links=(('a/0003.jpg', '/etc/passwd'),))
  source = TarSamples([path], str(tmp_path / 'index'))
  assert len(source) == 5
  assert [source[i]['__key__'] for i in (0, 2)] == ['a/0001', 'a/0002']
  inside, link = 'expected a path inside', "a link to '/etc/passwd': expected one to a file in the same tar"
  for index, name, why in ((1, r'\.\./\.\./x', inside), (3, r'/etc/y\.txt', inside), (4, r'a/0003\.jpg', link)):
    with pytest.raises(RecordError, match=rf"x\.tar: \S+: member '{name}': {why}") as caught:
      source[index]
    assert caught.value.reason == 'tar member'
  assert sorted(os.listdir(tmp_path)) == ['index', 'x.tar']


def test_files_that_belong_to_no_sample_do_not_part_one(tmp_path):
  members = {'a/._0.jpg': b'mac', 'a/0.JPG': b'x', 'README': b'r', 'a/._0.txt': b'mac', 'a/0.txt': b'y', 'a/0.': b''}
  source = TarSamples([write_tar(tmp_path / 'x.tar', members)], str(tmp_path))
  assert [source[i] for i in range(len(source))] == [{'__key__': 'a/0', 'jpg': b'x', 'txt': b'y'}]


@pytest.mark.parametrize('form', [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_links_long_names_and_dots_in_folders(form, tmp_path):
  folder = f'v1.5/{"long" * 40}.d'
  members = {f'{folder}/0.jpg': b'zero', f'{folder}/0.txt': b'null', './b/1.png': b'one'}
  links = (
    ('b/1.txt', f'hard:{folder}/0.txt'),  # Another member,
    ('b/2.jpg', f'../{folder}/0.jpg'),  # seen from where the link is,
    ('b/2.txt', '1.txt'),  # which may be a link,
    ('b/3.jpg', '3.txt'),  # but not to itself,
    ('b/3.txt', '3.jpg'),
    ('b/4.jpg', 'nowhere.jpg'),  # nor to nothing.
  )
  path = write_tar(tmp_path / 'x.tar', members, links=links, format=form)
  source = TarSamples([path], str(tmp_path))
  assert source[0] == {'__key__': f'{folder}/0', 'jpg': b'zero', 'txt': b'null'}
  assert [source[i] for i in (1, 2)] == [{'__key__': './b/1', 'png': b'one'}, {'__key__': 'b/1', 'txt': b'null'}]
  assert source[3] == {'__key__': 'b/2', 'jpg': b'zero', 'txt': b'null'}
  for index, message in (
    (4, r"x\.tar: b/3: member 'b/3\.jpg': links that lead to one another"),
    (5, r"x\.tar: b/4: member 'b/4\.jpg': a link to 'nowhere\.jpg': expected one to a file in the same tar"),
  ):
    with pytest.raises(RecordError, match=message):
      source[index]
  assert len(source) == 6


def test_two_members_of_one_ending_are_a_bad_sample(tmp_path):
  path = write_tar(tmp_path / 'x.tar', {'a/0.jpg': b'x', 'a/0.JPG': b'y', 'a/1.jpg': b'z'})
  source = TarSamples([path], str(tmp_path))
  with pytest.raises(RecordError, match=r"a/0: member 'a/0\.JPG': a second one of that ending"):
    source[0]
  assert source[1]['jpg'] == b'z'


def test_devices_and_sparse_files_are_no_images(tmp_path):
  with tarfile.open(tmp_path / 'x.tar', 'w') as tar:
    for name, kind in (('a/0.jpg', tarfile.FIFOTYPE), ('a/1.jpg', tarfile.CHRTYPE)):
      info = tarfile.TarInfo(name)
      info.type = kind
      tar.addfile(info)
  source = TarSamples([str(tmp_path / 'x.tar')], str(tmp_path))
  for index in range(2):
    with pytest.raises(RecordError, match=rf"member 'a/{index}\.jpg': no file: expected a whole file"):
      source[index]


def open_tar(tmp_path, members: dict[str, bytes], **entry):
  """The records of a generation source that is one tar."""
  path = write_tar(tmp_path / 'x.tar', members)
  entry = {'kind': 'generation', 'format': 'tars', 'path': path} | entry
  opened = open_sources(read_specs({'x': entry}), ImageSizes(8, 8), 0, str(tmp_path / 'index'))
  return opened['train']['generation']['x']


def test_images_of_one_source_may_have_any_ending(tmp_path):
  endings = {'jpg': 'JPEG', 'jpeg': 'JPEG', 'png': 'PNG', 'webp': 'WEBP', 'JPG': 'JPEG', 'Tif': 'TIFF'}
  members = {}
  for i, (ending, form) in enumerate(endings.items()):
    members |= {f'{i}.{ending}': encoded(form, 9), f'{i}.seg.png': encoded('PNG', 200), f'{i}.txt': b'a square'}
  source = open_tar(tmp_path, members, prompt='txt')
  for i in range(len(endings)):
    assert abs(int(source[i]['image'].astype(int)[..., 0].mean()) - 9) < 3
  chosen = open_tar(tmp_path, members, prompt='txt', image='png;tif')
  assert chosen[2]['prompt'] == chosen[5]['prompt'] == 'a square'
  with pytest.raises(
    RecordError, match=r'x\.tar: 0: png;tif: missing: the item has __key__, jpg, seg\.png, txt'
  ) as caught:
    chosen[0]
  assert caught.value.reason == 'no image'


def test_captions_may_lie_within_json(tmp_path):
  caption = json.dumps({'caption': 'A dog.', 'meta': {'alt': ['A cat.']}}).encode()
  members = {'0.jpg': encoded('JPEG', 1), '0.json': caption, '1.jpg': encoded('JPEG', 1), '1.json': b'{"caption": '}
  assert open_tar(tmp_path, members, prompt='json/caption')[0]['prompt'] == 'A dog.'
  assert open_tar(tmp_path, members, prompt='txt;json/meta/alt')[0]['prompt'] == 'A cat.'
  for name, index, message in (
    ('json/title', 0, 'json/title: missing'),
    ('json/caption', 1, 'json: .*: expected JSON'),
  ):
    with pytest.raises(RecordError, match=rf'x\.tar: {index}: {message}'):
      open_tar(tmp_path, members, prompt=name)[index]


def test_class_numbers_of_tars_have_names(tmp_path):
  (tmp_path / 'names.txt').write_text('ant\nbee\n\n')
  numbers = (b'1', b' 0\n', b'2', b'-1', b'bee')
  members = {}
  for i, number in enumerate(numbers):
    members |= {f'{i}.jpg': encoded('JPEG', 1), f'{i}.cls': number}
  source = open_tar(tmp_path, members, prompt='cls', names=str(tmp_path / 'names.txt'))
  assert [source[i]['prompt'] for i in range(2)] == ['bee', 'ant']
  for index, message in ((2, 'line 3 of .*names.txt is blank'), (3, "'-1': expected a number below"), (4, "b'bee'")):
    with pytest.raises(RecordError, match=rf'x\.tar: {index}: class .*{message}') as caught:
      source[index]
    assert caught.value.reason == 'class'
  with pytest.raises(InputError, match=r'^data\.sources\.x\.names is missing: expected a file of class names'):
    open_tar(tmp_path, members, prompt='cls')


def read_all(source: TarSamples) -> tuple[list[dict], list[int]]:
  """The samples, and the indices of those that are cut off."""
  good, cut = [], []
  for index in range(len(source)):
    try:
      good.append(source[index])
    except RecordError as error:
      if 'x.tar: ' not in str(error) or 'cut off or damaged after' not in str(error):
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
  with pytest.raises(RecordError, match=r'0\.tar: a/0004: jpg: cut off since'):
    source[4]
  assert source[5]['__key__'] == 'a/0005'


def test_compressed_tars_and_other_files_are_refused(tmp_path):
  paths = [write_tar(tmp_path / 'x.tar.gz', members_of([1]), 'w:gz'), str(tmp_path / 'y.tar')]
  (tmp_path / 'y.tar').write_bytes(b'no tar at all' * 100)
  for path in paths:
    with pytest.raises(InputError, match=r'[xy]\.tar.*: expected an uncompressed tar'):
      TarSamples([path], str(tmp_path / 'index'))
  assert not os.listdir(tmp_path / 'index')
