"""Safetensors files against the official library, in both directions, and damaged ones against it as the judge."""

import json
import os
import random

import ml_dtypes
import numpy as np
import pytest

from janus_jax.conversion import safetensors_files
from janus_jax.conversion.lazy import LazyArray
from janus_jax.conversion.safetensors_files import read_safetensors, read_sharded, write_safetensors
from janus_jax.errors import InputError

safetensors = pytest.importorskip('safetensors')
safetensors_numpy = pytest.importorskip('safetensors.numpy')

DTYPES = ('bool', 'uint8', 'int8', 'int16', 'int32', 'int64', 'float16', 'float32', 'float64', ml_dtypes.bfloat16)
INDICES = (
  ...,
  (),
  0,
  -1,
  np.int64(2),
  slice(2, 4),
  slice(None, None, -2),
  slice(4, 1, -1),
  slice(3, 3),
  (slice(1, 4), slice(0, 3, 2)),
  (slice(None), 1),
  (..., slice(1, 2)),
  (2, ..., None),
  np.array([4, 0, 4]),
  (slice(1, 3), [0, 2]),
  (1, [0, 2]),
)


def lazy(array: np.ndarray, name: str = 'memory') -> LazyArray:
  return LazyArray(array.shape, array.dtype, lambda index: array[index], name)


def of_every_dtype() -> dict[str, np.ndarray]:
  """Random bits, so that NaNs, infinities and denormals are among them; and the shapes that are easily got wrong."""
  rng = np.random.default_rng(0)
  arrays = {}
  for dtype in map(np.dtype, DTYPES):
    bits = rng.integers(0, 2 if dtype.kind == 'b' else 256, (5, 3, dtype.itemsize), np.uint8)
    arrays[f'w.{dtype.name}'] = bits.view(dtype)[..., 0]
  return arrays | {'scalar': np.array(3.5, np.float32), 'none': np.zeros((0, 4), np.int16), 'one': np.ones(1, np.int8)}


def equal_bits(a: np.ndarray, b: np.ndarray) -> bool:
  return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def write(folder, arrays: dict[str, np.ndarray], max_shard_bytes: int = 10**9) -> list[int]:
  written = []
  tensors = {name: lazy(array) for name, array in arrays.items()}
  write_safetensors(str(folder), 'model', tensors, max_shard_bytes, written.append)
  return written


def file_with(path, header: object, data: bytes = b'') -> str:
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, 'little') + text + data)
  return str(path)


def entry(dtype: object = 'F32', shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
  return {'dtype': dtype, 'shape': shape, 'data_offsets': offsets}


def message(call, *args) -> str:
  with pytest.raises(InputError) as info:
    call(*args)
  assert '\n' not in str(info.value)
  return str(info.value)


# Reading


def test_what_the_official_library_writes_is_read_bit_for_bit(tmp_path):
  arrays = of_every_dtype()
  safetensors_numpy.save_file(arrays, tmp_path / 'm.safetensors', metadata={'format': 'pt'})
  read = read_safetensors(str(tmp_path / 'm.safetensors'))
  assert read.keys() == arrays.keys()
  for name, array in arrays.items():
    assert (read[name].shape, read[name].dtype, read[name].nbytes) == (array.shape, array.dtype, array.nbytes), name
    assert equal_bits(read[name][...], array), name


@pytest.mark.parametrize('index', INDICES, ids=str)
def test_indexing_is_numpys(tmp_path, index):
  array = np.arange(5 * 3 * 2, dtype=np.int32).reshape(5, 3, 2)
  write(tmp_path, {'w': array})
  part = read_safetensors(str(tmp_path / 'model.safetensors'))['w'][index]
  assert isinstance(part, np.ndarray)
  assert part.flags.c_contiguous
  assert equal_bits(part, np.asarray(array[index]))


def test_a_part_does_not_keep_its_rows_in_memory(tmp_path):
  write(tmp_path, {'w': np.zeros((100, 100), np.float32)})
  array = read_safetensors(str(tmp_path / 'model.safetensors'))['w']
  for part in (array[:, 0], array[None, 0], array[:1, :5]):
    assert part.base is None or len(memoryview(part.base).cast('B')) == part.nbytes


# Writing


def test_what_is_written_the_official_library_reads_bit_for_bit(tmp_path):
  arrays = of_every_dtype()
  written = write(tmp_path, arrays)
  read = safetensors_numpy.load_file(tmp_path / 'model.safetensors')
  assert os.listdir(tmp_path) == ['model.safetensors']
  assert read.keys() == arrays.keys()
  assert all(equal_bits(read[name], array) for name, array in arrays.items())
  assert sum(written) == sum(array.nbytes for array in arrays.values())


def test_torch_reads_what_is_written_whatever_the_order_of_dtypes(tmp_path):
  torch = pytest.importorskip('torch')
  arrays = {'flag': np.ones(3, bool), 'b': np.arange(5, dtype=ml_dtypes.bfloat16), 'd': np.arange(3.0)}
  write(tmp_path, arrays)
  with safetensors.safe_open(tmp_path / 'model.safetensors', framework='pt') as file:
    assert file.metadata() == {'format': 'pt'}
    for name, array in arrays.items():
      tensor = file.get_tensor(name)
      assert tensor.data_ptr() % tensor.element_size() == 0
      assert torch.equal(tensor.double(), torch.from_numpy(array.astype(np.float64)))


def test_shards_follow_the_order_and_the_limit_and_have_an_index(tmp_path):
  arrays = {name: np.full(n, n, np.float32) for name, n in [('big', 9), ('z', 3), ('a', 2), ('b', 1), ('c', 4)]}
  write(tmp_path, arrays, max_shard_bytes=20)
  index = json.loads((tmp_path / 'model.safetensors.index.json').read_text())
  numbers = {'big': 1, 'z': 2, 'a': 2, 'b': 3, 'c': 3}
  assert index['weight_map'] == {name: f'model-0000{i}-of-00003.safetensors' for name, i in numbers.items()}
  assert index['metadata'] == {'total_size': 4 * 19}
  for file_name in set(index['weight_map'].values()):
    for name, value in safetensors_numpy.load_file(tmp_path / file_name).items():
      assert index['weight_map'][name] == file_name
      assert equal_bits(value, arrays[name])
  read = read_sharded(str(tmp_path / 'model.safetensors.index.json'), read_safetensors)
  assert {name: value[...].tobytes() for name, value in read.items()} == {k: v.tobytes() for k, v in arrays.items()}


def test_transformers_loads_what_is_written_in_shards(tmp_path):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  sizes = {
    'hidden_size': 16,
    'intermediate_size': 32,
    'num_hidden_layers': 2,
    'num_attention_heads': 2,
    'vocab_size': 64,
  }
  model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
  model.config.save_pretrained(tmp_path)
  state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
  write(tmp_path, state, max_shard_bytes=4096)
  loaded, report = transformers.LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
  assert not report['missing_keys']
  assert not report['unexpected_keys']
  assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize('slice_bytes', [1, 40, 1000])
def test_slices_change_nothing(tmp_path, monkeypatch, slice_bytes):
  for folder in ('whole', 'sliced'):
    (tmp_path / folder).mkdir()
  write(tmp_path / 'whole', of_every_dtype())
  monkeypatch.setattr(safetensors_files, '_SLICE_BYTES', slice_bytes)
  write(tmp_path / 'sliced', of_every_dtype())
  assert (tmp_path / 'whole/model.safetensors').read_bytes() == (tmp_path / 'sliced/model.safetensors').read_bytes()


def test_no_slice_exceeds_the_bound(tmp_path, monkeypatch):
  monkeypatch.setattr(safetensors_files, '_SLICE_BYTES', 100)
  asked = []

  def read(index):
    asked.append(np.zeros((50, 3), np.float64)[index])
    return asked[-1]

  write_safetensors(str(tmp_path), 'model', {'w': LazyArray((50, 3), np.dtype('f8'), read)}, 10**9, lambda n: None)
  assert [len(rows) for rows in asked] == [4] * 12 + [2]


def test_unwritable_dtype_is_refused_before_anything_is_written(tmp_path):
  arrays = {'w': np.ones(3, np.float32), 'eight': np.ones(3, ml_dtypes.float8_e4m3fn)}
  assert 'float8_e4m3fn' in message(write, tmp_path, arrays)
  assert not os.listdir(tmp_path)


def test_full_disk_is_an_os_error():
  if not os.path.exists('/dev/full'):
    pytest.skip('no /dev/full here')
  with pytest.raises(OSError, match='No space left'):
    safetensors_files._write_file('/dev/full', {'w': lazy(np.ones(10**5))}, lambda n: None)


def test_an_array_that_reads_other_than_announced_is_not_written(tmp_path):
  liar = LazyArray((2, 3), np.dtype('f4'), lambda index: np.zeros((3, 2), 'f4'))
  with pytest.raises(ValueError, match=r'w: expected float32 of shape \(2, 3\)'):
    write_safetensors(str(tmp_path), 'model', {'w': liar}, 10**9, lambda n: None)


# Bad input


@pytest.mark.parametrize(
  ('header', 'data'),
  [
    ({'w': entry('F8_E4M3', [8], [0, 8])}, b'8 bytes.'),  # The library knows it, numpy does not.
    ({'w': entry(shape=[3])}, b'8 bytes.'),
    ({'w': entry()}, b'7 bytes'),
    ({'w': entry()}, b'more than 8 bytes'),
    ({'v': entry(), 'w': entry(offsets=[4, 12])}, b'12 bytes ...'),
    ([], b''),
    (b'{"w": ', b''),
    (b'[' * 10**5, b''),
  ],
)
def test_bad_header(tmp_path, header, data):
  path = file_with(tmp_path / 'bad.safetensors', header, data)
  text = message(read_safetensors, path)
  assert text.startswith(f'{path}: ')
  assert 'not a safetensors file, or damaged: ' in text or "tensor 'w': dtype F8_E4M3 is not supported" in text


def test_bad_file(tmp_path):
  path = tmp_path / 'bad.safetensors'
  assert 'no such file' in message(read_safetensors, str(path))
  assert 'no such file' in message(read_safetensors, str(tmp_path))
  assert 'no such file' in message(read_sharded, str(tmp_path / 'model.safetensors.index.json'), read_safetensors)
  path.write_bytes(b'')
  assert 'empty' in message(read_safetensors, str(path))
  for claimed in (100, 10**8 + 1, 2**64 - 1):
    path.write_bytes(claimed.to_bytes(8, 'little') + b'{}')
    assert 'not a safetensors file' in message(read_safetensors, str(path))


def test_file_cut_after_opening(tmp_path):
  write(tmp_path, {'w': np.ones(100, np.float32)})
  path = str(tmp_path / 'model.safetensors')
  array = read_safetensors(path)['w']
  os.truncate(path, os.path.getsize(path) - 10)
  assert message(array.read, ...).startswith(f'{path}: not a safetensors file, or damaged: ')


def test_damaged_files_are_refused_exactly_when_the_official_library_refuses_them(tmp_path):
  arrays = {'a': np.ones((5, 7), np.float32), 'c': np.arange(4), 'e': np.zeros((0, 4), np.float64)}
  whole = safetensors_numpy.save(arrays)
  header_end = 8 + int.from_bytes(whole[:8], 'little')
  path = tmp_path / 'damaged.safetensors'
  rng = random.Random(0)
  read_well = 0
  for _ in range(600):
    damaged = bytearray(whole if rng.random() < 0.9 else whole[: rng.randrange(1, len(whole))])
    for _ in range(rng.choice([1, 1, 2])):
      damaged[rng.randrange(min(header_end, len(damaged)))] = rng.choice(
        b'{}[]",:0123456789 ' + bytes([rng.randrange(256)])
      )
    path.write_bytes(damaged)
    try:
      expected = safetensors_numpy.load(bytes(damaged))
    except (safetensors.SafetensorError, KeyError):  # KeyError: a dtype that it knows and numpy does not.
      message(read_safetensors, str(path))
      continue
    read = {name: array[...] for name, array in read_safetensors(str(path)).items()}
    assert read.keys() == expected.keys()
    assert all(equal_bits(read[name], expected[name]) for name in expected)
    read_well += 1
  assert read_well > 5


# Shards


@pytest.mark.parametrize(
  ('index', 'said'),
  [
    (b'{', 'not JSON'),
    (b'[]', 'expected a JSON object'),
    (b'{"metadata": {}}', 'expected a "weight_map"'),
    (b'{"weight_map": []}', 'expected a "weight_map"'),
    (b'{"weight_map": {}}', 'expected a "weight_map"'),
    (b'{"weight_map": {"w": 1}}', "'w': expected the name of a file"),
    (b'{"weight_map": {"w": "../model.safetensors"}}', "'w': expected the name of a file"),
    (b'{"weight_map": {"w": "/model.safetensors"}}', "'w': expected the name of a file"),
    (b'{"weight_map": {"w": "..\\\\model.safetensors"}}', "'w': expected the name of a file"),
    (b'{"weight_map": {"w": ".."}}', "'w': expected the name of a file"),
    (b'{"weight_map": {"w": "a\\u0000"}}', "'w': expected the name of a file"),
    (b'{"weight_map": {"w": "absent.safetensors"}}', "names the shard 'absent.safetensors'"),
    (b'{"weight_map": {"w": "model.safetensors", "v": "model.safetensors"}}', "model.safetensors: lacks tensor 'v'"),
  ],
)
def test_bad_index(tmp_path, index, said):
  folder = tmp_path / 'in'
  folder.mkdir()
  write(tmp_path, {'w': np.ones(2)})
  write(folder, {'w': np.ones(2)})
  path = folder / 'model.safetensors.index.json'
  path.write_bytes(index)
  text = message(read_sharded, str(path), read_safetensors)
  assert text.startswith(str(folder))
  assert said in text
