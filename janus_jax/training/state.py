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
  """A state at step 0 with fresh moments for the `trained` paths. Pure: also for `jax.eval_shape`."""
  # A buffer of its own for each leaf: XLA refuses to be given (donated) one twice.
  step, skipped, in_a_row = (jnp.zeros((), jnp.int32) for _ in range(3))
  flat = flatten(params)
  masters = {path: flat[path].astype(jnp.float32) for path in sorted(trained)}
  # What trains is kept in float32 whatever the checkpoint stored; what is frozen stays as it is.
  params = unflatten({**flat, **masters})
  ema = jax.tree.map(jnp.copy, masters) if config.ema_decay else None
  return TrainState(step, params, adam(config).init(masters), ema, skipped, in_a_row)


def enter_stage(state: TrainState, trained: frozenset[str], config: OptimizerConfig) -> TrainState:
  """The state with which a stage begins: the same parameters and counters, fresh moments for what now trains."""
  fresh = new_state(state.params, trained, config)
  ema = None if fresh.ema is None else {**fresh.ema, **{k: v for k, v in (state.ema or {}).items() if k in fresh.ema}}
  return fresh.replace(step=state.step, ema=ema, skipped=state.skipped, skipped_in_a_row=jnp.zeros((), jnp.int32))


def evaluated_params(state: TrainState) -> Any:
  """The tree that callbacks evaluate: the average of each parameter that has one, the parameter itself of others."""
  return state.params if state.ema is None else unflatten({**flatten(state.params), **state.ema})


def place(state: TrainState, placement: Placement) -> TrainState:
  """The state on the mesh."""
  return jax.device_put(state, placement.shardings(state))


def abstract(state: TrainState, placement: Placement) -> TrainState:
  """Shapes, dtypes and shardings of a state, for restoring one."""
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
    state,
    placement.shardings(state),
  )


def place_batch(batch: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh, shares: int = 1) -> dict[str, jax.Array]:
  """Rows split over the axes `data` and `fsdp`.

  Args:
    batch: of this process, its share of the rows.
    mesh: over the devices of all processes.
    shares: of how many shares the whole batch consists (`mesh.row_shares`).
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
