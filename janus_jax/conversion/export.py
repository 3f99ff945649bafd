"""Makes an export appear whole under its final name, or not at all."""

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from janus_jax.conversion.buckets import is_url
from janus_jax.conversion.checkpoint import Checkpoint, export_bytes
from janus_jax.conversion.lazy import LazyArray
from janus_jax.conversion.mapping import Format
from janus_jax.conversion.recognition import has_config
from janus_jax.errors import InputError

DTYPES = {'float32': np.dtype(np.float32), 'float16': np.dtype(np.float16), 'bfloat16': np.dtype(ml_dtypes.bfloat16)}


def _cast(array: LazyArray, dtype: np.dtype) -> LazyArray:
  return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array


def cast_params(checkpoint: Checkpoint, dtype: str | None) -> Checkpoint:
  """The same checkpoint with every floating-point tensor in `dtype`; None keeps what is stored."""
  if dtype is None:
    return checkpoint
  if dtype not in DTYPES:
    raise InputError(f'dtype is {dtype!r}: expected one of {", ".join(DTYPES)}')

  def cast(arrays: Mapping[str, LazyArray]) -> dict[str, LazyArray]:
    return {name: _cast(array, DTYPES[dtype]) for name, array in arrays.items()}

  params, unused, adapter = cast(checkpoint.params), cast(checkpoint.unused), checkpoint.adapter
  if adapter is not None:
    adapter = dataclasses.replace(adapter, factors=cast(adapter.factors), full=cast(adapter.full))
  return dataclasses.replace(checkpoint, params=params, unused=unused, adapter=adapter)


def _check_output(output: str, overwrite: bool) -> None:
  if is_url(output):
    raise InputError(f'{output}: expected a local directory, which can be copied to a bucket afterwards')
  parent = os.path.dirname(os.path.abspath(output))
  if os.path.lexists(output):
    if not overwrite:
      raise InputError(f'{output}: exists already; --overwrite replaces it')
    if not os.path.isdir(output) or os.path.islink(output):
      raise InputError(f'{output}: not a directory, so --overwrite will not replace it')
    if os.listdir(output) and not has_config(output):
      raise InputError(f'{output}: not a checkpoint, so --overwrite will not replace it')
  if os.path.lexists(parent) and not os.path.isdir(parent):
    raise InputError(f'{parent}: not a directory')


@contextlib.contextmanager
def published(output: str, overwrite: bool, needed: int) -> Iterator[str]:
  """A temporary directory beside `output` that takes its name when the block ends well and vanishes otherwise.

  Args:
    output: final directory; its parents are made.
    overwrite: whether an existing checkpoint of that name is replaced (it stays until the new one is complete).
    needed: bytes that will be written, checked against the free space first.

  Raises:
    InputError: the output exists, its parent cannot be written to, or there is no room.
  """
  _check_output(output, overwrite)
  output = os.path.abspath(output)
  parent, name = os.path.split(output)
  try:
    os.makedirs(parent, exist_ok=True)
    temporary = tempfile.mkdtemp(prefix=f'.{name}.', suffix='.partial', dir=parent)
  except OSError as error:
    raise InputError(f'{parent}: cannot be written to ({error.strerror})') from None
  try:
    free = shutil.disk_usage(parent).free
    if free < needed:
      raise InputError(f'{parent}: {needed / 1e6:,.0f} MB needed, {free / 1e6:,.0f} MB free')
    os.chmod(temporary, 0o755)  # mkdtemp's 0700 is for secrets.
    yield temporary
    if os.path.lexists(output):
      replaced = tempfile.mkdtemp(prefix=f'.{name}.', suffix='.replaced', dir=parent)
      os.rename(output, os.path.join(replaced, name))
      os.rename(temporary, output)
      shutil.rmtree(replaced)
    else:
      os.rename(temporary, output)
  except BaseException:
    shutil.rmtree(temporary, ignore_errors=True)
    raise


@contextlib.contextmanager
def exporting(checkpoint: Checkpoint, output: str, format: Format, overwrite: bool) -> Iterator[str]:
  """`published` for a checkpoint: a directory for `write_checkpoint`; never one that the checkpoint reads from."""
  if os.path.realpath(output) in map(os.path.realpath, checkpoint.sources):
    raise InputError(f'{output}: is the input itself; choose another --output')
  with published(output, overwrite, export_bytes(checkpoint, format)) as directory:
    yield directory
