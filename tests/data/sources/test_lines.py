import concurrent.futures
import json
import pickle

import fsspec
import numpy as np
import pytest

from janus_jax.data.sources import lines
from janus_jax.data.sources.lines import JsonArray, JsonLines, TextDocuments
from janus_jax.errors import InputError, RecordError


@pytest.mark.parametrize('chunk', [1, 3, 7, lines.CHUNK])
@pytest.mark.parametrize('end', ['\n', '\r\n'])
@pytest.mark.parametrize('last', ['', 'end'])
def test_objects_and_documents_are_found_wherever_chunks_end(chunk, end, last, tmp_path, monkeypatch):
  monkeypatch.setattr(lines, 'CHUNK', chunk)
  objects = [{'n': i, 'text': 'é' * i} for i in range(6)]
  texts = [json.dumps(item, ensure_ascii=False) for item in objects]
  for name, parts in (('a', texts[:2]), ('b', ['', texts[2], '', '', *texts[3:], ''])):
    (tmp_path / name).write_bytes((end.join(parts) + (end if last else '')).encode())
  assert list(JsonLines([str(tmp_path / name) for name in 'ab'])) == objects
  documents = [['one', 'line é'], ['two'], ['three', '3', '33']]
  blank = end + end
  (tmp_path / 'c').write_bytes((end + blank.join(end.join(d) for d in documents) + (blank if last else '')).encode())
  assert [item['text'] for item in TextDocuments([str(tmp_path / 'c')])] == [end.join(d) for d in documents]


def test_reads_from_buckets_threads_and_other_processes():
  """fsspec's file system in memory stands for a bucket."""
  with fsspec.open('memory://shards/x.jsonl', 'w') as file:
    file.write(''.join(f'{{"n": {i}}}\n' for i in range(500)))
  source = pickle.loads(pickle.dumps(JsonLines(['memory://shards/x.jsonl'])))
  order = np.random.default_rng(0).permutation(500).tolist()
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert [item['n'] for item in pool.map(source.__getitem__, order)] == order


@pytest.mark.parametrize(
  ('line', 'reason', 'message'),
  [
    (b'\xff{}', 'text', r'x:3: invalid start byte at byte 0: expected UTF-8'),
    (b'{"a": ', 'text', r'x:3: Expecting value at column 8: expected a JSON object'),
    (b'[' * 100_000, 'text', r'x:3: maximum recursion depth exceeded.*: expected a JSON object'),
    (b'{"n": ' + b'1' * 5000 + b'}', 'text', r'x:3: Exceeds the limit .*: expected a JSON object'),
    (b'[1]', 'wrong type', r'x:3: a list: expected a JSON object'),
  ],
)
def test_a_bad_line_says_which_and_spares_the_others(line, reason, message, tmp_path):
  (tmp_path / 'x').write_bytes(b'{"n": 0}\n\n' + line + b'\n{"n": 2}\n')
  source = JsonLines([str(tmp_path / 'x')])
  assert (source[0], source[2]) == ({'n': 0}, {'n': 2})
  with pytest.raises(RecordError, match=message) as caught:
    source[1]
  assert caught.value.reason == reason


def test_a_list_of_objects(tmp_path):
  (tmp_path / 'a.json').write_text('[{"n": 0}, 7]')
  (tmp_path / 'b.json').write_text('[{"n": 2}]')
  source = JsonArray([str(tmp_path / 'a.json'), str(tmp_path / 'b.json')])
  assert (len(source), source[0], source[2]) == (3, {'n': 0}, {'n': 2})
  with pytest.raises(RecordError, match=r'a.json\[1\]: a int: expected a JSON object'):
    source[1]


@pytest.mark.parametrize(
  ('content', 'message'), [(b'{}', 'a dict'), (b'[', 'Expecting'), (b'\xff', 'codec'), (b'[' * 100_000, 'recursion')]
)
def test_a_file_that_is_no_list_is_refused(content, message, tmp_path):
  (tmp_path / 'x.json').write_bytes(content)
  with pytest.raises(InputError, match=rf'x\.json: .*{message}.*expected a JSON list'):
    JsonArray([str(tmp_path / 'x.json')])


def test_empty_files_have_no_records(tmp_path):
  (tmp_path / 'x').write_bytes(b'\n\n')
  (tmp_path / 'y').write_bytes(b'')
  paths = [str(tmp_path / name) for name in 'xy']
  assert len(JsonLines(paths)) == len(TextDocuments(paths)) == 0
  with pytest.raises(InputError, match='z: No such file'):
    JsonLines([str(tmp_path / 'z')])
