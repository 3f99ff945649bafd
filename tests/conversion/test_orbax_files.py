"""Orbax directories in slices: against `ocp.save`/`ocp.load` in both directions, bit for bit, in bounded memory."""

import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp_v0
import pytest
from flax import traverse_util
from orbax.checkpoint import v1 as ocp

from janus_jax.conversion import orbax_files
from janus_jax.conversion.lazy import LazyArray
from janus_jax.conversion.orbax_files import read_orbax, write_orbax
from janus_jax.errors import InputError

P = jax.sharding.PartitionSpec


def random_bits(shape, dtype, seed=0):
  """Any bit pattern, NaN payloads and denormals included."""
  dtype = np.dtype(dtype)
  bits = np.random.default_rng(seed).integers(0, 256, size=(*shape, dtype.itemsize), dtype=np.uint8)
  return bits.reshape(-1).view(dtype).reshape(shape)


def lazy(array):
  return LazyArray(array.shape, array.dtype, lambda index: array[index])


def ignore(nbytes):
  del nbytes


def assert_same_bits(actual, expected):
  assert actual.dtype == expected.dtype
  assert actual.shape == expected.shape
  assert np.asarray(actual).tobytes() == np.asarray(expected).tobytes()


@pytest.fixture
def small_slices(monkeypatch):
  monkeypatch.setattr(orbax_files, 'SLICE_BYTES', 2048)
  monkeypatch.setattr(orbax_files, 'IN_FLIGHT_BYTES', 4096)
  monkeypatch.setattr(orbax_files, 'CHUNK_BYTES', 512)


@pytest.fixture
def arrays():
  return {
    'language_model/layers/attn/q/kernel': random_bits((5, 24, 33), ml_dtypes.bfloat16, 1),
    'language_model/embed': random_bits((1031, 7), np.float32, 2),  # A prime number of rows.
    'language_model/lm_head': random_bits((7, 1031), np.float16, 3),
    'vq/ids': np.arange(19, dtype=np.int32),
    'vq/scale': np.asarray(1.5, np.float32),
    'vq/nothing': np.zeros((0, 3), np.float32),
  }


@pytest.mark.usefixtures('small_slices')
def test_round_trip_keeps_every_bit_through_slices(tmp_path, arrays):
  directory = str(tmp_path / 'params')
  written = []
  write_orbax(directory, {path: lazy(array) for path, array in arrays.items()}, written.append)
  restored = read_orbax(directory)
  assert set(restored) == set(arrays)
  for path, array in arrays.items():
    assert (restored[path].shape, restored[path].dtype) == (array.shape, array.dtype)
    assert_same_bits(restored[path][...], array)
  assert sum(written) == sum(array.nbytes for array in arrays.values())


@pytest.mark.usefixtures('small_slices')
def test_source_is_read_once_and_in_slices(tmp_path):
  array = random_bits((40, 128), np.float32)
  rows = []

  def read(index):
    rows.append(range(40)[index])
    return array[index]

  write_orbax(str(tmp_path / 'params'), {'kernel': LazyArray(array.shape, array.dtype, read)}, ignore)
  assert [row for part in rows for row in part] == list(range(40))
  assert max(len(part) for part in rows) * 128 * 4 <= 2048


@pytest.mark.usefixtures('small_slices')
def test_ocp_load_restores_what_was_written(tmp_path, arrays):
  directory = str(tmp_path / 'params')
  del arrays['vq/nothing']  # Orbax itself cannot restore an empty jax.Array.
  write_orbax(directory, {path: lazy(array) for path, array in arrays.items()}, ignore)
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = {path: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=device) for path, array in arrays.items()}
  tree = traverse_util.unflatten_dict(abstract, sep='/')
  for loaded, array_type in ((ocp.load(directory, tree), jax.Array), (ocp.load(directory), np.ndarray)):
    for path, array in traverse_util.flatten_dict(loaded, sep='/').items():
      assert isinstance(array, array_type)
      assert_same_bits(array, arrays[path])


def save_v0(directory, tree):
  with ocp_v0.StandardCheckpointer() as checkpointer:
    checkpointer.save(directory, tree)


@pytest.mark.parametrize('save', [ocp.save, save_v0], ids=['v1', 'v0'])
def test_reads_what_orbax_writes(tmp_path, save):
  directory = str(tmp_path / 'params')
  tree = {
    'kernel': jnp.asarray(random_bits((3, 4), ml_dtypes.bfloat16)),
    'layers': [np.arange(4, dtype=np.int32), jnp.ones((2, 2), jnp.float16)],
    'step': 7,
  }
  save(directory, tree)
  restored = read_orbax(directory)
  assert set(restored) == {'kernel', 'layers/0', 'layers/1', 'step'}
  assert_same_bits(restored['kernel'][...], tree['kernel'])
  assert_same_bits(restored['layers/0'][1:3], tree['layers'][0][1:3])
  assert_same_bits(restored['layers/1'][...], tree['layers'][1])
  assert restored['step'][...] == 7


@pytest.mark.usefixtures('small_slices')
def test_sharded_arrays_in_both_directions(tmp_path):
  mesh = jax.make_mesh((4, 2), ('data', 'model'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  array = random_bits((6, 32, 48), ml_dtypes.bfloat16)
  write_orbax(str(tmp_path / 'ours'), {'kernel': lazy(array)}, ignore)
  for spec in (P(None, 'data', 'model'), P(None, None, ('data', 'model')), P('model')):
    sharding = jax.sharding.NamedSharding(mesh, spec)
    abstract = {'kernel': jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)}
    loaded = ocp.load(str(tmp_path / 'ours'), abstract)['kernel']
    assert loaded.sharding.is_equivalent_to(sharding, 3)
    assert_same_bits(loaded, array)
    ocp.save(str(tmp_path / str(spec)), {'kernel': loaded})
    assert_same_bits(read_orbax(str(tmp_path / str(spec)))['kernel'][1:5, :, 7], array[1:5, :, 7])


MEMORY = """
import sys
import numpy as np
from janus_jax.conversion import orbax_files
from janus_jax.conversion.lazy import LazyArray
orbax_files.SLICE_BYTES, orbax_files.IN_FLIGHT_BYTES, orbax_files.CHUNK_BYTES = 2**22, 2**23, 2**20

def peak():
  return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM')) / 1024

def read(index):
  return np.repeat(np.arange(index.start, index.stop, dtype=np.int32)[:, None], 2**18, axis=1)

def round_trip(directory, rows):
  lazy = LazyArray((rows, 2**18), np.dtype(np.int32), read)
  orbax_files.write_orbax(directory, {'kernel': lazy}, lambda nbytes: None)
  kernel = orbax_files.read_orbax(directory)['kernel']
  assert all((kernel[row : row + 4] == np.arange(row, row + 4)[:, None]).all() for row in range(0, rows, 4))

round_trip(sys.argv[1] + '/small', 8)
before = peak()
round_trip(sys.argv[1] + '/large', 128)
print(peak() - before)
"""


def run_python(script, *arguments):
  environment = {**os.environ, 'PYTHONPATH': str(pathlib.Path(__file__).parents[2]), 'JAX_PLATFORMS': 'cpu'}
  command = [sys.executable, '-c', script, *arguments]
  return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='needs the peak that Linux records')
def test_memory_is_bounded_by_slices_not_by_leaves(tmp_path):
  grown_by = float(run_python(MEMORY, str(tmp_path)))
  assert grown_by < 80, f'{grown_by} MiB more for a leaf of 128 MiB in slices of 4 MiB'


@pytest.mark.parametrize('writer', ['ours', 'orbax'])
def test_index_means_what_it_means_to_numpy(tmp_path, writer):
  directory = str(tmp_path / 'params')
  array = random_bits((6, 5, 4), np.int32)
  if writer == 'ours':
    write_orbax(directory, {'a': lazy(array)}, ignore)
  else:
    ocp.save(directory, {'a': array})
  stored = read_orbax(directory)['a']
  for index in (
    ...,
    2,
    -1,
    slice(1, 3),
    slice(-2, None),
    slice(4, 99),
    slice(5, 2),
    slice(None, None, 2),
    slice(None, None, -2),
    (slice(None), 3),
    (..., -1),
    (1, ..., slice(0, 2)),
    (1, 2, 3),
    (slice(2, 4), slice(None), slice(-3, -1)),
  ):
    assert np.array_equal(stored[index], array[index]), index
  for index in (6, (0, 0, 0, 0)):
    with pytest.raises(IndexError):
      stored[index]


def largest_data_file(directory):
  return max(pathlib.Path(directory).glob('ocdbt.process_0/d/*'), key=lambda path: path.stat().st_size)


@pytest.fixture
def checkpoint(tmp_path):
  directory = str(tmp_path / 'params')
  write_orbax(directory, {'a/kernel': lazy(random_bits((64, 64), np.float32))}, ignore)
  return directory


@pytest.mark.parametrize('damage', [os.remove, lambda path: os.truncate(path, 1000)], ids=['missing', 'truncated'])
def test_damaged_data_is_reported_when_the_leaf_is_read(checkpoint, damage):
  damage(largest_data_file(checkpoint))
  stored = read_orbax(checkpoint)['a/kernel']
  with pytest.raises(InputError, match=r'params: a/kernel: missing or damaged data') as error:
    stored[0:2]
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'metadata',
  ['', '{"tree_metadata": {', '{}', '[1]', '{"tree_metadata": {"x": 1}}', '\x00', json.dumps({'tree_metadata': {}})],
)
def test_foreign_metadata_is_one_line(checkpoint, metadata):
  (pathlib.Path(checkpoint) / '_METADATA').write_text(metadata)
  with pytest.raises(InputError, match=r'params: unreadable, expected a whole Orbax tree') as error:
    read_orbax(checkpoint)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('lost', ['manifest.ocdbt', 'd'])
def test_lost_index_is_one_line(checkpoint, lost, capfd):
  path = pathlib.Path(checkpoint) / lost
  shutil.rmtree(path) if path.is_dir() else path.unlink()
  with pytest.raises(InputError, match=r'params: unreadable') as error:
    read_orbax(checkpoint)
  assert '\n' not in str(error.value)
  assert 'tensorstore_spec' not in str(error.value)  # A page of JSON.
  assert 'Traceback' not in capfd.readouterr().err


def test_what_is_no_checkpoint_is_said_so(tmp_path):
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'file').write_text('x')
  for name in ('empty', 'file', 'absent'):
    with pytest.raises(InputError, match=rf'{name}: no Orbax checkpoint, expected a _METADATA file'):
      read_orbax(str(tmp_path / name))


def test_several_trees_are_not_guessed_between(tmp_path):
  directory = str(tmp_path / 'step')
  ocp.save_checkpointables(directory, {'first': {'a': np.zeros(2)}, 'second': {'a': np.ones(2)}})
  with pytest.raises(InputError, match=r'several trees \(first, second\)'):
    read_orbax(directory)
  assert read_orbax(f'{directory}/second')['a'][0] == 1


def test_existing_directory_is_refused(checkpoint):
  before = sorted(pathlib.Path(checkpoint).rglob('*'))
  with pytest.raises(InputError, match=r'params: exists already'):
    write_orbax(checkpoint, {'a': lazy(np.zeros(3))}, ignore)
  assert sorted(pathlib.Path(checkpoint).rglob('*')) == before


@pytest.fixture
def no_large_files():
  """The nearest thing to a full disk that needs no privileges: the system refuses to let a file grow."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
  yield
  resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures('no_large_files')
def test_fault_of_the_file_system_is_an_os_error(tmp_path):
  with pytest.raises(OSError, match=r'File too large: .*params'):
    write_orbax(str(tmp_path / 'params'), {'a': lazy(random_bits((2**20,), np.float32))}, ignore)
  assert not (tmp_path / 'params').exists()


def test_fault_of_the_source_comes_through_and_nothing_is_left_writing(tmp_path, monkeypatch):
  monkeypatch.setattr(orbax_files, 'SLICE_BYTES', 2**25)
  array = random_bits((2**26,), np.uint8)

  def read(index):
    if index.start:
      raise InputError("model.safetensors: kernel: unreadable, os_error_code='5'")
    return array[index]

  with pytest.raises(InputError, match=r'^model.safetensors: kernel: unreadable'):
    write_orbax(str(tmp_path / 'params'), {'kernel': LazyArray(array.shape, array.dtype, read)}, ignore)
  assert not (tmp_path / 'params').exists()
  # The slice handed over before the fault is all there, so its writer is done and the caller can remove the directory.
  assert sum(path.stat().st_size for path in tmp_path.rglob('*') if path.is_file()) >= 2**25
