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

from janus_jax.sharding.mesh import ROW_AXES
from janus_jax.sharding.rules import parameter_shardings
from janus_jax.training.optimizer import OptimizerConfig, adam

Flat = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
  """What a step takes and gives back (donated).

  Attributes:
    step: int32, updates so far in the whole run, skipped ones included.
    params: the model's tree.
    opt_state: Adam's count and moments {path: float32 array}; paths that do not train have none.
    ema: {path: float32 array} of what trains, or None.
    skipped: int32, updates skipped for a loss or gradient that was not finite.
    skipped_in_a_row: int32, those since the last good one.
  """

  step: jax.Array
  params: Any
  opt_state: optax.ScaleByAdamState
  ema: Flat | None
  skipped: jax.Array
  skipped_in_a_row: jax.Array


@dataclasses.dataclass(frozen=True)
class Placement:
  """Where arrays of a run live.

  Attributes:
    mesh: of all devices.
    params: path -> sharding; moments and averages lie with their parameters.
  """

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
    by_path = lambda flat: {path: self.params[path] for path in flat}  # noqa: E731
    opt = state.opt_state
    return TrainState(
      step=self.everywhere,
      params=unflatten(by_path(flatten(state.params))),
      opt_state=opt._replace(count=self.everywhere, mu=by_path(opt.mu), nu=by_path(opt.nu)),
      ema=None if state.ema is None else by_path(state.ema),
      skipped=self.everywhere,
      skipped_in_a_row=self.everywhere,
    )


def flatten(tree: Any) -> Flat:
  """Nested dicts to {"/"-joined path: leaf}."""
  return flax.traverse_util.flatten_dict(tree, sep='/')


def unflatten(flat: Mapping[str, Any]) -> Any:
  return flax.traverse_util.unflatten_dict(flat, sep='/')


def new_state(params: Any, trained: frozenset[str], config: OptimizerConfig) -> TrainState:
  """A state at step 0 with fresh moments for the `trained` paths; pure, as `jax.eval_shape` wants it."""
  # A buffer of its own for each leaf: XLA refuses to be given (donated) one twice.
  step, skipped, in_a_row = (jnp.zeros((), jnp.int32) for _ in range(3))
  flat = flatten(params)
  masters = {path: flat[path].astype(jnp.float32) for path in sorted(trained)}
  # What trains is kept in float32 whatever the checkpoint stored; what is frozen stays as it is.
  params = unflatten({**flat, **masters})
  ema = jax.tree.map(jnp.copy, masters) if config.ema_decay else None
  return TrainState(step, params, adam(config).init(masters), ema, skipped, in_a_row)


def start_state(
  params: Any, trained: frozenset[str], config: OptimizerConfig, placement: Placement, ema: Flat | None = None
) -> TrainState:
  """The state that `new_state` describes, on the mesh; no array is ever whole on one device that is to be split.

  Args:
    params: the model's tree; numpy arrays, or arrays on the mesh, which are given up (donated) where dtypes change.
    trained: paths that get moments.
    config: of the optimizer.
    placement: mesh and shardings.
    ema: averages so far; of other paths the average starts with the parameter.
  """
  flat, everywhere = flatten(params), placement.everywhere
  for path, leaf in flat.items():
    dtype = jnp.float32 if path in trained else leaf.dtype
    flat[path] = _placed(leaf, jnp.dtype(dtype), placement.params[path])
  masters = {path: flat[path] for path in sorted(trained)}
  shardings = {path: placement.params[path] for path in masters}
  adam_shardings = optax.ScaleByAdamState(count=everywhere, mu=shardings, nu=shardings)
  opt_state = jax.jit(adam(config).init, out_shardings=adam_shardings)(masters)
  if config.ema_decay:
    kept = {path: average for path, average in (ema or {}).items() if path in masters}
    copied = {path: leaf for path, leaf in masters.items() if path not in kept}
    copies = jax.jit(
      lambda flat: jax.tree.map(jnp.copy, flat), out_shardings={path: shardings[path] for path in copied}
    )
    ema = {**copies(copied), **kept}
  counters = (jax.device_put(np.int32(0), everywhere, may_alias=False) for _ in range(3))
  step, skipped, in_a_row = counters
  return TrainState(step, unflatten(flat), opt_state, ema if config.ema_decay else None, skipped, in_a_row)


def _placed(leaf: Any, dtype: jnp.dtype, sharding: jax.sharding.Sharding) -> jax.Array:
  """The array in a dtype on the mesh. One there already is deleted if it has another dtype."""
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
  state: TrainState, trained: frozenset[str], config: OptimizerConfig, placement: Placement, carry_moments: bool = False
) -> TrainState:
  """The state with which a stage begins: the same parameters and counters, fresh moments for what now trains.

  Args:
    state: at the end of the stage before; given up (donated).
    trained: paths that have moments now.
    config: of the optimizer.
    placement: mesh and shardings.
    carry_moments: keep the moments and their count; `trained` is what it was then.
  """
  in_a_row = jax.device_put(np.int32(0), placement.everywhere, may_alias=False)
  if carry_moments:
    return state.replace(skipped_in_a_row=in_a_row)
  # Before the new ones are made: of 7 B parameters either are 55 GB.
  for leaf in jax.tree.leaves(state.opt_state):
    leaf.delete()
  fresh = start_state(state.params, trained, config, placement, state.ema)
  return fresh.replace(step=state.step, skipped=state.skipped, skipped_in_a_row=in_a_row)


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


def place_batch(batch: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh, shares: int = 1) -> dict[str, jax.Array]:
  """Rows, and streams of images, split over the axes `data` and `fsdp`.

  Args:
    batch: of this process, its share of the rows and streams.
    mesh: over the devices of all processes.
    shares: of how many shares the whole batch consists (`mesh.process_batch_shard`).
  """

  def placed(array: np.ndarray) -> jax.Array:
    return jax.make_array_from_process_local_data(_rows(mesh), array, (len(array) * shares, *array.shape[1:]))

  return {name: placed(array) for name, array in batch.items()}


def place_whole_batch(batch: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
  """As `place_batch`, of a batch of which every process has all rows."""
  return {
    name: jax.make_array_from_callback(array.shape, _rows(mesh), array.__getitem__) for name, array in batch.items()
  }


def _rows(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(ROW_AXES))
