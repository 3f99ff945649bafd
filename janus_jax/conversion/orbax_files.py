"""An Orbax parameter directory, written and read one slice at a time.

`ocp.save` wants every leaf in memory, and the largest leaf of Janus-Pro-7B alone is 2.7 GB. What Orbax lets others
change is the `TypeHandler`: of the two here, one writes a leaf (a `LazyArray`) slice by slice, the other returns a leaf
that reads slices when asked. The rest (tree metadata, OCDBT merge, commit) is Orbax's own code, so the result is an
ordinary checkpoint that `ocp.load(directory, abstract_tree)` restores onto any mesh. (Partial saves still want whole
leaves, and V1's registry of leaf handlers is not public.)

Chunks are not compressed: on normally distributed bf16 weights zstd (level 3, what Orbax uses) saves 22 % of the bytes
and costs 7.5 CPU seconds per GB: on two cores more time than writing takes.
"""

import collections
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath
from flax import traverse_util
from orbax.checkpoint import type_handlers
from orbax.checkpoint.type_handlers import ParamInfo

from janus_jax.conversion.buckets import ORBAX_PROTOCOL, absolute, is_url, reaching
from janus_jax.conversion.lazy import Index, LazyArray, index_tuple, row_slices
from janus_jax.data.pointers import check_files
from janus_jax.errors import InputError, one_line

SLICE_BYTES = 128 * 2**20  # Read from the source, and handed to the writer, at once; one row where a row is larger.
IN_FLIGHT_BYTES = 256 * 2**20  # Handed over but not yet on disk; the process peaks at about three times this.
CHUNK_BYTES = 16 * 2**20  # The unit of reading: small, so that a device of a mesh reads little beyond its own shard.


def write_orbax(directory: str, arrays: Mapping[str, LazyArray], progress: Callable[[int], None]) -> None:
  """Writes `arrays` as an Orbax checkpoint, in memory bounded by slices of them (0.7 GB beside the source's own).

  Args:
    directory: to create. A failed write leaves a temporary directory beside it, for the caller to remove.
    arrays: '/'-joined parameter path -> array; 'a/b' becomes `{'a': {'b': ...}}`.
    progress: called with the number of bytes that have just reached the disk.

  Raises:
    InputError: the directory exists.
    OSError: the disk is full (`errno.ENOSPC`), or another fault of the file system.
  """
  directory = os.path.abspath(directory)
  if os.path.exists(directory):
    raise InputError(f'{directory}: exists already, expected a new directory')
  tree = traverse_util.unflatten_dict(dict(arrays), sep='/')
  checkpointer = _checkpointer((LazyArray, _SliceWriter(progress)), (jax.Array, type_handlers.ArrayHandler()))
  try:
    checkpointer.save(directory, args=ocp.args.PyTreeSave(tree))
  except ValueError as error:
    # TensorStore reports a fault of the file system as a ValueError that carries the system's code as text.
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code is None or isinstance(error, InputError):
      raise
    raise OSError(int(code[1]), os.strerror(int(code[1])), directory) from error


def read_orbax(directory: str) -> dict[str, LazyArray]:
  """Lists the arrays of an Orbax checkpoint; values are read when asked for.

  Reads what `write_orbax`, `ocp.save` (V1: the tree is one level down) and `StandardCheckpointer` (V0) write.

  Args:
    directory: local, or gs://BUCKET/...

  Returns:
    '/'-joined parameter path -> array. Reading a slice costs about twice its size in memory, and raises `InputError`
    where data is missing or damaged.

  Raises:
    InputError: no Orbax checkpoint, several trees in one, a damaged one, or one of Git-LFS pointers.
  """
  if is_url(directory) and not directory.startswith(ORBAX_PROTOCOL):
    raise InputError(f'{directory}: expected a local copy or {ORBAX_PROTOCOL}BUCKET/..., all that Orbax reads from')
  check_files([os.path.join(folder, name) for folder, _, names in os.walk(directory) for name in names])
  with reaching(directory, 'an Orbax checkpoint that can be read'):
    path = _tree_directory(epath.Path(absolute(directory)))
  leaf_types = ((jax.Array, 'jax.Array'), (np.ndarray, 'np.ndarray'), (float, 'scalar'))
  checkpointer = _checkpointer(*((leaf_type, _LazyReader(typestr)) for leaf_type, typestr in leaf_types))
  try:
    tree = checkpointer.restore(path, args=ocp.args.PyTreeRestore())
  except (ValueError, KeyError, TypeError, AttributeError) as error:  # What metadata of the wrong form runs into.
    raise InputError(f'{path}: unreadable, expected a whole Orbax tree of arrays ({_fault(error)})') from error
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(keys, simple=True, separator='/'): leaf for keys, leaf in leaves}


class _SliceWriter(type_handlers.NumpyHandler):
  """Stores `LazyArray` leaves as Orbax stores numpy arrays, but slice by slice along the first axis."""

  def __init__(self, progress: Callable[[int], None]):
    super().__init__()
    self._progress = progress

  async def serialize(
    self, values: Sequence[LazyArray], infos: Sequence[ParamInfo], args: Sequence[Any] | None = None
  ) -> list[Any]:
    """Blocks until everything is written, so there are no futures to return: the source is read in step with it."""
    for info in infos:
      await info.await_path_creation()
    # All at once: OCDBT commits what is waiting together, which makes hundreds of small leaves cheap.
    opening = [_create_store(value, info) for value, info in zip(values, infos)]
    pending = collections.deque()
    in_flight = 0
    try:
      for value, store in zip(values, [future.result() for future in opening]):
        for index in row_slices(value.shape, _slice_rows(value.shape, value.dtype.itemsize)):
          part = value[index]
          in_flight += part.nbytes
          while pending and in_flight > IN_FLIGHT_BYTES:
            in_flight -= self._finish(*pending.popleft())
          pending.append((store[index].write(part, can_reference_source_data_indefinitely=True), part.nbytes))
      while pending:
        self._finish(*pending.popleft())
    finally:
      # After a failure: the caller is about to remove the directory, so nothing may still be writing into it.
      for future in (*opening, *(write for write, _ in pending)):
        future.exception()
    return []

  def _finish(self, write: tensorstore.WriteFutures, nbytes: int) -> int:
    write.result()
    self._progress(nbytes)
    return nbytes


class _LazyReader(type_handlers.ArrayHandler):
  """Restores the leaves that the metadata on disk calls `typestr` as `LazyArray`."""

  def __init__(self, typestr: str):
    super().__init__()
    self._typestr = typestr

  def typestr(self) -> str:
    return self._typestr

  async def deserialize(self, infos: Sequence[ParamInfo], args: Sequence[Any] | None = None) -> list[LazyArray]:
    # All are opened at once: what each waits for is a thread, or a bucket.
    opening = [_open_store(info) for info in infos]
    return [_lazy_array(info, store.result()) for info, store in zip(infos, opening)]


def _checkpointer(*handlers: tuple[type, type_handlers.TypeHandler]) -> ocp.Checkpointer:
  registry = type_handlers.create_type_handler_registry(*handlers)
  tree_handler = ocp.PyTreeCheckpointHandler(use_zarr3=True, use_compression=False, type_handler_registry=registry)
  return ocp.Checkpointer(tree_handler)


def _create_store(value: LazyArray, info: ParamInfo) -> tensorstore.Future:
  chunk = _chunk_shape(value.shape, value.dtype.itemsize)
  spec = type_handlers.get_json_tspec_write(
    info, use_ocdbt=True, global_shape=value.shape, local_shape=chunk, dtype=value.dtype, process_index=0
  )
  return tensorstore.open(tensorstore.Spec(spec), create=True, open=True, context=info.ts_context)


def _slice_rows(shape: tuple[int, ...], itemsize: int) -> int:
  """Rows of the first axis per slice: all, or a power of two, so that halves of it never straddle two slices."""
  row_bytes = max(1, math.prod(shape[1:]) * itemsize)
  rows = shape[0] if shape else 1
  if rows * row_bytes <= SLICE_BYTES:
    return max(1, rows)
  return 2 ** (max(1, SLICE_BYTES // row_bytes).bit_length() - 1)


def _chunk_shape(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
  """One slice, its longest axis halved (rounding up) until a chunk is small enough.

  Orbax's `chunk_byte_size` only takes divisors, and a vocabulary of prime size would end in chunks of one column.
  """
  chunk = [_slice_rows(shape, itemsize), *(max(1, size) for size in shape[1:])][: len(shape)]  # None for a scalar.
  while math.prod(chunk) * itemsize > CHUNK_BYTES:
    longest = chunk.index(max(chunk))
    chunk[longest] = -(-chunk[longest] // 2)
  return tuple(chunk)


def _open_store(info: ParamInfo) -> tensorstore.Future:
  spec = type_handlers.get_json_tspec_read(
    info, use_ocdbt=info.is_ocdbt_checkpoint, raise_array_data_missing_error=info.raise_array_data_missing_error
  )
  return tensorstore.open(tensorstore.Spec(spec), read=True, context=info.ts_context)


def _lazy_array(info: ParamInfo, store: tensorstore.TensorStore) -> LazyArray:
  origin = f'{info.parent_dir}: {jax.tree_util.keystr(info.keypath, simple=True, separator="/")}'

  def read(index: Index) -> np.ndarray:
    part = store[_normalized(index, store.shape)]
    try:
      return part.read().result()
    except ValueError as error:
      raise InputError(f'{origin}: missing or damaged data, expected a whole array ({_fault(error)})') from error

  return LazyArray(tuple(store.shape), store.dtype.numpy_dtype, read, origin)


def _normalized(index: Index, shape: tuple[int, ...]) -> tuple[int | slice, ...]:
  """The same index without negative or overhanging bounds, which TensorStore takes literally."""
  index = index_tuple(index)
  missing = len(shape) - len(index) + (... in index)
  if missing < 0:
    raise IndexError(f'{len(shape) - missing} indices for an array of {len(shape)} axes')
  at = index.index(...) if ... in index else len(index)
  normalized = []
  for item, size in zip(index[:at] + (slice(None),) * missing + index[at + 1 :], shape):
    picked = range(size)[item]
    if isinstance(picked, range):
      picked = slice(picked.start, picked.start + len(picked) * picked.step, picked.step)
    normalized.append(picked)
  return tuple(normalized)


def _tree_directory(directory: epath.Path) -> epath.Path:
  """`directory` (V0), or the one directory in it (V1), that holds a tree."""
  if (directory / '_METADATA').is_file():
    return directory
  found = sorted(path.parent for path in directory.glob('*/_METADATA'))
  if not found:
    raise InputError(f'{directory}: no Orbax checkpoint, expected a _METADATA file in it or one level below')
  if len(found) > 1:
    names = ', '.join(path.name for path in found)
    raise InputError(f'{directory}: holds several trees ({names}), expected one; name its directory')
  return found[0]


def _fault(error: Exception) -> str:
  return one_line(error).split(' [tensorstore_spec')[0]  # A page of JSON follows.
