"""PyTorch's own checkpoint files (.bin, .pt, .pth), read lazily and without executing what they contain.

A file that `torch.save` wrote since 1.6 is mapped: what is read of it is read from the disk then. Older files are one
pickle stream and are loaded whole.
"""

import pickle
import re
import warnings
from typing import Any

import ml_dtypes
import numpy as np

from janus_jax.conversion.lazy import LazyArray
from janus_jax.conversion.safetensors_files import check_is_file
from janus_jax.errors import InputError

# Before, `weights_only=True` could be made to run code (CVE-2025-32434, CVE-2026-24747).
_MIN_TORCH = (2, 10)
_DAMAGED = 'damaged, not a PyTorch file'

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
  try:
    import torch
  except ImportError as error:
    raise InputError(f'{path}: reading it needs PyTorch: pip install "janus_jax[torch]"') from error
  if torch.__version__ < _MIN_TORCH:
    least = '.'.join(map(str, _MIN_TORCH))
    raise InputError(f'{path}: reading it safely needs PyTorch {least} or newer, found {torch.__version__}')
  check_is_file(path)
  state = _state_dict(_load(torch, path), path, subtree, torch.Tensor)
  return {name: _array(torch, path, name, tensor) for name, tensor in state.items()}


def _load(torch: Any, path: str) -> Any:
  with open(path, 'rb') as file:
    is_zip = file.read(4) == b'PK\x03\x04'
  try:
    with warnings.catch_warnings(action='ignore'):
      return torch.load(path, map_location='cpu', weights_only=True, mmap=is_zip)
  except pickle.UnpicklingError as error:
    # torch's own advice is many lines long and includes how to load the file unsafely.
    code = re.search(r'GLOBAL ([\w.]+)', str(error))
    doubt, name = ('', f' ({code[1]})') if code else (f'{_DAMAGED}, or ', '')
    raise InputError(f'{path}: {doubt}contains code other than tensors{name}, which was NOT executed') from error
  except MemoryError:
    raise
  except Exception as error:  # Damage leads torch into errors of a dozen classes; it has none of its own for that.
    found = f'{type(error).__name__} while reading it'
    raise InputError(f'{path}: {_DAMAGED}, or holds other than dense tensors ({found})') from error


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


def _array(torch: Any, path: str, name: str, tensor: Any) -> LazyArray:
  dtype = _DTYPES.get(str(tensor.dtype))
  if dtype is None or str(tensor.layout) != 'torch.strided' or tensor.is_nested:
    found = f'{tensor.layout} {tensor.dtype}'
    raise InputError(
      f'{path}: tensor {name!r}: {found} is not supported, expected a dense tensor of {", ".join(_DTYPES)}'
    )
  if tensor.is_meta:
    raise InputError(f'{path}: tensor {name!r}: expected values, found none (device meta)')
  # numpy cannot take over a bfloat16 tensor, but one of 16-bit integers.
  bits = tensor.detach().view(torch.int16) if dtype == ml_dtypes.bfloat16 else tensor.detach()
  values = bits.numpy().view(dtype)
  return LazyArray(values.shape, dtype, lambda index: np.array(values[index], order='C'), f'{path}: {name}')
