"""Paths, patterns and copies of what lies in buckets; fsspec's memory file system stands for one."""

import os
import pathlib

import fsspec
import pytest

from janus_jax.data.sources.array_record import ShardWriter, encode_example
from janus_jax.data.sources.build import items, read_specs
from janus_jax.data.sources.files import find_files, local_copy, read_text
from janus_jax.errors import InputError

FILES = (
  'd[v1]/a.jsonl',
  'd[v1]/b{1,2}.jsonl',
  'd[v1]/b[0].jsonl',
  'd[v1]/e*/x?.jsonl',
  'd1/a.jsonl',
  'dv/a.jsonl',
  'dv/00.jsonl',
  'dv/01.jsonl',
  'dv/02.JSONL',
  'dv/note.md',
  'dv/._a.jsonl',
  'dv/sub.jsonl/x.txt',
)


@pytest.fixture(params=['local', 'bucket'])
def root(request, tmp_path):
  """FILES below it, on a disk and in a bucket."""
  root = str(tmp_path) if request.param == 'local' else f'memory://{tmp_path.name}'
  for name in FILES:
    if request.param == 'local':
      os.makedirs(os.path.dirname(f'{root}/{name}'), exist_ok=True)
    with fsspec.open(f'{root}/{name}', 'w') as file:
      file.write('{}')
  return root


@pytest.mark.parametrize(
  ('pattern', 'names'),
  [
    ('d[v1]/a.jsonl', ['d[v1]/a.jsonl']),
    ('d[v1]/b{1,2}.jsonl', ['d[v1]/b{1,2}.jsonl']),
    ('d[v1]/b[0].jsonl', ['d[v1]/b[0].jsonl']),
    ('d[v1]/e*/x?.jsonl', ['d[v1]/e*/x?.jsonl']),
    ('d[v1]/*.jsonl', ['d[v1]/a.jsonl', 'd[v1]/b[0].jsonl', 'd[v1]/b{1,2}.jsonl']),
    ('d[v1]/{a,b[0]}.jsonl', ['d[v1]/a.jsonl', 'd[v1]/b[0].jsonl']),
    ('d[0-9]/a.jsonl', ['d1/a.jsonl']),
    ('d?/a.jsonl', ['d1/a.jsonl', 'dv/a.jsonl']),
    ('d{v,1}/a.jsonl', ['dv/a.jsonl', 'd1/a.jsonl']),
    ('{d1,dv}/{a,0{0,1}}.jsonl', None),
    ('dv/{00..01}.jsonl', ['dv/00.jsonl', 'dv/01.jsonl']),
    ('dv/{01..00}.jsonl', ['dv/01.jsonl', 'dv/00.jsonl']),
    ('d{v/{00,a},1/a}.jsonl', ['dv/00.jsonl', 'd1/a.jsonl', 'dv/a.jsonl']),
    ('dv/{0*,a}.jsonl', ['dv/00.jsonl', 'dv/01.jsonl', 'dv/a.jsonl']),
    ('dv', ['dv/00.jsonl', 'dv/01.jsonl', 'dv/02.JSONL', 'dv/a.jsonl']),
    ('dv/', ['dv/00.jsonl', 'dv/01.jsonl', 'dv/02.JSONL', 'dv/a.jsonl']),
    ('dv/*', ['dv/00.jsonl', 'dv/01.jsonl', 'dv/02.JSONL', 'dv/a.jsonl', 'dv/note.md']),
    ('dv/.*', ['dv/._a.jsonl']),
  ],
)
def test_a_path_that_exists_is_a_path_and_others_are_patterns(root, pattern, names):
  if names is None:
    with pytest.raises(InputError, match=r'd1/00\.jsonl: no such file: expected at least one$'):
      find_files(f'{root}/{pattern}', ('*.jsonl',))
    return
  found = find_files(f'{root}/{pattern}', ('*.jsonl',))
  root = root.replace('memory://', 'memory:///')
  assert found == [f'{root}/{name}' for name in names]


@pytest.mark.parametrize(
  ('pattern', 'message'),
  [
    ('nothing.jsonl', r'nothing\.jsonl: no such file: expected at least one$'),
    ('dv/*.tar', r'dv/\*\.tar: no such file: expected at least one$'),
    ('dv/{00..03}.jsonl', r'dv/\{00\.\.03\}\.jsonl: .*02\.jsonl: no such file: expected at least one$'),
    ('dv/sub.jsonl', r'dv/sub\.jsonl: a folder: expected \*\.jsonl in it, or a pattern such as .*sub\.jsonl/\*$'),
  ],
)
def test_a_pattern_without_files_is_named(root, pattern, message):
  with pytest.raises(InputError, match=message):
    find_files(f'{root}/{pattern}', ('*.jsonl',))


def test_home_is_expanded_in_every_path_of_a_source(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'a.jsonl').write_text('{}')
  assert find_files('~/a.jsonl') == [str(tmp_path / 'a.jsonl')]
  entry = {'kind': 'generation', 'format': 'tfds', 'path': '~/x', 'directory': '~/d', 'names': '~/n'}
  entry['image_folder'] = '~'
  spec = read_specs({'x': entry})['x']
  home = str(tmp_path)
  assert (spec.path, spec.directory, spec.fields.names, spec.fields.image_folder) == (
    (f'{home}/x',), f'{home}/d', f'{home}/n', home
  )  # fmt: skip
  assert read_specs({'x': entry | {'path': ['gs://b/~/x', 'a~b']}})['x'].path == ('gs://b/~/x', 'a~b')


def test_whole_files_of_any_encoding(tmp_path):
  (tmp_path / 'x').write_bytes('Kätzchen'.encode('utf-16'))
  assert read_text(str(tmp_path / 'x')) == 'Kätzchen'
  (tmp_path / 'x').write_bytes(b'a\xff')
  with pytest.raises(InputError, match='x: byte 0xff at offset 1: expected UTF-8'):
    read_text(str(tmp_path / 'x'))


def test_local_paths_stay(tmp_path):
  assert local_copy('shards/x.array_record', str(tmp_path)) == 'shards/x.array_record'
  assert os.listdir(tmp_path) == []


def test_files_of_one_name_are_kept_apart_and_copied_once(tmp_path):
  for folder in ('a', 'b'):
    with fsspec.open(f'memory://bucket/{folder}/x', 'wb') as file:
      file.write(folder.encode())
  first, second = (local_copy(f'memory://bucket/{folder}/x', str(tmp_path)) for folder in ('a', 'b'))
  assert [pathlib.Path(path).read_bytes() for path in (first, second)] == [b'a', b'b']
  fsspec.filesystem('memory').rm('memory://bucket/a/x')
  assert local_copy('memory://bucket/a/x', str(tmp_path)) == first


def test_a_copy_is_made_anew_where_its_file_has_changed(tmp_path):
  def write(name: str, content: bytes) -> None:
    with fsspec.open(f'memory://bucket/{name}', 'wb') as file:
      file.write(content)

  write('z', b'one')
  copy = local_copy('memory://bucket/z', str(tmp_path))
  before = os.stat(copy)
  assert os.stat(local_copy('memory://bucket/z', str(tmp_path))).st_ino == before.st_ino
  write('z', b'two')  # As long as it was.
  assert pathlib.Path(local_copy('memory://bucket/z', str(tmp_path))).read_bytes() == b'two'
  for name in ('a', 'b'):
    write(f'folder/{name}', b'one')
  folder = pathlib.Path(local_copy('memory://bucket/folder', str(tmp_path)))
  assert (folder / 'b').read_bytes() == b'one'
  write('folder/b', b'two')
  fsspec.filesystem('memory').rm('memory://bucket/folder/a')
  assert local_copy('memory://bucket/folder', str(tmp_path)) == str(folder)
  assert {path.name: path.read_bytes() for path in folder.iterdir()} == {'b': b'two'}


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
