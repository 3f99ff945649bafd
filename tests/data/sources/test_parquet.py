import concurrent.futures
import pickle

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from janus_jax.data.sources.parquet import ParquetRows
from janus_jax.errors import InputError, RecordError

ROWS = [{'n': i, 'image': {'bytes': bytes([i]) * 9, 'path': 'x.png'}, 'text': ['é', 'b'][: i % 3]} for i in range(25)]


@pytest.fixture
def paths(tmp_path):
  found = []
  for name, rows in (('a', ROWS[:15]), ('b', ROWS[15:])):
    found.append(str(tmp_path / f'{name}.parquet'))
    pq.write_table(pa.Table.from_pylist([{**row, 'unread': 'x'} for row in rows]), found[-1], row_group_size=4)
  return found


def test_every_row_is_what_was_written(paths):
  source = ParquetRows(paths, ('n', 'image', 'text'))
  assert source.block_sizes == (4, 4, 4, 3, 4, 4, 2)
  assert [source[i] for i in range(len(source))] == ROWS
  assert ParquetRows(paths[1:], ('n',))[3] == {'n': 18}


def test_threads_and_other_processes_read_the_same(paths):
  source = ParquetRows(paths, ('n', 'image'))
  source[0]
  order = np.random.default_rng(0).integers(25, size=400).tolist()
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(pickle.loads(pickle.dumps(source)).__getitem__, order))
  assert [row['n'] for row in found] == order


def test_a_row_group_is_decoded_once_while_its_rows_are_read(paths, monkeypatch):
  decode, decoded = ParquetRows._decode, []
  monkeypatch.setattr(ParquetRows, '_decode', lambda self, group: decoded.append(group) or decode(self, group))
  source = ParquetRows(paths, ('n',))
  for index in [3, 1, 0, 2, *range(4, 25)]:
    source[index]
  assert decoded == [0, 1, 2, 3, 4, 5, 6]


def test_reads_from_buckets():
  with fsspec.open('memory://bucket/x.parquet', 'wb') as file:
    pq.write_table(pa.Table.from_pylist(ROWS), file)
  assert ParquetRows(['memory://bucket/x.parquet'], ('text',))[2] == {'text': ['é', 'b']}


def test_wrong_files_are_refused(paths, tmp_path):
  with pytest.raises(InputError, match=r"a\.parquet: no column 'caption': expected one of n, image, text, unread"):
    ParquetRows(paths, ('n', 'caption'))
  (tmp_path / 'c.parquet').write_bytes(b'PAR1 and no more')
  with pytest.raises(InputError, match=r'c\.parquet: .*expected a parquet file'):
    ParquetRows([str(tmp_path / 'c.parquet')], ('n',))


def test_a_damaged_row_group_spares_the_others(paths):
  with open(paths[0], 'r+b') as file:
    file.seek(8)
    file.write(b'\xff' * 40)
  source = ParquetRows(paths, ('n', 'image', 'text'))
  with pytest.raises(RecordError, match=r'a\.parquet: row 1: row group 0: '):
    source[1]
  assert source[5] == ROWS[5]


def test_text_that_is_not_utf8_spares_the_other_rows(tmp_path):
  raw = pa.array([b'a', b'\xff', b'c'])
  path = str(tmp_path / 'x.parquet')
  pq.write_table(pa.table({'text': pa.Array.from_buffers(pa.string(), 3, raw.buffers())}), path, row_group_size=2)
  source = ParquetRows([path], ('text',))
  with pytest.raises(RecordError, match=r'x\.parquet: row 1: invalid start byte at byte 0: expected UTF-8'):
    source[1]
  assert (source[0], source[2]) == ({'text': 'a'}, {'text': 'c'})


def test_what_pyarrow_cannot_decode_is_a_bad_record(paths, monkeypatch):
  def refuse(*args, **kwargs):
    raise NotImplementedError('Nested data conversions not implemented for chunked array outputs')

  source = ParquetRows(paths, ('n',))
  monkeypatch.setattr(pq.ParquetFile, 'read_row_group', refuse)
  with pytest.raises(RecordError, match=r'a\.parquet: row 4: row group 1: Nested data conversions'):
    source[4]
