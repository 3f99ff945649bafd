"""ArrayRecord shards of tf.train.Example: what others write is read, what is written others read, damage is named."""

import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from janus_jax.data.sources import array_record
from janus_jax.data.sources.array_record import ArrayRecordExamples, ShardWriter, encode_example
from janus_jax.errors import InputError, RecordError

ROOT = pathlib.Path(__file__).parents[3]


def write(path: pathlib.Path, records: list[bytes]) -> str:
  with ShardWriter(str(path)) as writer:
    for record in records:
      writer.write(record)
  return str(path)


@pytest.fixture
def three_files(tmp_path):
  """Seven records in three files, the second one empty."""
  records = [encode_example({'number': number, 'text': f'record {number}'}) for number in range(7)]
  return [write(tmp_path / name, part) for name, part in (('a', records[:3]), ('b', []), ('c', records[3:]))]


def test_the_bytes_are_those_of_the_format():
  # Field numbers from tensorflow/core/example/{example,feature}.proto, by hand: Example.features = 1, the map's entries
  # = 1 with key = 1 and value = 2, bytes_list = 1, float_list = 2 and int64_list = 3, whose numbers are packed.
  entry = b'\x0a\x01a' + b'\x12\x07' + b'\x0a\x05' + b'\x0a\x03xyz'
  assert encode_example({'a': 'xyz'}) == b'\x0a\x0e' + b'\x0a\x0c' + entry
  entry = b'\x0a\x01b' + b'\x12\x07' + b'\x1a\x05' + b'\x0a\x03' + b'\x01\xac\x02'
  assert encode_example({'b': [1, 300]}) == b'\x0a\x0e' + b'\x0a\x0c' + entry
  entry = b'\x0a\x01c' + b'\x12\x08' + b'\x12\x06' + b'\x0a\x04' + b'\x00\x00\xc0\x3f'
  assert encode_example({'c': 1.5}) == b'\x0a\x0f' + b'\x0a\x0d' + entry


def test_the_bytes_do_not_depend_on_the_order_of_features():
  values = {name: name for name in 'edcbafghij'}
  assert encode_example(values) == encode_example(dict(sorted(values.items())))


def test_tfds_reads_what_is_written():
  value = {'codes': b'\x00\xff', 'prompt': 'é', 'number': 3, 'floats': [0.5, 2.0]}
  features = tfds.features.FeaturesDict(
    {
      'codes': tfds.features.Tensor(shape=(), dtype=np.object_),
      'prompt': tfds.features.Text(),
      'number': np.int64,
      'floats': tfds.features.Tensor(shape=(2,), dtype=np.float32),
    }
  )
  found = features.deserialize_example_np(encode_example(value))
  assert (found['codes'], found['prompt'], found['number']) == (b'\x00\xff', 'é'.encode(), 3)
  np.testing.assert_array_equal(found['floats'], [0.5, 2.0])


def test_what_tfds_writes_is_read():
  features = tfds.features.FeaturesDict(
    {'image': tfds.features.Image(), 'label': tfds.features.ClassLabel(num_classes=4), 'name': tfds.features.Text()}
  )
  content = b'\x89PNG of a kind'
  encoded = {'image': content, 'label': 3, 'name': b'a name'}
  assert array_record.decode_example(features.serialize_example(encoded)) == encoded


def test_values_of_every_kind(tmp_path):
  values = {
    'text': 'é',
    'bytes': b'\x00\xff',
    'int': -(2**63),
    'flag': True,
    'float': 0.5,
    'texts': ['a', b'b'],
    'ints': [1, -2],
    'mixed': [1, 2.5],
    'array': np.array([3, 4], np.uint16),
    'one': [7],
    'none': [],
  }
  (found,) = ArrayRecordExamples([write(tmp_path / 'a', [encode_example(values)])])
  assert (found['text'], found['bytes'], found['int'], found['flag']) == ('é'.encode(), b'\x00\xff', -(2**63), 1)
  assert (found['float'], found['texts'], found['one']) == (0.5, [b'a', b'b'], 7)
  assert list(found['none']) == []
  for name, expected in (('ints', [1, -2]), ('mixed', [1, 2.5]), ('array', [3, 4])):
    np.testing.assert_array_equal(found[name], expected)
  assert (found['ints'].dtype, found['mixed'].dtype) == (np.int64, np.float32)
  with pytest.raises(InputError, match=r"feature 'x': dict, int: expected text, bytes, numbers, or a list"):
    encode_example({'x': [1, {}]})


def test_records_lie_one_file_after_the_other(three_files):
  source = ArrayRecordExamples(three_files)
  assert len(source) == 7
  assert [record['number'] for record in source] == list(range(7))
  assert source[-1]['text'] == b'record 6'
  assert [source[index]['number'] for index in (5, 0, np.int64(3), -1)] == [5, 0, 3, 6]
  with pytest.raises(IndexError):
    source[7]
  copy = pickle.loads(pickle.dumps(source))  # After it was read from.
  assert copy[4] == {'number': 4, 'text': b'record 4'}


def damage(path: str, needle: bytes) -> None:
  content = bytearray(pathlib.Path(path).read_bytes())
  content[content.index(needle)] ^= 1
  pathlib.Path(path).write_bytes(content)


def test_a_damaged_record_is_named_and_costs_no_other(tmp_path, three_files):
  noise = [np.random.default_rng(seed).bytes(1000) for seed in range(3)]  # zstd stores it as it is.
  path = write(tmp_path / 'damaged', [encode_example({'noise': part}) for part in noise])
  damage(path, noise[1][100:130])
  source = ArrayRecordExamples([*three_files, path])
  assert source[7] == {'noise': noise[0]}
  assert source[9] == {'noise': noise[2]}
  with pytest.raises(RecordError, match=r'damaged: record 1: .*hash mismatch') as error:
    source[8]
  assert error.value.reason == 'damaged'
  assert '\n' not in str(error.value)


def test_a_record_of_another_format_is_named(tmp_path):
  source = ArrayRecordExamples([write(tmp_path / 'jpegs', [encode_example({}), b'\xff\xd8\xff\xe0'])])
  assert source[0] == {}
  with pytest.raises(RecordError, match=r'jpegs: record 1: 4 bytes: expected a tf\.train\.Example$'):
    source[1]


def test_files_that_are_none(tmp_path, three_files):
  text, cut = tmp_path / 'text', tmp_path / 'cut'
  text.write_text('hello')
  content = pathlib.Path(three_files[0]).read_bytes()
  cut.write_bytes(content[:70_000])
  for path, message in (
    ('/no/such/file', '/no/such/file: No such file'),
    (str(text), 'text: .*: expected an ArrayRecord file'),
    (str(cut), 'cut: .*: expected an ArrayRecord file'),
  ):
    with pytest.raises(InputError, match=message):
      ArrayRecordExamples([three_files[0], path])
  with pytest.raises(InputError, match='no ArrayRecord files'):
    ArrayRecordExamples([])


def test_a_shard_appears_whole_or_not_at_all(tmp_path):
  path = array_record.shard_path(str(tmp_path), 'train', 3, 10)
  assert path == f'{tmp_path}/train-00003-of-00010.array_record'
  with pytest.raises(TypeError), ShardWriter(path) as writer:
    writer.write(3)
  assert os.listdir(tmp_path) == []
  pathlib.Path(f'{path}.partial').write_bytes(b'left by a process that was killed' * 10_000)
  with ShardWriter(path) as writer:
    writer.write(b'record')
    assert os.listdir(tmp_path) == ['train-00003-of-00010.array_record.partial']
  assert os.listdir(tmp_path) == ['train-00003-of-00010.array_record']
  reader = ArrayRecordReader(path)
  assert reader.read_all() == [b'record']
  assert 'group_size:1,' in reader.writer_options_string()


def test_a_place_that_cannot_be_written_to_is_one_line(tmp_path):
  path = f'{tmp_path}/no/such/shard'
  with pytest.raises(InputError, match=rf'^{path}: cannot be written: open\(\) failed: No such file') as error:
    write(pathlib.Path(path), [b'record'])
  assert '\n' not in str(error.value)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
  """A limit on file size stands in for it: the kernel refuses a write half-way."""
  code = f"""
import os
from janus_jax.data.sources.array_record import ShardWriter
with ShardWriter('{tmp_path}/shard') as writer:
  for _ in range(30):
    writer.write(os.urandom(20_000))"""
  limited = ['bash', '-c', 'ulimit -f 200; exec "$@"', 'bash', sys.executable, '-c', code]  # Blocks of 1024 bytes.
  result = subprocess.run(limited, capture_output=True, text=True, cwd=ROOT)
  assert 'InputError: ' in (last := result.stderr.splitlines()[-1])
  assert f'{tmp_path}/shard: cannot be written: write() failed: File too large' in last
  assert os.listdir(tmp_path) == []


def test_files_in_groups_are_read_too(tmp_path):
  writer = ArrayRecordWriter(f'{tmp_path}/a', 'group_size:4')
  for number in range(10):
    writer.write(encode_example({'number': number}))
  writer.close()
  assert [record['number'] for record in ArrayRecordExamples([f'{tmp_path}/a'])] == list(range(10))


def test_tensorflow_and_jax_stay_out(three_files):
  code = f"""
import sys
from janus_jax.data.sources.array_record import ArrayRecordExamples, encode_example
print(ArrayRecordExamples({three_files})[1]['number'], encode_example({{}}))
print({{'tensorflow', 'jax'}} & set(sys.modules))"""
  result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
  assert result.stdout == "1 b''\nset()\n", result.stderr
