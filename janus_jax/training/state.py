"""The state of training: parameters, moments of what trains, counters. Made, placed, carried between stages."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax

from janus_jax.models.lora import is_adapter
from janus_jax.models.siglip import POSITIONS, resample_positions
from janus_jax.sharding.mesh import ROW_AXES
from janus_jax.sharding.rules import parameter_shardings
from janus_jax.training.optimizer import Flat, OptimizerConfig, directions


@flax.struct.dataclass
class TrainState:
  """The state that a step takes (donated) and gives back.

  Attributes:
    step: int32, updates so far in the whole run, skipped ones included.
    params: the model's tree.
    opt_state: count and moments {path: float32 array}; paths that do not train have none, those of Muon no second.
    ema: averages {path: float32 array} of the parameters that train, or None.
    skipped: int32, updates skipped for a loss or gradient that was not finite.
    skipped_in_a_row: int32, those since the last good one.
    reference: {path: array}, the parameters that train as they were when the stage began, for objectives that compare
      with them (`preference.needs_reference`); without the factors of LoRA, which can be left out. None for others.
  """

  step: jax.Array
  params: Any
  opt_state: optax.ScaleByAdamState
  ema: Flat | None
  skipped: jax.Array
  skipped_in_a_row: jax.Array
  reference: Flat | None = None


@dataclasses.dataclass(frozen=True)
class Placement:
  """The mesh of all devices, and path -> sharding of parameters; moments and averages lie with their parameters."""

  mesh: jax.sharding.Mesh
  params: Mapping[str, jax.sharding.NamedSharding]

  @classmethod
  def of(cls, mesh: jax.sharding.Mesh, shapes: Mapping[str, tuple[int, ...]]) -> 'Placement':
    return cls(mesh, parameter_shardings(shapes, mesh))

  @property
  def everywhere(self) -> jax.sharding.NamedSharding:
    return jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec())

  def shardings(self, state: TrainState) -> TrainState:
    """A tree of shardings like the (abstract or real) state."""

    def shardings(flat: Flat) -> dict[str, jax.sharding.NamedSharding]:
      return {path: self.params[path] for path in flat}

    opt, scalar = state.opt_state, self.everywhere
    opt = opt._replace(count=scalar, mu=shardings(opt.mu), nu=shardings(opt.nu))
    ema, reference = (None if flat is None else shardings(flat) for flat in (state.ema, state.reference))
    return TrainState(scalar, unflatten(shardings(flatten(state.params))), opt, ema, scalar, scalar, reference)


def flatten(tree: Any) -> dict[str, Any]:
  """{"/"-joined path: leaf} of nested dicts."""
  return flax.traverse_util.flatten_dict(tree, sep='/')


def unflatten(flat: Mapping[str, Any]) -> Any:
  return flax.traverse_util.unflatten_dict(flat, sep='/')


def new_state(
  params: Any, trained: frozenset[str], config: OptimizerConfig, with_reference: bool = False
) -> TrainState:
  """A state at step 0 with fresh moments for the `trained` paths, and a reference where its stage has one; pure, as
  `jax.eval_shape` wants it.
  """
  flat = flatten(params)
  masters = {path: flat[path].astype(jnp.float32) for path in sorted(trained)}
  # What trains is kept in float32 whatever the checkpoint stored; what is frozen stays as it is.
  params = unflatten({**flat, **masters})
  ema = jax.tree.map(jnp.copy, masters) if config.ema_decay else None
  # A buffer of its own for each leaf: XLA refuses to be given (donated) one twice.
  step, *skipped = (jnp.zeros((), jnp.int32) for _ in range(3))
  reference = jax.tree.map(jnp.copy, _compared(masters)) if with_reference else None
  return TrainState(step, params, directions(config).init(masters), ema, *skipped, reference)


def _compared(masters: Flat) -> Flat:
  """The parameters that a reference has its own value of."""
  return {path: leaf for path, leaf in masters.items() if not is_adapter(path)}


def start_state(
  params: Any,
  trained: frozenset[str],
  config: OptimizerConfig,
  placement: Placement,
  ema: Flat | None = None,
  with_reference: bool = False,
) -> TrainState:
  """The state that `new_state` describes, on the mesh; no array that is to be split is ever whole on one device.

  Parameters are numpy arrays, or arrays on the mesh, which are given up (donated) where dtypes change. `ema` are
  averages so far; those of other paths start with the parameter.
  """
  flat = flatten(params)
  for path, leaf in flat.items():
    flat[path] = _placed(leaf, jnp.dtype(jnp.float32 if path in trained else leaf.dtype), placement.params[path])
  masters = {path: flat[path] for path in sorted(trained)}
  shardings = {path: placement.params[path] for path in masters}
  init = directions(config).init
  second = {path: shardings[path] for path in jax.eval_shape(init, masters).nu}
  opt_shardings = optax.ScaleByAdamState(count=placement.everywhere, mu=shardings, nu=second)
  opt_state = jax.jit(init, out_shardings=opt_shardings)(masters)

  def copied(flat: Flat) -> Flat:
    own = {path: shardings[path] for path in flat}
    return jax.jit(lambda flat: jax.tree.map(jnp.copy, flat), out_shardings=own)(flat)

  if config.ema_decay:
    kept = {path: average for path, average in (ema or {}).items() if path in masters}
    ema = {**copied({path: leaf for path, leaf in masters.items() if path not in kept}), **kept}
  step, *skipped = (_zero(placement) for _ in range(3))
  reference = copied(_compared(masters)) if with_reference else None
  return TrainState(step, unflatten(flat), opt_state, ema if config.ema_decay else None, *skipped, reference)


def _zero(placement: Placement) -> jax.Array:
  return jax.device_put(np.int32(0), placement.everywhere, may_alias=False)


def _placed(leaf: Any, dtype: jnp.dtype, sharding: jax.sharding.Sharding) -> jax.Array:
  """The array in a dtype on the mesh. One there already is deleted if it has another dtype or sharding."""
  if not isinstance(leaf, jax.Array):
    # A copy: on a CPU jax may use numpy's memory as it is, and states are donated.
    return jax.device_put(np.array(leaf, dtype), sharding)
  if leaf.dtype == dtype and leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
    return leaf
  placed = jax.jit(lambda x: x.astype(dtype), out_shardings=sharding)(jax.device_put(leaf, sharding))
  placed.block_until_ready()
  leaf.delete()
  return placed


def start_stage(
  state: TrainState,
  trained: frozenset[str],
  config: OptimizerConfig,
  placement: Placement,
  carry_moments: bool = False,
  with_reference: bool = False,
) -> TrainState:
  """The state with which a stage begins: the same parameters and counters, fresh moments for what now trains.

  `state`, at the end of the stage before, is given up (donated). With `carry_moments` the moments and their count stay;
  `trained` must not have changed, and neither stage has a reference.
  """
  if carry_moments:
    return state.replace(skipped_in_a_row=_zero(placement))
  # Before the new ones are made: of 7 B parameters either are 55 GB.
  for leaf in jax.tree.leaves((state.opt_state, state.reference)):
    leaf.delete()
  fresh = start_state(state.params, trained, config, placement, state.ema, with_reference)
  return fresh.replace(step=state.step, skipped=state.skipped)


def resize_table(table: jax.Array, grid: int, placement: Placement) -> jax.Array:
  """The table of patch positions for another grid, on the mesh."""
  if len(table) == grid**2:
    return table
  return jax.jit(resample_positions, static_argnames='grid', out_shardings=placement.params[POSITIONS])(
    table, grid=grid
  )


def resize_positions(state: TrainState, grid: int, placement: Placement) -> TrainState:
  """The state for images of another grid of patches: the table of positions and its average are resampled, its moments
  begin anew.
  """
  flat = flatten(state.params)
  if len(flat[POSITIONS]) == grid**2:
    return state

  def resized(arrays: Flat | None, are_moments: bool = False) -> Flat | None:
    if not arrays or POSITIONS not in arrays:
      return arrays
    table = resize_table(arrays[POSITIONS], grid, placement)
    return {**arrays, POSITIONS: jnp.zeros_like(table, device=table.sharding) if are_moments else table}

  opt = state.opt_state
  opt = opt._replace(mu=resized(opt.mu, are_moments=True), nu=resized(opt.nu, are_moments=True))
  return state.replace(params=unflatten(resized(flat)), opt_state=opt, ema=resized(state.ema))


def evaluated_params(state: TrainState) -> Any:
  """The tree that callbacks evaluate: the average of each parameter that has one, the parameter itself of others."""
  return state.params if state.ema is None else unflatten({**flatten(state.params), **state.ema})


def abstract(state: TrainState, placement: Placement) -> TrainState:
  """Shapes, dtypes and shardings of a state, for restoring one."""
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
    state,
    placement.shardings(state),
  )


def place_batch(batch: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh, shards: int = 1) -> dict[str, jax.Array]:
  """Rows, and streams of images, split over the axes `data` and `fsdp`.

  `batch` is this process's one of so many `shards` of the rows and streams (`mesh.process_batch_shard`).
  """
  rows = _rows(mesh)
  return {
    name: jax.make_array_from_process_local_data(rows, array, (len(array) * shards, *array.shape[1:]))
    for name, array in batch.items()
  }


def place_whole_batch(batch: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
  """Places a batch of which every process has all rows, as `place_batch` does."""
  return {
    name: jax.make_array_from_callback(array.shape, _rows(mesh), array.__getitem__) for name, array in batch.items()
  }


def _rows(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(ROW_AXES))
