"""The train step. Read this first.

One function for all three stages. `masks` says which parameters train:

  static   a frozen set of paths, known while tracing: frozen parameters get no gradient (XLA drops that work), have no
           moments, and may be stored in bfloat16. One executable per stage.
  traced   {path: bool array} over all paths that train in any stage. One executable serves every stage.

Both give the same parameters, and in both a frozen parameter stays bit-identical.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from janus_jax.models.config import ComputeConfig, JanusConfig
from janus_jax.training.image_encoding import Batch, image_features, resolve_codes, split_pixels
from janus_jax.training.losses import TaskLosses, microbatches, row_losses, target_counts
from janus_jax.training.optimizer import OptimizerConfig, adamw, update
from janus_jax.training.state import Flat, TrainState, flatten, unflatten

StaticMasks = frozenset[str]
TracedMasks = Mapping[str, jax.Array]
MODES = ('static', 'traced')


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepSettings:
  """What a config says of the step.

  Attributes:
    compute: dtypes, rematerialisation, kernels.
    optimizer: constants of AdamW.
    accumulation: microbatches that the rows of a batch are cut into; gradients are summed over them.
    loss_chunk: positions of a row whose logits over the vocabulary exist together.
  """

  compute: ComputeConfig = dataclasses.field(default_factory=ComputeConfig)
  optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
  accumulation: int = 1
  loss_chunk: int = 256


@dataclasses.dataclass(frozen=True)
class StepConfig(StepSettings):
  """What the step is compiled for: beside StepSettings,

  Attributes:
    model: architecture.
    shardings: (path, sharding) of every parameter, to keep them where they are; () leaves it to XLA.
  """

  model: JanusConfig
  shardings: tuple[tuple[str, jax.sharding.Sharding], ...] = ()


@flax.struct.dataclass
class StageValues:
  """What changes from step to step or stage to stage without compiling anew.

  Attributes:
    learning_rate: float32.
    weight_decay: float32.
    loss_weights: float32[3], of a target of each kind (`data.examples.TASKS`); 1 everywhere in the papers.
  """

  learning_rate: jax.Array
  weight_decay: jax.Array
  loss_weights: jax.Array


def train_step(
  state: TrainState, batch: Batch, values: StageValues, *, masks: StaticMasks | TracedMasks, config: StepConfig
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update.

  The loss is the weighted mean over all supervised targets of the batch, whatever their kind: sum over kinds of
  weight * summed cross-entropy, divided by sum of weight * targets. A loss or gradient that is not finite changes
  nothing but the counters.

  Args:
    state: donated.
    batch: arrays of `data.packing.make_batch`.
    values: rates and weights of now.
    masks: which parameters train (see the top).
    config: static.

  Returns:
    the new state, and metrics: float32 `loss`, `grad_norm` (before clipping), `param_norm` and `update_norm` (of what
    trains); float32[3] `loss_sums` and `loss_weights` per kind; int32 `skipped` and `skipped_in_a_row`.
  """
  flat = flatten(state.params)
  trained = {path: flat[path] for path in sorted(masks)}
  frozen = {path: leaf for path, leaf in flat.items() if path not in trained}

  losses, gradients = _gradients(trained, frozen, batch, values.loss_weights, config)
  total = jnp.maximum(jnp.sum(values.loss_weights * losses.weights), 1e-12)
  loss = jnp.sum(values.loss_weights * losses.sums) / total
  gradients = jax.tree.map(lambda g: g / total, gradients)
  if isinstance(masks, Mapping):
    gradients = {path: jnp.where(masks[path], g, 0) for path, g in gradients.items()}

  norm = optax.tree.norm(gradients)
  optimizer = adamw(config.optimizer, values.learning_rate, values.weight_decay)
  new, opt_state = update(optimizer, gradients, state.opt_state, trained)
  finite = jnp.isfinite(norm) & jnp.isfinite(loss)
  changes = {path: finite & masks[path] if isinstance(masks, Mapping) else finite for path in trained}
  new = _where(changes, new, trained)
  opt_state = opt_state._replace(
    count=jnp.where(finite, opt_state.count, state.opt_state.count),
    mu=_where(changes, opt_state.mu, state.opt_state.mu),
    nu=_where(changes, opt_state.nu, state.opt_state.nu),
  )
  ema = _update_ema(state.ema, new, config.optimizer, finite)
  new, opt_state, ema = _constrain_shardings(new, opt_state, ema, config)

  skipped = (~finite).astype(jnp.int32)
  in_a_row = jnp.where(finite, 0, state.skipped_in_a_row + 1)
  metrics = {
    'loss': loss,
    'loss_sums': losses.sums,
    'loss_weights': losses.weights,
    'grad_norm': norm,
    'param_norm': optax.tree.norm(new),
    'update_norm': optax.tree.norm({path: new[path] - trained[path] for path in new}),
    'skipped': state.skipped + skipped,
    'skipped_in_a_row': in_a_row,
  }
  state = TrainState(state.step + 1, unflatten({**flat, **new}), opt_state, ema, state.skipped + skipped, in_a_row)
  return state, metrics


@functools.cache
def jit_train_step(mode: str) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
  """The one place where the step is compiled: `train_step` with its state donated. Runs of one process share it.

  Args:
    mode: one of MODES; decides whether `masks` is static or traced.
  """
  static = ('masks', 'config') if mode == 'static' else ('config',)
  return jax.jit(train_step, static_argnames=static, donate_argnames=('state',))


def _gradients(
  trained: Flat, frozen: Flat, batch: Batch, loss_weights: jax.Array, config: StepConfig
) -> tuple[TaskLosses, Flat]:
  """Summed losses, and the gradient of their weighted sum, over the microbatches.

  Images are encoded before the microbatches (image_encoding.py). So the gradient has two parts: that of features and of
  all that comes after them, microbatch by microbatch; and that of SigLIP, from the features' at the end.
  """
  params, of_images = unflatten({**frozen, **trained}), (config.model, config.compute, config.accumulation)
  rows, pixels = split_pixels(resolve_codes(params, batch, *of_images))
  seen = pixels is not None
  encoder = {path: leaf for path, leaf in trained.items() if seen and path.startswith('vision_encoder/')}
  rest = {path: leaf for path, leaf in trained.items() if path not in encoder}
  features = None
  if seen:
    encode = lambda encoder: image_features(unflatten({**frozen, **trained, **encoder}), pixels, *of_images)  # noqa: E731
    features, pull = jax.vjp(encode, encoder)

  def weighted_sum(variables: tuple[Flat, jax.Array | None], rows: Batch) -> tuple[jax.Array, TaskLosses]:
    rest, own = variables
    params = unflatten({**frozen, **trained, **rest})
    shown = features if own is None else own
    return row_losses(params, rows, shown, loss_weights, config.model, config.compute, config.loss_chunk)

  variables = rest, features if encoder else None
  gradient = jax.grad(weighted_sum, has_aux=True)
  if config.accumulation == 1:
    (gradients, of_features), losses = gradient(variables, rows)
  else:
    dtype = jnp.dtype(config.optimizer.gradient_sum_dtype)
    add_up = lambda total, part: (total.astype(jnp.float32) + part).astype(total.dtype)  # noqa: E731

    def add(carry: tuple[TaskLosses, Any], part: Batch) -> tuple[tuple[TaskLosses, Any], None]:
      found, losses = gradient(variables, part)
      return (jax.tree.map(jnp.add, carry[0], losses), jax.tree.map(add_up, carry[1], found)), None

    zeros = TaskLosses(jnp.zeros(3), jnp.zeros_like(target_counts(batch)))
    sums = {path: jnp.zeros(p.shape, dtype) for path, p in rest.items()}
    # Each feature has a gradient from one microbatch alone: nothing is rounded in this sum.
    start = zeros, (sums, jax.tree.map(jnp.zeros_like, variables[1]))
    losses, (sums, of_features) = jax.lax.scan(add, start, microbatches(rows, config.accumulation))[0]
    gradients = {path: total.astype(jnp.float32) for path, total in sums.items()}
  return losses, {**gradients, **(pull(of_features)[0] if encoder else {})}


def _where(conditions: Flat, new: Flat, old: Flat) -> Flat:
  return {path: jnp.where(conditions[path], new[path], old[path]) for path in new}


def _update_ema(ema: Flat | None, params: Flat, config: OptimizerConfig, finite: jax.Array) -> Flat | None:
  if ema is None:
    return None
  rate = jnp.where(finite, 1 - config.ema_decay, 0.0)
  return {path: average + rate * (params[path] - average) for path, average in ema.items()}


def _constrain_shardings(
  new: Flat, opt_state: Any, ema: Flat | None, config: StepConfig
) -> tuple[Flat, Any, Flat | None]:
  """Everything per parameter stays where the parameter lies; XLA is free to choose otherwise."""
  if not config.shardings:
    return new, opt_state, ema
  places = dict(config.shardings)
  keep = lambda flat: {path: jax.lax.with_sharding_constraint(x, places[path]) for path, x in flat.items()}  # noqa: E731
  opt_state = opt_state._replace(mu=keep(opt_state.mu), nu=keep(opt_state.nu))
  return keep(new), opt_state, None if ema is None else keep(ema)
