"""The train step. Read this first.

`train_step` serves all three stages. `masks` says which parameters train:

  static   a frozen set of paths, known while tracing: frozen parameters get no gradient (XLA drops that work), have no
           moments, and may be stored in bfloat16. One executable per stage.
  traced   {path: bool array} over all paths that train in any stage. One executable serves every stage.

Both give the same parameters, and in both a frozen parameter stays bit-identical.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from janus_jax.training.image_encoding import Batch, image_features, resolve_codes, split_pixels
from janus_jax.training.losses import TaskLosses, microbatches, row_losses, target_counts
from janus_jax.training.optimizer import OptimizerConfig, adamw, update
from janus_jax.training.preference import split_samples, with_factors
from janus_jax.training.state import Flat, TrainState, flatten, unflatten
from janus_jax.training.step_config import StepConfig

StaticMasks = frozenset[str]
TracedMasks = Mapping[str, jax.Array]
MODES = ('static', 'traced')


@flax.struct.dataclass
class StageValues:
  """Values that change from step to step or stage to stage without compiling anew.

  Attributes:
    learning_rate: float32.
    weight_decay: float32.
    loss_weights: float32[3], weight of a target of each task (`data.examples.TASKS`); 1 everywhere in the papers.
  """

  learning_rate: jax.Array
  weight_decay: jax.Array
  loss_weights: jax.Array


def train_step(
  state: TrainState, batch: Batch, values: StageValues, *, masks: StaticMasks | TracedMasks, config: StepConfig
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Makes one update, on a batch of `data.packing.make_batch`. The state is given up (donated).

  The loss is the weighted mean over all supervised targets of the batch, whatever their task: sum over tasks of
  weight * summed cross-entropy, divided by sum of weight * targets. A batch may have 'samples', another batch, of which
  the loss is the stage's objective (`preference.py`), with or without arrays of its own. A loss or gradient that is not
  finite changes nothing but the counters.

  Returns:
    the new state, and metrics: float32 `loss`, `grad_norm` (before clipping), `param_norm` and `update_norm` (of what
    trains); float32[3] `loss_sums` and `loss_weights` per task; int32 `skipped` and `skipped_in_a_row`; figures about
    samples.
  """
  flat = flatten(state.params)
  trained = {path: flat[path] for path in sorted(masks)}
  frozen = {path: leaf for path, leaf in flat.items() if path not in trained}

  batch, samples = split_samples(batch)
  loss, gradients, figures = 0.0, dict.fromkeys(trained, 0.0), {}
  if batch:
    losses, gradients = _gradients(trained, frozen, batch, values.loss_weights, config)
    total = jnp.maximum(jnp.sum(values.loss_weights * losses.weights), 1e-12)
    loss = jnp.sum(values.loss_weights * losses.sums) / total
    gradients = jax.tree.map(lambda g: g / total, gradients)
  if samples is not None:
    own = config.for_samples()
    samples, value, figures = with_factors(flat, state.reference, samples, own)
    sampled, added = _gradients(trained, frozen, samples, jnp.ones(3), own)
    losses, share = losses if batch else sampled, config.preference.supervised
    loss = share * loss + value
    gradients = {path: share * g + added[path] for path, g in gradients.items()}
  if isinstance(masks, Mapping):
    gradients = {path: jnp.where(masks[path], g, 0) for path, g in gradients.items()}

  norm = optax.tree.norm(gradients)
  optimizer = adamw(config.optimizer, values.learning_rate, values.weight_decay)
  new, opt_state = update(optimizer, gradients, state.opt_state, trained)
  finite = jnp.isfinite(norm) & jnp.isfinite(loss)
  changes = {path: finite & masks[path] if isinstance(masks, Mapping) else finite for path in trained}
  new = _where(changes, new, trained)
  opt_state = _where_finite(finite, changes, opt_state, state.opt_state)
  ema = _update_ema(state.ema, new, config.optimizer, finite)
  new, opt_state, ema = _constrain_shardings(new, opt_state, ema, config)

  skipped = state.skipped + (~finite).astype(jnp.int32)
  consecutive = jnp.where(finite, 0, state.skipped_in_a_row + 1)
  metrics = {
    'loss': loss,
    'loss_sums': losses.sums,
    'loss_weights': losses.weights,
    'grad_norm': norm,
    'param_norm': optax.tree.norm(new),
    'update_norm': optax.tree.norm({path: new[path] - trained[path] for path in new}),
    'skipped': skipped,
    'skipped_in_a_row': consecutive,
    **figures,
  }
  params = unflatten({**flat, **new})
  return TrainState(state.step + 1, params, opt_state, ema, skipped, consecutive, state.reference), metrics


@functools.cache
def jit_train_step(mode: str) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
  """`train_step`, compiled with its state donated: nothing else compiles it, and all runs of a process share it.

  `mode`, one of MODES, decides whether `masks` is static or traced.
  """
  static = ('masks', 'config') if mode == 'static' else ('config',)
  return jax.jit(train_step, static_argnames=static, donate_argnames=('state',))


def _gradients(
  trained: Flat, frozen: Flat, batch: Batch, loss_weights: jax.Array, config: StepConfig
) -> tuple[TaskLosses, Flat]:
  """Summed losses, and the gradient of their weighted sum, over the microbatches.

  Images are encoded before the microbatches (image_encoding.py). So the gradient has two parts: that of features and
  all that comes after them, microbatch by microbatch; and that of SigLIP, from the features' gradient at the end.
  """
  rows, pixels = split_pixels(resolve_codes(unflatten({**frozen, **trained}), batch, config))
  encoder, features = {}, None
  if pixels is not None:
    encoder = {path: leaf for path, leaf in trained.items() if path.startswith('vision_encoder/')}
    features, pull = jax.vjp(lambda e: image_features(unflatten({**frozen, **trained, **e}), pixels, config), encoder)
  rest = {path: leaf for path, leaf in trained.items() if path not in encoder}

  def weighted_sum(variables: tuple[Flat, jax.Array | None], rows: Batch) -> tuple[jax.Array, TaskLosses]:
    rest, own = variables
    params = unflatten({**frozen, **trained, **rest})
    return row_losses(params, rows, features if own is None else own, loss_weights, config)

  variables = rest, features if encoder else None
  gradient = jax.grad(weighted_sum, has_aux=True)
  if config.accumulation == 1:
    (gradients, feature_gradients), losses = gradient(variables, rows)
  else:

    def add(carry: tuple[TaskLosses, Any], part: Batch) -> tuple[tuple[TaskLosses, Any], None]:
      found, losses = gradient(variables, part)
      return (jax.tree.map(jnp.add, carry[0], losses), jax.tree.map(_add_in_float32, carry[1], found)), None

    zeros = TaskLosses(jnp.zeros(3), jnp.zeros_like(target_counts(batch)))
    sums = {path: jnp.zeros(p.shape, config.optimizer.gradient_sum_dtype) for path, p in rest.items()}
    # Each feature has a gradient from one microbatch alone: nothing is rounded in this sum.
    start = zeros, (sums, jax.tree.map(jnp.zeros_like, variables[1]))
    losses, (sums, feature_gradients) = jax.lax.scan(add, start, microbatches(rows, config.accumulation))[0]
    gradients = {path: total.astype(jnp.float32) for path, total in sums.items()}
  return losses, {**gradients, **(pull(feature_gradients)[0] if encoder else {})}


def _add_in_float32(total: jax.Array, part: jax.Array) -> jax.Array:
  return (total.astype(jnp.float32) + part).astype(total.dtype)


def _where(conditions: Flat, new: Flat, old: Flat) -> Flat:
  return {path: jnp.where(conditions[path], new[path], old[path]) for path in new}


def _where_finite(
  finite: jax.Array, changes: Flat, new: optax.ScaleByAdamState, old: optax.ScaleByAdamState
) -> optax.ScaleByAdamState:
  count = jnp.where(finite, new.count, old.count)
  return optax.ScaleByAdamState(count, mu=_where(changes, new.mu, old.mu), nu=_where(changes, new.nu, old.nu))


def _update_ema(ema: Flat | None, params: Flat, config: OptimizerConfig, finite: jax.Array) -> Flat | None:
  if ema is None:
    return None
  rate = jnp.where(finite, 1 - config.ema_decay, 0.0)
  return {path: average + rate * (params[path] - average) for path, average in ema.items()}


def _constrain_shardings(
  new: Flat, opt_state: Any, ema: Flat | None, config: StepConfig
) -> tuple[Flat, Any, Flat | None]:
  """Keeps everything per parameter where the parameter lies; XLA is free to choose otherwise."""
  if not config.shardings:
    return new, opt_state, ema
  shardings = dict(config.shardings)

  def keep(flat: Flat) -> Flat:
    return {path: jax.lax.with_sharding_constraint(x, shardings[path]) for path, x in flat.items()}

  opt_state = opt_state._replace(mu=keep(opt_state.mu), nu=keep(opt_state.nu))
  return keep(new), opt_state, None if ema is None else keep(ema)
