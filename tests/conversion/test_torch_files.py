"""PyTorch checkpoint files against torch.load, views and old layouts included; and files that must not be trusted."""

import os
import pickle
import random
import sys
import tracemalloc
import warnings
import zipfile

import ml_dtypes
import numpy as np
import pytest

from janus_jax.conversion import safetensors_files
from janus_jax.conversion.safetensors_files import read_safetensors, read_sharded, write_safetensors
from janus_jax.conversion.torch_files import read_torch
from janus_jax.errors import InputError

torch = pytest.importorskip('torch')

LAYOUTS = pytest.mark.parametrize('layout', ['zip', 'zip of torch 2.5', 'legacy'])


def state_dict() -> dict[str, 'torch.Tensor']:
  """Every dtype, and every way in which a tensor is not simply its storage from begin to end."""
  generator = torch.Generator().manual_seed(0)
  state = {'none': torch.zeros(0, 4)}
  for name in ('bool', 'uint8', 'int8', 'int16', 'int32', 'int64', 'float16', 'bfloat16', 'float32', 'float64'):
    state[f'w.{name}'] = (torch.randn(6, 5, generator=generator) * 3).abs().to(getattr(torch, name))
  base = state['w.bfloat16']
  return state | {
    'tied': base,
    'transposed': base.t(),
    'rows': base[2:5],
    'columns': base[:, 1::2],
    'permuted': torch.randn(4, 3, 2, generator=generator).permute(2, 0, 1),
    'expanded': torch.arange(3.0).expand(4, 3),
    'scalar': torch.tensor(2.5),
    'scalar in row': state['w.int64'][3, 2],
    'parameter': torch.nn.Parameter(torch.randn(3, 3, generator=generator)),
  }


def save(value: object, path, layout: str = 'zip') -> str:
  torch.save(value, path, _use_new_zipfile_serialization=layout != 'legacy')
  if layout == 'zip of torch 2.5':  # It did not yet note alignment and version, from which torch computes offsets.
    path.rename(path.with_suffix('.new'))
    with zipfile.ZipFile(path.with_suffix('.new')) as new, zipfile.ZipFile(path, 'w') as old:
      for info in new.infolist():
        if not info.filename.endswith(('.format_version', '.storage_alignment')):
          old.writestr(info.filename, new.read(info))
  return str(path)


def to_numpy(tensor: 'torch.Tensor') -> np.ndarray:
  if tensor.dtype == torch.bfloat16:
    return tensor.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
  return tensor.detach().numpy()


def equal_bits(a: np.ndarray, b: np.ndarray) -> bool:
  return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def message(call, *args) -> str:
  with pytest.raises(InputError) as info:
    call(*args)
  assert '\n' not in str(info.value)
  return str(info.value)


@LAYOUTS
def test_values_are_those_of_torch_load(tmp_path, layout):
  path = save(state_dict(), tmp_path / 'm.bin', layout)
  expected = torch.load(path, weights_only=True)
  read = read_torch(path)
  assert list(read) == list(expected)
  for name, tensor in expected.items():
    array = to_numpy(tensor)
    assert (read[name].shape, read[name].dtype) == (array.shape, array.dtype), name
    assert equal_bits(read[name][...], array), name
    assert read[name][...].flags.c_contiguous, name
    for index in (0, -1, slice(1, 3), slice(None, None, -1), (slice(0, 2), 1)) if array.ndim > 1 and array.size else ():
      assert equal_bits(read[name][index], np.asarray(array[index])), (name, index)


@LAYOUTS
def test_subtree(tmp_path, layout):
  path = save({'model': {'w': torch.arange(3)}, 'steps': 7, 'optimizer': {}}, tmp_path / 'vq.pt', layout)
  np.testing.assert_array_equal(read_torch(path, 'model')['w'][...], [0, 1, 2])
  assert "expected a dict with the key 'ema', found a dict with the keys 'model', 'steps'" in message(
    read_torch, path, 'ema'
  )
  assert "expected a dict of tensors, found a dict with the keys 'w' at key 'model'" in message(read_torch, path)
  assert "under 'steps': expected a dict of tensors, found int" in message(read_torch, path, 'steps')
  assert "under 'optimizer': expected a dict of tensors, found an empty dict" in message(read_torch, path, 'optimizer')


@LAYOUTS
def test_arrays_are_the_callers(tmp_path, layout):
  array = read_torch(save({'w': torch.zeros(4)}, tmp_path / 'm.bin', layout))['w']
  array[...][:] = 1
  np.testing.assert_array_equal(array[...], np.zeros(4))


def test_shards_of_bin_files(tmp_path):
  save({'a': torch.arange(3), 'unnamed': torch.zeros(1)}, tmp_path / 'pytorch_model-00001-of-00002.bin')
  save({'b': torch.arange(4)}, tmp_path / 'pytorch_model-00002-of-00002.bin')
  index = tmp_path / 'pytorch_model.bin.index.json'
  weight_map = '"b": "pytorch_model-00002-of-00002.bin", "a": "pytorch_model-00001-of-00002.bin"'
  index.write_text(f'{{"metadata": {{"total_size": 56}}, "weight_map": {{{weight_map}}}}}')
  read = read_sharded(str(index), read_torch)
  assert list(read) == ['b', 'a']
  np.testing.assert_array_equal(read['b'][1:3], [1, 2])


def test_converting_holds_one_slice_in_memory(tmp_path, monkeypatch):
  monkeypatch.setattr(safetensors_files, '_SLICE_BYTES', 2**20)
  state = {name: torch.randn(4096, 512).to(torch.bfloat16) for name in ('u', 'v', 'w')}  # 4 MiB each
  path = save(state, tmp_path / 'm.bin')
  tracemalloc.start()
  try:
    write_safetensors(str(tmp_path), 'a', read_torch(path), 2**23, lambda n: None)
    write_safetensors(
      str(tmp_path),
      'b',
      read_sharded(str(tmp_path / 'a.safetensors.index.json'), read_safetensors),
      2**30,
      lambda n: None,
    )
    assert tracemalloc.get_traced_memory()[1] < 2 * 2**20
  finally:
    tracemalloc.stop()
  converted = read_safetensors(str(tmp_path / 'b.safetensors'))
  assert all(equal_bits(converted[name][...], to_numpy(tensor)) for name, tensor in state.items())


# Bad input


class Evil:
  def __init__(self, path: str):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (self.path,)


@LAYOUTS
def test_code_is_not_executed(tmp_path, layout):
  canary = tmp_path / 'canary'
  path = save({'w': torch.zeros(3), 'x': Evil(str(canary))}, tmp_path / 'evil.bin', layout)
  text = message(read_torch, path)
  assert text == f'{path}: contains code other than tensors (posix.mkdir), which was NOT executed'
  assert not canary.exists()
  torch.load(path, weights_only=False)  # The proof that it would have run.
  assert canary.exists()


def test_plain_pickle_is_not_executed(tmp_path, recwarn):
  path = tmp_path / 'evil.bin'
  path.write_bytes(pickle.dumps(Evil(str(tmp_path / 'canary'))))
  assert 'NOT executed' in message(read_torch, str(path))
  assert not (tmp_path / 'canary').exists()
  assert not recwarn


@pytest.mark.parametrize(
  ('value', 'said'),
  [
    (lambda: [torch.zeros(3)], 'expected a dict of tensors, found list'),
    (lambda: torch.zeros(3), 'expected a dict of tensors, found Tensor'),
    (lambda: {}, 'expected a dict of tensors, found an empty dict'),
    (lambda: {3: torch.zeros(3)}, 'found a key that is int'),
    (lambda: {'w': torch.zeros(3), 'epoch': 4}, "found int at key 'epoch'"),
    (lambda: {'w': torch.zeros(3).to(torch.float8_e5m2)}, "'w': torch.strided torch.float8_e5m2 is not supported"),
    (lambda: {'w': torch.zeros(3, dtype=torch.complex64)}, "'w': torch.strided torch.complex64 is not supported"),
    (lambda: {'w': torch.eye(3).to_sparse()}, "'w': torch.sparse_coo torch.float32 is not supported"),
    (lambda: {'w': torch.zeros(3, device='meta')}, "'w': expected values, found none (device meta)"),
  ],
)
def test_other_contents(tmp_path, value, said):
  path = save(value(), tmp_path / 'm.bin')
  text = message(read_torch, path)
  assert text.startswith(path)
  assert said in text


def test_missing_empty_foreign_and_truncated_files(tmp_path):
  path = tmp_path / 'm.bin'
  assert 'no such file' in message(read_torch, str(path))
  path.write_bytes(b'')
  assert 'empty' in message(read_torch, str(path))
  path.write_bytes(b'<html>404</html>')
  assert 'not a PyTorch file' in message(read_torch, str(path))
  for layout in ('zip', 'legacy'):
    save({'w': torch.zeros(10**4)}, path, layout)
    path.write_bytes(path.read_bytes()[:-1000])
    assert 'damaged' in message(read_torch, str(path))


def rewritten(path: str, change) -> str:
  """The same archive with `change(name, bytes) -> bytes` applied to its records."""
  with zipfile.ZipFile(path) as old, zipfile.ZipFile(f'{path}.changed', 'w') as new:
    for info in old.infolist():
      new.writestr(info.filename, change(info.filename, old.read(info)))
  return f'{path}.changed'


def test_tensor_that_reaches_beyond_its_storage(tmp_path):
  path = save({'w': torch.zeros(8)}, tmp_path / 'm.bin')
  # The shape stands in the pickle as (8,): K\x08 is the integer, \x85 makes the tuple.
  longer = rewritten(path, lambda name, data: data.replace(b'K\x08\x85', b'K\x09\x85'))
  assert longer in message(read_torch, longer)


def test_record_longer_than_the_file(tmp_path):
  # Whoever believes the directory would set aside 2 GiB for the pickle.
  path = tmp_path / 'm.bin'
  save({'w': torch.zeros(8)}, path)
  archive = bytearray(path.read_bytes())
  sizes = archive.index(b'PK\x01\x02') + 20  # Of the first record in the directory, data.pkl: stored, real.
  archive[sizes : sizes + 8] = 2 * (2**31 - 1).to_bytes(4, 'little')
  path.write_bytes(archive)
  assert 'damaged' in message(read_torch, str(path))


def test_nested_tensor(tmp_path):
  with warnings.catch_warnings(action='ignore'):  # A prototype, says torch.
    value = {'w': torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])}
  for layout in ('zip', 'legacy'):
    assert 'dense tensor' in message(read_torch, save(value, tmp_path / layout, layout))


@pytest.mark.parametrize('layout', ['zip', 'legacy'])
def test_damaged_files_give_input_errors_only(tmp_path, layout):
  path = tmp_path / 'damaged.bin'
  save(state_dict(), path, layout)
  whole = path.read_bytes()
  rng = random.Random(0)
  outcomes = []
  for _ in range(300):
    damaged = bytearray(whole if rng.random() < 0.9 else whole[: rng.randrange(1, len(whole))])
    for _ in range(rng.choice([1, 1, 3])):
      damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    path.write_bytes(damaged)
    try:
      for array in read_torch(str(path)).values():
        array[...]
      outcomes.append('read')
    except InputError:
      outcomes.append('refused')
  assert {'read', 'refused'} == set(outcomes)


def test_without_torch(tmp_path, monkeypatch):
  path = save({'w': torch.zeros(3)}, tmp_path / 'm.bin')
  with monkeypatch.context() as patch:
    patch.setitem(sys.modules, 'torch', None)
    assert message(read_torch, path) == f'{path}: reading it needs PyTorch: pip install "janus_jax[torch]"'


def test_old_torch(tmp_path, monkeypatch):
  path = save({'w': torch.zeros(3)}, tmp_path / 'm.bin')
  monkeypatch.setattr(torch, '__version__', torch.torch_version.TorchVersion('2.9.1+cu128'))
  assert 'needs PyTorch 2.10 or newer, found 2.9.1+cu128' in message(read_torch, path)
