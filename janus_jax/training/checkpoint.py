"""Checkpoints of a training run: saved while training goes on, restored onto any mesh, damaged ones passed over.

On disk, under the workdir (`models/files.py` has the names):

  checkpoints/<step>/params/   parameters, an Orbax tree of its own, so that it can be opened without the rest
  checkpoints/<step>/train/    the rest of the state: step, optimizer, averages
  checkpoints/<step>/data/     one JSON file per process: where its data iterator stands
  checkpoints/<step>/_CHECKPOINT_METADATA   "custom_metadata" in it is the metadata given to `save`

Orbax renames a directory when it is whole, so one that is cut short (kill -9, a full disk) is never taken for a
checkpoint. Buckets cannot rename: there a directory is whole once it has COMMIT_FILE.
"""

import concurrent.futures
import contextlib
import functools
import json
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import fsspec
import jax
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from janus_jax.errors import InputError
from janus_jax.models.files import CHECKPOINTS_DIRECTORY, METADATA_FILE, PARAMS_DIRECTORY, TRAIN_DIRECTORY
from janus_jax.training import storage_faults
from janus_jax.training.storage_faults import DamagedError, OrbaxLog, fault_line

DATA_DIRECTORY = 'data'
COMMIT_FILE = 'commit_success.txt'  # Orbax's name.
DAMAGED_SUFFIX = '.damaged'
# Bytes. Where parameters have replicas, each device saves a slice of them: of small ones slicing takes longer than the
# copy. 9 saves of 285 small arrays on 8 simulated devices: 17.4 s with slices of any size, 4.7 s so (under a profiler).
REPLICA_SLICE = 1 << 20
NAMES_SHOWN = 5  # Of each list in a message.

# Else gcsfs, through which Orbax looks at a bucket, misses what other processes and TensorStore change there.
fsspec.config.conf['gcs'] = {'use_listings_cache': False}

# A flax.struct dataclass (or anything with `params` and `replace`) that is a pytree of arrays.
State = Any
JsonDict = Mapping[str, Any]


class Restored(NamedTuple):
  """A checkpoint; its `data_states` are those of all the processes that saved it, in order."""

  step: int
  state: State
  data_states: list[dict[str, Any]]
  metadata: dict[str, Any]


class Checkpoints(contextlib.AbstractContextManager):
  """The checkpoints of one workdir. Leaving it waits for the save under way. All processes make the same calls."""

  def __init__(
    self,
    workdir: str | os.PathLike,
    *,
    save_every: int,
    keep_last: int = 2,
    keep_every: int | None = None,
    keep_steps: Collection[int] = (),
  ):
    """Opens (creates) the workdir's checkpoints and removes what an interrupted save left behind.

    Args:
      workdir: local, or a URL that `etils.epath` knows (gs://...).
      save_every: `should_save` is true for its multiples.
      keep_last: how many of the newest are kept.
      keep_every: its multiples are kept for good.
      keep_steps: the ends of the stages: kept for good, and `should_save` is true for them too.

    Raises:
      InputError: a number below 1.
      OSError: nothing can be written there.
    """
    for name, value in (('save_every', save_every), ('keep_last', keep_last), ('keep_every', keep_every)):
      if value is not None and value < 1:
        raise InputError(f'{name} is {value}: expected at least 1')
    saved, kept = ocp.training.save_decision_policies, ocp.training.preservation_policies
    when = [saved.FixedIntervalPolicy(save_every), saved.SpecificStepsPolicy(tuple(keep_steps))]
    self._kept = _KeptStep()
    which = [kept.LatestN(keep_last), kept.CustomSteps(sorted(keep_steps)), self._kept]
    if keep_every:
      which.append(kept.EveryNSteps(keep_every))
    # Orbax wants absolute paths; a URL is one.
    workdir = os.fspath(workdir)
    self._in_bucket = '://' in workdir
    self.directory = epath.Path(workdir if self._in_bucket else os.path.abspath(workdir)) / CHECKPOINTS_DIRECTORY
    self._damage = functools.partial(storage_faults.as_damage, str(self.directory), self._in_bucket)
    self._failed, self._log = False, OrbaxLog()
    logging.getLogger('absl').addFilter(self._log)
    with self._system_errors(), self._log.silence():
      self.directory.mkdir(parents=True, exist_ok=True)
      self._remove_unfinished()
      saving = ocp.options.ArrayOptions.Saving(min_slice_bytes_for_replica_parallel=REPLICA_SLICE)
      self._checkpointer = ocp.training.Checkpointer(
        self.directory,
        context=ocp.Context(array_options=ocp.options.ArrayOptions(saving=saving)),
        save_decision_policy=saved.AnySavePolicy(when),
        preservation_policy=kept.AnyPreservationPolicy(which),
      )

  def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
    try:
      if kind is None or jax.process_count() == 1:
        self.close()
      elif issubclass(kind, InputError):  # Else other processes may be gone, and no save can end.
        self._log.call(self._checkpointer.wait, agree=False)
    except Exception as error:
      if kind is None:
        raise
      # The reason why the run ends is on its way up already.
      logging.warning('%s: closing failed: %s', self.directory, fault_line(error))

  @property
  def steps(self) -> list[int]:
    """Steps of the whole checkpoints, oldest first, with the one that is being saved."""
    return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

  def should_save(self, step: int) -> bool:
    """True if `step` is due by the policy and not saved yet."""
    return step not in self.steps and self._checkpointer.should_save(step)

  def save(self, step: int, state: State, data_state: JsonDict, metadata: JsonDict, keep: int = 0) -> bool:
    """Starts to save, whatever `should_save` says; returns when the arrays have been copied from the devices.

    The state may be donated afterwards. Waits first for the save before this one, if that is still under way.

    Args:
      step: number of the checkpoint: updates done so far.
      state: `.params` becomes params/, `.replace(params=None)` train/.
      data_state: JSON values, this process's own.
      metadata: JSON values, the same in every process.
      keep: step whose checkpoint is kept too, until another one is named; 0: none.

    Returns:
      False, and nothing is written, if the step is saved already.

    Raises:
      OSError: this save or the one before it failed, as on a full disk. Older checkpoints are intact.
    """
    if step in self.steps:
      return False
    items = {
      PARAMS_DIRECTORY: state.params,
      TRAIN_DIRECTORY: state.replace(params=None),
      DATA_DIRECTORY: _ProcessJson(data_state),
    }
    self.wait()
    self._kept.step = keep
    with self._system_errors():
      self._log.first = None
      self._checkpointer.save_checkpointables_async(step, items, force=True, custom_metadata=dict(metadata))
    return True

  def wait(self) -> None:
    """Returns when everything is on disk; raises OSError if it could not be written."""
    with self._system_errors():
      self._log.call(self._checkpointer.wait)

  def close(self) -> None:
    """Waits; nothing can be saved afterwards."""
    try:
      self.wait()
    finally:
      if not self._log.block:
        with self._system_errors():
          self._checkpointer.close()
      if not self._failed:  # Else Orbax tells of it once more when the process ends.
        logging.getLogger('absl').removeFilter(self._log)

  def restore(self, abstract_state: Callable[[dict[str, Any]], State]) -> Restored | None:
    """Restores the newest checkpoint that is whole.

    A damaged one is passed over with a line in the log. Once an older one is restored, it is set aside as
    `<step>.damaged`; else it would block its step and count among the newest that are kept.

    Args:
      abstract_state: gets the metadata of the checkpoint that is tried, returns a state of `jax.ShapeDtypeStruct`
        whose shardings say where the arrays go (the first device without one) and whose dtypes what they become.

    Returns:
      None if there is no checkpoint.

    Raises:
      InputError: the tree is not that of `abstract_state` (lists how they differ), or no checkpoint is whole.
    """
    self.wait()
    damaged = {}
    for step in reversed(self.steps):
      try:
        found = self._restore(step, abstract_state)
      except DamagedError as error:
        logging.warning('%s: damaged, passed over (%s)', self.directory / str(step), error)
        damaged[step] = error
        continue
      self._set_aside(damaged)
      return found
    if damaged:
      newest = max(damaged)
      raise InputError(f'{self.directory}: none of {len(damaged)} checkpoints is whole ({newest}: {damaged[newest]})')
    return None

  def _restore(self, step: int, abstract_state: Callable[[dict[str, Any]], State]) -> Restored:
    directory = self.directory / str(step)
    with self._damage():
      # Not through Orbax, which takes a missing or damaged file for empty metadata.
      metadata = json.loads((directory / METADATA_FILE).read_text())['custom_metadata']
      data_states = _read_process_jsons(directory / DATA_DIRECTORY)
    state = abstract_state(metadata)
    abstract = {PARAMS_DIRECTORY: state.params, TRAIN_DIRECTORY: state.replace(params=None)}
    with self._damage(), self._log.silence():
      trees = {name: ocp.metadata(directory, name).metadata for name in abstract}
    for name, tree in trees.items():
      if tree is None:  # Orbax's answer to whatever it fails at.
        raise DamagedError(f'{name}/ cannot be read')
      _check_shapes(abstract[name], tree, directory / name)
    with self._damage(), self._log.silence():
      found = self._checkpointer.load_checkpointables(step, jax.tree.map(_placed, abstract))
    return Restored(step, found[TRAIN_DIRECTORY].replace(params=found[PARAMS_DIRECTORY]), data_states, metadata)

  def _set_aside(self, steps: Collection[int]) -> None:
    if not steps:
      return
    if jax.process_index() == 0:
      for step in steps:
        names = (f'{step}{DAMAGED_SUFFIX}{number}' for number in ('', *range(2, 1000)))
        free = next(path for path in map(self.directory.joinpath, names) if not path.exists())
        (self.directory / str(step)).rename(free)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices('janus_jax: damaged checkpoints set aside')
    self._checkpointer.reload()

  def _remove_unfinished(self) -> None:
    """Removes saves that were cut short. (Orbax's `cleanup_tmp_directories` leaves those of this layout.)"""
    if jax.process_index():
      return
    if self._in_bucket:
      # A bucket has no empty directories.
      paths = self.directory.iterdir() if self.directory.exists() else []
      steps = [path for path in paths if path.name.isdecimal()]
      unfinished = [path for path in steps if not (path / COMMIT_FILE).exists()]
    else:
      unfinished = self.directory.glob('*.orbax-checkpoint-tmp*')
    for path in unfinished:
      with contextlib.suppress(OSError):  # It takes room, and is never read.
        path.rmtree()

  @contextlib.contextmanager
  def _system_errors(self) -> Iterator[None]:
    try:
      with storage_faults.as_os_errors(str(self.directory), self._in_bucket):
        yield
    except (OSError, ValueError):
      self._failed = True
      raise


class _KeptStep:
  """A preservation policy of Orbax: keeps the checkpoint of one step."""

  step = 0

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    return [checkpoint.step == self.step for checkpoint in checkpoints]


def _placed(leaf: Any) -> Any:
  """Shape with a sharding: without one an array would go where it was saved from, a device that may not exist."""
  if not isinstance(leaf, jax.ShapeDtypeStruct) or leaf.sharding is not None:
    return leaf
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))


class _ProcessJson:
  """JSON of which each process has its own, in Orbax's protocol of things that save themselves."""

  def __init__(self, value: Any):
    self._text = json.dumps(value)  # Now: the owner may change it while the save goes on.

  async def save(self, directory: Any) -> Any:
    return self._write(directory)

  async def _write(self, directory: Any) -> None:
    path = await directory.await_creation()
    (path / _process_file(jax.process_index(), jax.process_count())).write_text(self._text)

  async def load(self, directory: Any) -> Any:
    # Orbax's protocol asks for it and nothing calls it: metadata and data state are read before the arrays are.
    raise NotImplementedError('read by _read_process_jsons')


def _read_process_jsons(directory: epath.Path) -> list[Any]:
  """The JSON of each process that saved, however many there are now."""
  found = [path.name for path in directory.glob('process_*-of-*.json')]
  if not found:
    raise FileNotFoundError(f'{directory}: no file of a process')
  count = int(found[0].removesuffix('.json').rsplit('-', 1)[1])
  with concurrent.futures.ThreadPoolExecutor(32) as pool:
    paths = [directory / _process_file(index, count) for index in range(count)]
    return [json.loads(text) for text in pool.map(epath.Path.read_text, paths)]


def _process_file(index: int, count: int) -> str:
  return f'process_{index}-of-{count}.json'


def _check_shapes(expected: Any, found: Any, where: epath.Path) -> None:
  """Raises InputError with what is missing from the tree `found`, unexpected in it, or of another shape."""
  expected, found = _shapes(expected), _shapes(found)
  problems = {
    'missing': [name for name in expected if name not in found],
    'unexpected': [name for name in found if name not in expected],
    'of another shape': [f'{n} {found[n]} not {x}' for n, x in expected.items() if found.get(n, x) != x],
  }
  texts = []
  for what, names in problems.items():
    if names:
      more = ', ...' if len(names) > NAMES_SHOWN else ''
      texts.append(f'{len(names)} {what} ({", ".join(names[:NAMES_SHOWN])}{more})')
  if texts:
    raise InputError(f'{where}: not the tree of this run: {"; ".join(texts)}')


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  """'/'-joined path -> shape of every leaf; fields of dataclasses and positions in tuples are parts of a path too."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator='/'): tuple(leaf.shape) for path, leaf in leaves}
