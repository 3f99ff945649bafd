import codecs
import concurrent.futures
import gzip
import json
import os
import pickle

import fsspec
import numpy as np
import pytest

from janus_jax.data.sources import files, json_lists, lines
from janus_jax.data.sources.lines import JsonArray, JsonLines, TextDocuments
from janus_jax.errors import InputError, RecordError

READERS = (JsonLines, JsonArray, TextDocuments)
OBJECTS = [{'n': i, 'text': 'é' * i} for i in range(6)]


@pytest.fixture
def kept(tmp_path):
  return str(tmp_path / 'index')


@pytest.mark.parametrize('chunk', [1, 3, 7, lines.CHUNK])
@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
@pytest.mark.parametrize('last', ['', 'end'])
@pytest.mark.parametrize('blank', ['', '  ', '\t\u3000\xa0 '])
def test_objects_and_documents_are_found_wherever_chunks_end(chunk, end, last, blank, tmp_path, monkeypatch, kept):
  monkeypatch.setattr(lines, 'CHUNK', chunk)
  texts = [json.dumps(item, ensure_ascii=False) for item in OBJECTS]
  for name, parts in (('a', texts[:2]), ('b', [blank, texts[2], blank, blank, *texts[3:], blank])):
    (tmp_path / name).write_bytes((end.join(parts) + (end if last else '')).encode())
  assert list(JsonLines([str(tmp_path / name) for name in 'ab'], kept)) == OBJECTS
  documents = [['one', 'line é'], ['two'], ['three', '3', '33']]
  between = end + blank + end
  (tmp_path / 'c').write_bytes(
    (blank + end + between.join(end.join(d) for d in documents) + (between if last else '')).encode()
  )
  assert [item['text'] for item in TextDocuments([str(tmp_path / 'c')], kept)] == [end.join(d) for d in documents]


@pytest.mark.parametrize('mark', [codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, None])
def test_encodings_and_gzip_are_read(mark, tmp_path, kept):
  encoding = {codecs.BOM_UTF16_LE: 'utf-16-le', codecs.BOM_UTF16_BE: 'utf-16-be'}.get(mark, 'utf-8')
  contents = (
    (JsonLines, '\n'.join(json.dumps(item, ensure_ascii=False) for item in OBJECTS), OBJECTS),
    (JsonArray, json.dumps(OBJECTS, ensure_ascii=False, indent=1), OBJECTS),
    (TextDocuments, 'é\r\n \r\nb', [{'text': 'é'}, {'text': 'b'}]),
  )
  path = tmp_path / 'x'
  for reader, text, expected in contents:
    content = text.encode(encoding)
    path.write_bytes(gzip.compress(content) if mark is None else mark + content)
    assert list(reader([str(path)], kept)) == expected


@pytest.mark.parametrize('reader', READERS)
def test_compressed_otherwise_is_refused_in_one_line(reader, tmp_path, kept):
  (tmp_path / 'x').write_bytes(b'\x28\xb5\x2f\xfd and more')
  with pytest.raises(InputError, match=r'x: compressed by zstd: .* decompress it'):
    reader([str(tmp_path / 'x')], kept)
  (tmp_path / 'x').write_bytes(gzip.compress(b'[]' * 999)[:-9])
  with pytest.raises(InputError, match=r'x: .*expected a whole gzip file'):
    reader([str(tmp_path / 'x')], kept)
  assert os.listdir(kept) == []


def test_the_index_is_kept_until_the_file_changes(tmp_path, kept, monkeypatch):
  path = tmp_path / 'x.json'
  path.write_text(json.dumps(OBJECTS))
  assert list(JsonArray([str(path)], kept)) == OBJECTS
  with monkeypatch.context() as patch:
    patch.setattr(json_lists, '_structure', lambda *_: pytest.fail('indexed again'))
    assert list(JsonArray([str(path)], kept)) == OBJECTS
  before = os.stat(path)
  path.write_text(json.dumps(OBJECTS[::-1]))  # As many bytes.
  os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
  assert list(JsonArray([str(path)], kept)) == OBJECTS[::-1]


def test_a_kept_file_appears_whole_or_not_at_all(tmp_path, kept):
  def fails(partial: str) -> None:
    with open(partial, 'w') as file:
      file.write('half')
    raise OSError(28, 'No space left on device')

  with pytest.raises(InputError, match=r'x\.index: No space left on device'):
    files.kept_file(kept, 'x.index', fails)
  assert os.listdir(kept) == []


def test_what_is_cut_off_later_is_a_bad_record(tmp_path, kept):
  path = tmp_path / 'x'
  path.write_text('{"n": 0}\n{"n": 1}\n')
  source = JsonLines([str(path)], kept)
  os.truncate(path, 12)
  assert source[0] == {'n': 0}
  with pytest.raises(RecordError, match=r'x:2: cut off since .*x was indexed'):
    source[1]


@pytest.mark.parametrize('reader', READERS)
def test_workers_get_no_records_and_no_index(reader, tmp_path, kept):
  sizes = []
  for count in (10, 10_000):
    path = tmp_path / f'{count:09}'
    separator = {JsonLines: '\n', JsonArray: ',', TextDocuments: '\n\n'}[reader]
    text = separator.join(['{"n": 1}'] * count)
    path.write_text(f'[{text}]' if reader is JsonArray else text)
    source = reader([str(path)], kept)
    assert len(source) == count
    sizes.append(len(pickle.dumps(source)))
  assert sizes[1] - sizes[0] < 10


def test_reads_from_buckets_threads_and_other_processes(kept):
  """fsspec's file system in memory stands for a bucket."""
  for name, content in (
    ('x.jsonl', ''.join(f'{{"n": {i}}}\n' for i in range(500))),
    ('x.json', json.dumps([{'n': i} for i in range(500)])),
  ):
    with fsspec.open(f'memory://shards/{name}', 'w') as file:
      file.write(content)
    reader = JsonArray if name == 'x.json' else JsonLines
    source = pickle.loads(pickle.dumps(reader([f'memory://shards/{name}'], kept)))
    order = np.random.default_rng(0).permutation(500).tolist()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
      assert [item['n'] for item in pool.map(source.__getitem__, order)] == order


@pytest.mark.parametrize(
  ('line', 'reason', 'message'),
  [
    (b'{"\xff"}', 'text', r'x:3: byte 0xff at offset 12: expected UTF-8'),
    (b'{}\0\0', 'text', r'x:3: byte 0x00 at offset 12: expected text in UTF-8'),
    (b'\xff\xfe{\0}\0', 'text', r'x:3: byte 0xff at offset 10: expected UTF-8'),
    (b'{"a": ', 'text', r'x:3: Expecting value at column 8: expected a JSON object'),
    (b'[' * 100_000, 'text', r'x:3: maximum recursion depth exceeded.*: expected a JSON object'),
    (b'{"n": ' + b'1' * 5000 + b'}', 'text', r'x:3: Exceeds the limit .*: expected a JSON object'),
    (b'[1]', 'wrong type', r'x:3: a list: expected a JSON object'),
  ],
)
def test_a_bad_line_says_which_and_spares_the_others(line, reason, message, tmp_path, kept):
  (tmp_path / 'x').write_bytes(b'{"n": 0}\n\n' + line + b'\n{"n": 2}\n')
  source = JsonLines([str(tmp_path / 'x')], kept)
  assert (source[0], source[2]) == ({'n': 0}, {'n': 2})
  assert source.where(2) == f'{tmp_path}/x:4'
  with pytest.raises(RecordError, match=message) as caught:
    source[1]
  assert caught.value.reason == reason


def test_a_list_of_objects(tmp_path, kept):
  (tmp_path / 'a.json').write_text('[{"n": 0}, 7, {"n" 1}]')
  (tmp_path / 'b.json').write_text('[{"n": 3}]')
  (tmp_path / 'c.json').write_text('[]')
  source = JsonArray([str(tmp_path / f'{name}.json') for name in 'acb'], kept)
  assert (len(source), source[0], source[3]) == (4, {'n': 0}, {'n': 3})
  for index, message in ((1, 'item 1: a int: expected a JSON object'), (2, "item 2: Expecting ':'")):
    with pytest.raises(RecordError, match=rf'a\.json: {message}'):
      source[index]
  assert source.where(3) == f'{tmp_path}/b.json: item 0'


def test_empty_files_have_no_records(tmp_path, kept):
  for name, content in (('x', b'\n\n'), ('y', b''), ('z', codecs.BOM_UTF8), ('u', codecs.BOM_UTF16_LE)):
    (tmp_path / name).write_bytes(content)
  paths = [str(tmp_path / name) for name in 'xyzu']
  assert len(JsonLines(paths, kept)) == len(TextDocuments(paths, kept)) == 0
  with pytest.raises(InputError, match='gone: No such file'):
    JsonLines([str(tmp_path / 'gone')], kept)
