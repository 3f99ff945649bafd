"""Safetensors files, read lazily and written one tensor at a time, and the index that joins shards.

The official library reads, and checks what it opens. It writes whole files from arrays in memory only, so that writing
is done here: 8 bytes (the header's length, little-endian), a JSON header, then the tensors' bytes back to back. The
header maps each name to `dtype`, `shape` and `data_offsets` (begin and end, counted from the header's end). Format:
README of huggingface/safetensors.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from janus_jax.conversion.config_section import read_json
from janus_jax.conversion.lazy import Index, LazyArray, index_tuple, row_slices
from janus_jax.data.pointers import check_files
from janus_jax.errors import InputError, one_line

_SLICE_BYTES = 256 * 2**20  # Upper bound of what one write holds in memory (one row, where a row is larger).

_DTYPES = {
  'BOOL': np.dtype(bool),
  'BF16': np.dtype(ml_dtypes.bfloat16),
  **{f'U{bits}': np.dtype(f'uint{bits}') for bits in (8, 16, 32, 64)},
  **{f'I{bits}': np.dtype(f'int{bits}') for bits in (8, 16, 32, 64)},
  **{f'F{bits}': np.dtype(f'float{bits}') for bits in (16, 32, 64)},
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def read_safetensors(path: str) -> dict[str, LazyArray]:
  """Opens one .safetensors file; only its header is read now.

  Returns:
    name -> array, in the order in which they lie in the file.

  Raises:
    InputError: no such file, or one that the library refuses; a dtype that numpy has no name for. Reading an array
      raises it when the file has been cut since.
  """
  check_is_file(path)
  with _opened(path) as file:
    return {name: _array(path, name, file.get_slice(name)) for name in file.offset_keys()}


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
  try:
    with safetensors.safe_open(path, 'numpy') as file:
      yield file
  except (safetensors.SafetensorError, OSError) as error:
    raise InputError(f'{path}: not a safetensors file, or damaged: {one_line(error)}') from error


def _array(path: str, name: str, header: Any) -> LazyArray:
  """An array in a file, which is opened anew for every read, so that none stays open."""
  origin, dtype = f'{path}: {name}', _DTYPES.get(header.get_dtype())
  if dtype is None:
    known = ', '.join(_DTYPES)
    raise InputError(f'{path}: tensor {name!r}: dtype {header.get_dtype()} is not supported: expected one of {known}')

  def read(index: Index) -> np.ndarray:
    with _opened(path) as file:
      parts = index_tuple(index)
      # With an index of plain slices the library reads only what they span.
      plain = all(isinstance(part, slice) and part.step in (None, 1) for part in parts)
      values = file.get_slice(name)[parts] if plain and parts else np.array(file.get_tensor(name)[index])
    return np.ascontiguousarray(values).reshape(values.shape)

  return LazyArray(tuple(header.get_shape()), dtype, read, origin)


def read_sharded(index_path: str, read_file: Callable[[str], dict[str, LazyArray]]) -> dict[str, LazyArray]:
  """Opens the shards that an index (`model.safetensors.index.json`, `pytorch_model.bin.index.json`) names.

  Args:
    index_path: JSON with `weight_map`: tensor name -> file name in the index's folder.
    read_file: the reader of one shard (`read_safetensors`, `read_torch`).

  Returns:
    name -> array, in the order of `weight_map`. Tensors of a shard that the index does not name are left out.

  Raises:
    InputError: not such an index, a shard that is missing or lies outside the folder, a tensor its shard lacks.
  """
  check_is_file(index_path)
  weight_map = read_json(index_path).get('weight_map')
  if not isinstance(weight_map, dict) or not weight_map:
    raise InputError(f'{index_path}: expected a "weight_map" from tensor names to file names')
  for name, shard in weight_map.items():
    if not isinstance(shard, str) or not _is_plain_file_name(shard):
      raise InputError(f'{index_path}: tensor {name!r}: expected the name of a file beside the index, found {shard!r}')
  folder, index_name = os.path.split(index_path)
  shards, tensors = {}, {}
  for name, shard in weight_map.items():
    path = os.path.join(folder, shard)
    if shard not in shards:
      if not os.path.isfile(path):
        raise InputError(f'{index_path}: names the shard {shard!r}, which is not in its folder')
      shards[shard] = read_file(path)
    if name not in shards[shard]:
      raise InputError(f'{path}: lacks tensor {name!r}, which {index_name} names')
    tensors[name] = shards[shard][name]
  return tensors


def write_safetensors(
  directory: str, stem: str, tensors: Mapping[str, LazyArray], max_shard_bytes: int, progress: Callable[[int], None]
) -> None:
  """Writes `<stem>.safetensors`, or `<stem>-00001-of-0000N.safetensors` ... with `<stem>.safetensors.index.json`.

  The layout is that of `transformers.PreTrainedModel.save_pretrained`, and the same tensors in the same order give the
  same bytes. Tensors are read and written in leading slices, so memory holds one slice.

  Args:
    directory: an existing folder; files of the same name are replaced. On an error the files stay behind unfinished.
    stem: 'model' for transformers to find it.
    tensors: name -> array; shards are filled in this order.
    max_shard_bytes: of tensor data per file; a tensor larger than that gets a file of its own.
    progress: called with the number of bytes after every write; they add up to the sum of `nbytes`.

  Raises:
    InputError: a dtype that has no safetensors name; nothing has been written then.
    OSError: the disk is full, the folder is not writable.
  """
  for name, tensor in tensors.items():
    if tensor.dtype not in _DTYPE_NAMES:
      raise InputError(f'{tensor.origin or name}: cannot be written as safetensors, its dtype is {tensor.dtype}')
  shards = _split_into_shards(tensors, max_shard_bytes)
  if len(shards) == 1:
    _write_file(os.path.join(directory, f'{stem}.safetensors'), shards[0], progress)
    return
  weight_map = {}
  for number, shard in enumerate(shards, start=1):
    file_name = f'{stem}-{number:05d}-of-{len(shards):05d}.safetensors'
    _write_file(os.path.join(directory, file_name), shard, progress)
    weight_map |= dict.fromkeys(shard, file_name)
  index = {'metadata': {'total_size': sum(t.nbytes for t in tensors.values())}, 'weight_map': weight_map}
  with open(os.path.join(directory, f'{stem}.safetensors.index.json'), 'w', encoding='utf-8') as file:
    file.write(json.dumps(index, indent=2, sort_keys=True) + '\n')


def check_is_file(path: str) -> None:
  """Raises InputError unless `path` is a regular file with something in it, and no pointer of Git LFS."""
  if not os.path.isfile(path):
    raise InputError(f'{path}: no such file{": it is a directory" if os.path.isdir(path) else ""}')
  if not os.path.getsize(path):
    raise InputError(f'{path}: the file is empty')
  check_files([path])


def _is_plain_file_name(name: str) -> bool:
  """No path, so that an index cannot reach outside its folder; printable, so that the system accepts it."""
  return name.isprintable() and name not in ('', '.', '..') and not any(c in name for c in '/\\:')


def _split_into_shards(tensors: Mapping[str, LazyArray], max_shard_bytes: int) -> list[dict[str, LazyArray]]:
  shards: list[dict[str, LazyArray]] = [{}]
  size = 0
  for name, tensor in tensors.items():
    if shards[-1] and size + tensor.nbytes > max_shard_bytes:
      shards.append({})
      size = 0
    shards[-1][name] = tensor
    size += tensor.nbytes
  return shards


def _write_file(path: str, tensors: dict[str, LazyArray], progress: Callable[[int], None]) -> None:
  # Wider dtypes first, else in the given order: every tensor is then aligned to its dtype, as torch's readers need it.
  ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
  header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}  # transformers refuses a file without it.
  position = 0
  for name, tensor in ordered:
    offsets = [position, position + tensor.nbytes]
    header[name] = {'dtype': _DTYPE_NAMES[tensor.dtype], 'shape': list(tensor.shape), 'data_offsets': offsets}
    position += tensor.nbytes
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)
  with open(path, 'wb') as file:
    file.write(len(text).to_bytes(8, 'little') + text)
    for name, tensor in ordered:
      rows = _SLICE_BYTES * tensor.shape[0] // max(1, tensor.nbytes) if tensor.shape else 1
      for index in row_slices(tensor.shape, max(1, rows)):
        progress(file.write(_slice_bytes(name, tensor, index)))


def _slice_bytes(name: str, tensor: LazyArray, index: Index) -> np.ndarray:
  """The slice's bytes, row-major. Checked, because the header has already told its shape and dtype."""
  values, shape = np.asarray(tensor[index]), np.broadcast_to(0, tensor.shape)[index].shape
  if values.shape != shape or values.dtype != tensor.dtype:
    raise ValueError(f'{name}: expected {tensor.dtype} of shape {shape}, read {values.dtype} of shape {values.shape}')
  return np.ascontiguousarray(values).reshape(-1).view(np.uint8)
