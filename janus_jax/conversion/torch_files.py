"""PyTorch's own checkpoint files (.bin, .pt, .pth), read lazily and without executing what they contain.

A file that `torch.save` wrote since 1.6 is a zip archive: a pickle of the structure, and each storage's bytes as an
uncompressed record. torch loads the structure alone (onto the `meta` device) and says where in the file each storage
begins; the bytes are then read with plain reads (a mapping's pages would count as the process's memory).
Older files are one pickle stream, have no directory, and are loaded whole.
"""

import os
import pickle
import re
import struct
import warnings
import zipfile
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from janus_jax.conversion.lazy import Index, LazyArray
from janus_jax.conversion.safetensors_files import check_is_file, stored_array
from janus_jax.errors import InputError

# Before 2.10, `weights_only=True` could be made to run code (CVE-2025-32434, CVE-2026-24747); before 2.11, loading onto
# the meta device does not say where a storage lies.
_MIN_TORCH = (2, 11)
_LOCAL_HEADER_BYTES = 30  # Of a zip record, before its name and extra field (PKWARE APPNOTE 4.3.7).

# What a damaged file leads torch into; it has no error class of its own for that.
_DAMAGE = (
  RuntimeError,
  ValueError,
  TypeError,
  LookupError,
  AttributeError,
  EOFError,
  AssertionError,
  struct.error,
)

_DTYPES = {
  f'torch.{name}': np.dtype(name)
  for name in ('bool', 'uint8', 'int8', 'int16', 'int32', 'int64', 'float16', 'float32', 'float64')
} | {'torch.bfloat16': np.dtype(ml_dtypes.bfloat16)}


def read_torch(path: str, subtree: str | None = None) -> dict[str, LazyArray]:
  """Opens a file that holds a state dict.

  Args:
    path: the file. One in the format before torch 1.6 is read into memory whole.
    subtree: the key under which the state dict lies, where it is not the whole file ('model' for LlamaGen's VQ).

  Returns:
    name -> array, in the file's order. Views (transposed, shared storage) come out with the values they had in torch.

  Raises:
    InputError: torch is missing or too old; the file is missing, damaged, holds code (never executed) or anything but a
      dict of dense tensors.
  """
  torch = _import_torch(path)
  check_is_file(path)
  with open(path, 'rb') as file:
    is_zip = file.read(4) == b'PK\x03\x04'
  records = _zip_records(path) if is_zip else {}
  state = _state_dict(_load(torch, path, 'meta' if is_zip else 'cpu'), path, subtree, torch.Tensor)
  if is_zip:
    return {name: _array_in_zip(path, name, tensor, records) for name, tensor in state.items()}
  return {name: _array_in_memory(torch, path, name, tensor) for name, tensor in state.items()}


def _import_torch(path: str) -> Any:
  try:
    import torch
  except ImportError as error:
    raise InputError(f'{path}: reading it needs PyTorch: pip install "janus_jax[torch]"') from error
  if torch.__version__ < _MIN_TORCH:
    least = '.'.join(map(str, _MIN_TORCH))
    raise InputError(f'{path}: reading it safely needs PyTorch {least} or newer, found {torch.__version__}')
  return torch


def _load(torch: Any, path: str, device: str) -> Any:
  try:
    with warnings.catch_warnings(action='ignore'):
      return torch.load(path, map_location=device, weights_only=True)
  except pickle.UnpicklingError as error:
    raise InputError(f'{path}: {_refusal(str(error))}') from error
  except _DAMAGE as error:
    found = f'{type(error).__name__} while reading it'
    raise InputError(f'{path}: damaged, not a PyTorch file, or holds other than dense tensors ({found})') from error


def _refusal(message: str) -> str:
  """Boils torch's advice, many lines that include how to load the file unsafely, down to what was found."""
  code = re.search(r'GLOBAL ([\w.]+)', message)
  if code:
    return f'contains code other than tensors ({code[1]}), which was NOT executed'
  return 'damaged, not a PyTorch file, or contains code other than tensors, which was NOT executed'


def _state_dict(loaded: Any, path: str, subtree: str | None, tensor_type: type) -> dict[str, Any]:
  where = path
  if subtree is not None:
    if not isinstance(loaded, dict) or subtree not in loaded:
      raise InputError(f'{path}: expected a dict with the key {subtree!r}, found {_describe(loaded)}')
    loaded, where = loaded[subtree], f'{path}: under {subtree!r}'
  if not isinstance(loaded, dict) or not loaded:
    raise InputError(f'{where}: expected a dict of tensors, found {_describe(loaded)}')
  for name, value in loaded.items():
    if not isinstance(name, str):
      raise InputError(f'{where}: expected a dict of tensors by name, found a key that is {type(name).__name__}')
    if not isinstance(value, tensor_type):
      raise InputError(f'{where}: expected a dict of tensors, found {_describe(value)} at key {name!r}')
  return loaded


def _describe(value: Any) -> str:
  if not isinstance(value, dict):
    return type(value).__name__
  keys = [repr(key) if isinstance(key, str) else type(key).__name__ for key in value]
  return f'a dict with the keys {", ".join(keys[:5])}{", ..." if len(keys) > 5 else ""}' if keys else 'an empty dict'


def _numpy_dtype(path: str, name: str, tensor: Any) -> np.dtype:
  dtype = _DTYPES.get(str(tensor.dtype))
  if dtype is None or str(tensor.layout) != 'torch.strided' or tensor.is_nested:
    kind = f'{tensor.layout} {tensor.dtype}'
    raise InputError(
      f'{path}: tensor {name!r}: {kind} is not supported, expected a dense tensor of {", ".join(_DTYPES)}'
    )
  return dtype


def _array_in_zip(path: str, name: str, tensor: Any, records: dict[int, int]) -> LazyArray:
  """The bytes of a meta tensor whose storage is one of the archive's records.

  torch computes where a storage begins from the order of its records, so the archive's directory has to confirm it.
  """
  dtype = _numpy_dtype(path, name, tensor)
  storage = tensor.untyped_storage()
  record = getattr(storage, '_checkpoint_offset', None)
  if tensor.numel() and records.get(record) != storage.nbytes():
    raise InputError(f'{path}: tensor {name!r}: no record of the archive holds its {storage.nbytes()} bytes')
  strides = tuple(stride * dtype.itemsize for stride in tensor.stride())
  begin = (record or 0) + tensor.storage_offset() * dtype.itemsize
  return stored_array(path, begin, tuple(tensor.shape), strides, dtype, name)


def _array_in_memory(torch: Any, path: str, name: str, tensor: Any) -> LazyArray:
  dtype = _numpy_dtype(path, name, tensor)
  # numpy cannot take over a bfloat16 tensor, but one of 16-bit integers.
  bits = tensor.detach().view(torch.int16) if dtype == ml_dtypes.bfloat16 else tensor.detach()
  values = bits.numpy().view(dtype)

  def read(index: Index) -> np.ndarray:
    return np.array(values[index], order='C')

  return LazyArray(values.shape, dtype, read, f'{path}: {name}')


def _zip_records(path: str) -> dict[int, int]:
  """Where in the file each record's bytes begin -> how many there are."""
  try:
    with zipfile.ZipFile(path) as archive, open(path, 'rb') as file:
      infos = archive.infolist()
      begins = [_record_begin(file, info) for info in infos]
      is_big_endian = any(_starts_with_big(archive, info) for info in infos if info.filename.endswith('/byteorder'))
  except (zipfile.BadZipFile, OSError, *_DAMAGE) as error:
    raise InputError(f'{path}: damaged or truncated zip archive ({type(error).__name__}: {error})') from error
  if is_big_endian:
    raise InputError(f'{path}: saved on a big-endian machine, which is not supported')
  for begin, info in zip(begins, infos):
    if info.compress_size != info.file_size:
      raise InputError(f'{path}: the record {info.filename!r} is compressed, which torch.save never does')
    if begin + info.file_size > os.path.getsize(path):
      raise InputError(f'{path}: damaged or truncated, the record {info.filename!r} ends after the file does')
  return {begin: info.file_size for begin, info in zip(begins, infos)}


def _record_begin(file: BinaryIO, info: zipfile.ZipInfo) -> int:
  file.seek(info.header_offset + _LOCAL_HEADER_BYTES - 4)
  name_length, extra_length = struct.unpack('<HH', file.read(4))
  return info.header_offset + _LOCAL_HEADER_BYTES + name_length + extra_length


def _starts_with_big(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bool:
  with archive.open(info) as record:
    return record.read(3) == b'big'
