"""Safetensors files, read lazily and written one tensor at a time, and the index that joins shards.

A safetensors file is 8 bytes (the header's length, little-endian), a JSON header, then the tensors' bytes back to back.
The header maps each name to `dtype`, `shape` and `data_offsets` (begin and end, counted from the header's end).
Format and limits: README and `safetensors/src/tensor.rs` of huggingface/safetensors.

Files are read with plain reads, not mapped: pages of a mapping count as the process's memory, and an I/O error
on one kills the process instead of raising.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from janus_jax.conversion.lazy import Index, LazyArray
from janus_jax.data.pointers import check_files
from janus_jax.errors import InputError

_MAX_HEADER_BYTES = 100_000_000  # The official library's limit.
_MAX_AXES = 32  # More than any numpy supports would crash it; real tensors have at most 5.
_SLICE_BYTES = 256 * 2**20  # Upper bound of what one write holds in memory (one row, where a row is larger).

_DTYPES = {
  'BOOL': np.dtype(np.bool_),
  'U8': np.dtype(np.uint8),
  'I8': np.dtype(np.int8),
  'U16': np.dtype(np.uint16),
  'I16': np.dtype(np.int16),
  'F16': np.dtype(np.float16),
  'BF16': np.dtype(ml_dtypes.bfloat16),
  'U32': np.dtype(np.uint32),
  'I32': np.dtype(np.int32),
  'F32': np.dtype(np.float32),
  'U64': np.dtype(np.uint64),
  'I64': np.dtype(np.int64),
  'F64': np.dtype(np.float64),
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def read_safetensors(path: str) -> dict[str, LazyArray]:
  """Opens one .safetensors file; only its header is read now.

  Returns:
    name -> array, in the header's order.

  Raises:
    InputError: no such file, a header that is not one of safetensors, or tensors that do not fill the file exactly.
      Reading an array raises it when the file has been cut since.
  """
  header, data_start, data_size = _read_header(path)
  spans = {name: _check_entry(f'{path}: tensor {name!r}', entry) for name, entry in header.items()}
  _check_tiling(path, spans, data_size)
  arrays = {}
  for name, entry in header.items():
    dtype, shape = _DTYPES[entry['dtype']], tuple(entry['shape'])
    arrays[name] = stored_array(path, data_start + spans[name][0], shape, _row_major(shape, dtype), dtype, name)
  return arrays


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
  with open(index_path, 'rb') as file:
    index = _parse_json(file.read(), index_path)
  weight_map = index.get('weight_map') if isinstance(index, dict) else None
  if not isinstance(weight_map, dict) or not weight_map:
    raise InputError(f'{index_path}: expected a "weight_map" from tensor names to file names')
  for name, shard in weight_map.items():
    if not isinstance(shard, str) or not _is_plain_file_name(shard):
      raise InputError(f'{index_path}: tensor {name!r}: expected the name of a file beside the index, found {shard!r}')
  folder = os.path.dirname(index_path)
  shards = {}
  for shard in dict.fromkeys(weight_map.values()):
    path = os.path.join(folder, shard)
    if not os.path.isfile(path):
      raise InputError(f'{index_path}: names the shard {shard!r}, which is not in its folder')
    shards[shard] = read_file(path)
  for name, shard in weight_map.items():
    if name not in shards[shard]:
      raise InputError(
        f'{os.path.join(folder, shard)}: lacks tensor {name!r}, which {os.path.basename(index_path)} names'
      )
  return {name: shards[shard][name] for name, shard in weight_map.items()}


def write_safetensors(
  directory: str,
  stem: str,
  tensors: Mapping[str, LazyArray],
  max_shard_bytes: int,
  progress: Callable[[int], None],
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


def stored_array(
  path: str, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype, name: str
) -> LazyArray:
  """An array that lies in a file, the bytes of its rows in reach of plain reads.

  An index whose first part is an integer or a slice reads only the rows it spans; any other reads the whole array.

  Args:
    path: the file; opened anew for every read, so none stays open.
    offset: of the first element, in bytes.
    shape: of the array.
    strides: distance of neighbours along each axis, in bytes, none negative.
    dtype: of the elements.
    name: of the tensor, for messages.
  """
  origin = f'{path}: {name}'

  def read(index: Index) -> np.ndarray:
    first_byte, rows_shape = offset, shape
    if shape:
      rows, index = _leading_rows(index, shape[0])
      first_byte, rows_shape = offset + rows.start * strides[0], (len(rows), *shape[1:])
    span = 0 if 0 in rows_shape else dtype.itemsize + sum((n - 1) * stride for n, stride in zip(rows_shape, strides))
    rows = np.ndarray(rows_shape, dtype, _read_bytes(path, first_byte, span, origin), strides=strides)
    part = np.asarray(rows[index])
    # A part that fills the buffer is handed out as it is; a smaller one is copied, so that the buffer can be freed.
    return part if part.flags.c_contiguous and part.nbytes == span else np.array(part, order='C')

  return LazyArray(shape, dtype, read, origin)


def check_is_file(path: str) -> None:
  """Raises InputError unless `path` is a regular file with something in it, and no pointer of Git LFS."""
  if not os.path.isfile(path):
    raise InputError(f'{path}: no such file{": it is a directory" if os.path.isdir(path) else ""}')
  if not os.path.getsize(path):
    raise InputError(f'{path}: the file is empty')
  check_files([path])


def _leading_rows(index: Index, length: int) -> tuple[range, Index]:
  """Which rows of the first axis `index` touches, and the index that picks the same elements out of only those."""
  first, rest = (index[0], index[1:]) if isinstance(index, tuple) and index else (index, ())
  if isinstance(first, slice):
    picked = range(length)[first]
    rows = range(min(picked[0], picked[-1]), max(picked[0], picked[-1]) + 1) if picked else range(0)
    return rows, (slice(None, None, picked.step), *rest)
  if isinstance(first, int | np.integer) and not isinstance(first, bool):
    row = range(length)[first]
    return range(row, row + 1), (0, *rest)
  return range(length), index


def _read_bytes(path: str, offset: int, size: int, origin: str) -> np.ndarray:
  buffer = np.empty(size, np.uint8)
  filled = 0
  with open(path, 'rb', buffering=0) as file:
    file.seek(offset)
    while filled < size:  # One read returns at most 2 GiB on Linux.
      count = file.readinto(memoryview(buffer)[filled:])
      if not count:
        raise InputError(f'{origin}: truncated, the file ends {size - filled} bytes before the tensor does')
      filled += count
  return buffer


def _row_major(shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, ...]:
  return tuple(dtype.itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _read_header(path: str) -> tuple[dict[str, Any], int, int]:
  """Returns the entries by tensor name (unchecked), where the data starts, and how many bytes of data the file has."""
  check_is_file(path)
  with open(path, 'rb') as file:
    file_size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), 'little')
    if length > _MAX_HEADER_BYTES or 8 + length > file_size:
      raise InputError(
        f'{path}: not a safetensors file, or truncated: it has {file_size} bytes and claims a header of {length}'
      )
    header = _parse_json(file.read(length), f'{path}: safetensors header')
  if not isinstance(header, dict):
    raise InputError(f'{path}: safetensors header: expected a JSON object')
  header.pop('__metadata__', None)
  return header, 8 + length, file_size - 8 - length


def _parse_json(text: bytes, where: str) -> Any:
  try:
    return json.loads(text.decode('utf-8'), object_pairs_hook=_unique_keys)
  except (ValueError, RecursionError) as error:  # ValueError covers bad UTF-8, bad JSON and repeated keys.
    raise InputError(f'{where}: not valid JSON ({error})') from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """JSON lets a key come twice; readers then disagree on which tensor is meant, so the format forbids it."""
  result = dict(pairs)
  if len(result) != len(pairs):
    raise ValueError('an object has the same key twice')
  return result


def _check_entry(where: str, entry: Any) -> tuple[int, int]:
  """Returns the entry's (begin, end) after checking that it is what the format asks and fits its dtype and shape."""
  if not isinstance(entry, dict) or entry.keys() != {'dtype', 'shape', 'data_offsets'}:
    raise InputError(f'{where}: expected an object with dtype, shape and data_offsets')
  dtype, shape, offsets = entry['dtype'], entry['shape'], entry['data_offsets']
  if not isinstance(dtype, str) or dtype not in _DTYPES:
    raise InputError(f'{where}: dtype {dtype!r} is not supported, expected one of {", ".join(_DTYPES)}')
  if not _are_sizes(shape) or len(shape) > _MAX_AXES:
    raise InputError(f'{where}: shape is not a list of at most {_MAX_AXES} sizes')
  if not _are_sizes(offsets) or len(offsets) != 2:
    raise InputError(f'{where}: data_offsets is not a pair of byte counts')
  itemsize = _DTYPES[dtype].itemsize
  if math.prod(max(n, 1) for n in shape) * itemsize >= 2**63:  # numpy refuses these, even where one size is 0.
    raise InputError(f'{where}: shape {shape} is too large')
  expected = math.prod(shape) * itemsize
  if offsets[1] - offsets[0] != expected:
    raise InputError(f'{where}: {dtype} of shape {shape} needs {expected} bytes, data_offsets are {offsets}')
  return offsets[0], offsets[1]


def _are_sizes(value: Any) -> bool:
  return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _check_tiling(path: str, spans: dict[str, tuple[int, int]], data_size: int) -> None:
  """The tensors' bytes must follow each other without gap or overlap and end where the file ends."""
  position = 0
  for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
    if end > data_size:
      raise InputError(f'{path}: truncated: tensor {name!r} ends at byte {end} of the data, the file has {data_size}')
    if begin != position:
      fault = 'overlaps the tensor before it' if begin < position else 'leaves a gap before it'
      raise InputError(f'{path}: tensor {name!r} {fault}: it begins at byte {begin} of the data, expected {position}')
    position = end
  if position != data_size:
    raise InputError(f'{path}: {data_size - position} bytes after the last tensor belong to none')


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
      for index, shape in _slices(tensor):
        progress(file.write(_read_slice(name, tensor, index, shape)))


def _slices(tensor: LazyArray) -> Iterator[tuple[Index, tuple[int, ...]]]:
  """Index and shape of the tensor's rows in order, as many at a time as fit `_SLICE_BYTES` (at least one)."""
  if tensor.nbytes and not tensor.shape:
    yield (), ()
  elif tensor.nbytes:
    length = tensor.shape[0]
    rows = max(1, _SLICE_BYTES * length // tensor.nbytes)
    for start in range(0, length, rows):
      stop = min(start + rows, length)
      yield slice(start, stop), (stop - start, *tensor.shape[1:])


def _read_slice(name: str, tensor: LazyArray, index: Index, shape: tuple[int, ...]) -> np.ndarray:
  """The slice's bytes, row-major. Checked, because the header has already told its shape and dtype."""
  values = np.asarray(tensor[index])
  if values.shape != shape or values.dtype != tensor.dtype:
    raise ValueError(f'{name}: expected {tensor.dtype} of shape {shape}, read {values.dtype} of shape {values.shape}')
  return np.ascontiguousarray(values).reshape(-1).view(np.uint8)
