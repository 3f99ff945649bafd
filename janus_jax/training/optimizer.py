"""AdamW or Muon, and learning rates over time. Rules say what each parameter's rate and decay are multiplied by."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from janus_jax.errors import InputError
from janus_jax.training.muon import kernel_axes, muon_directions

Rules = tuple[tuple[str, float], ...]
Flat = Mapping[str, jax.Array]  # Path -> array.
SCHEDULES = ('constant', 'cosine', 'linear')
STORED_DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """Constants of the optimizer over a run; rates and decay of a stage are `step.StageValues`.

  Attributes:
    b1: decay of Adam's first moment.
    b2: decay of Adam's second moment.
    eps: added to the root of the second moment. The reports state the betas and clipping, but not this.
    max_grad_norm: largest norm of a gradient (over everything that trains); a longer one is shortened to it.
    learning_rate_rules: ordered (regex over the whole path, factor); the first match decides, 1 where none does.
    weight_decay_rules: as `learning_rate_rules`, for weight decay.
    ema_decay: decay of an exponential moving average of the parameters that train, from when they begin to train:
      average <- ema_decay * average + (1 - ema_decay) * parameter after each step (float32, 4 bytes a parameter).
      Callbacks evaluate the average, and 'WORKDIR@ema' opens it wherever a checkpoint is asked for. 0 keeps none.
    moment_dtype: dtype that Adam's moments are stored in; 'bfloat16' halves their memory (`stochastically_rounded`).
    muon: regexes over whole paths of kernels, which Muon steps in place of AdamW, at the same rates and decay; such a
      kernel has one moment, and no b1 and b2 (muon.py).
    gradient_sum_dtype: dtype of the sum of gradients over microbatches; 'bfloat16' halves its memory and rounds after
      each: the sum of 16 is off by about 1 %.
  """

  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8
  max_grad_norm: float = 1.0
  learning_rate_rules: Rules = ()
  weight_decay_rules: Rules = ((r'.*(norm.*|bias)', 0.0),)
  ema_decay: float = 0.0
  moment_dtype: str = 'float32'
  muon: tuple[str, ...] = ()
  gradient_sum_dtype: str = 'float32'


def factor_of(path: str, rules: Rules) -> float:
  """The factor that the rules give a path."""
  return next((factor for pattern, factor in rules if re.fullmatch(pattern, path)), 1.0)


def check_rules(name: str, rules: Rules, paths: Iterable[str]) -> None:
  """Raises InputError for a rule that is no regex or matches none of the paths."""
  paths = list(paths)
  for pattern, _ in rules:
    try:
      matches = any(re.fullmatch(pattern, path) for path in paths)
    except re.error as error:
      raise InputError(f'{name}: {pattern!r} is no regular expression ({error})') from None
    if not matches:
      raise InputError(f'{name}: {pattern!r} matches no parameter: expected a regex over paths such as {paths[0]}')


def steps_by_muon(config: OptimizerConfig, path: str) -> bool:
  return any(re.fullmatch(pattern, path) for pattern in config.muon)


def check_optimizer(config: OptimizerConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
  """Raises InputError for rules that no parameter obeys, and for Muon on what is no kernel."""
  for name in ('learning_rate_rules', 'weight_decay_rules'):
    check_rules(f'optimizer.{name}', getattr(config, name), shapes)
  check_rules('optimizer.muon', [(pattern, 1.0) for pattern in config.muon], shapes)
  for path, shape in shapes.items():
    if steps_by_muon(config, path):
      kernel_axes(path, shape)


def _exact(
  config: OptimizerConfig, gradients: Flat, state: optax.ScaleByAdamState
) -> tuple[Flat, optax.ScaleByAdamState]:
  """Directions and new moments, all in float32."""

  def of(flat: Flat, muon: bool) -> Flat:
    return {path: leaf for path, leaf in flat.items() if steps_by_muon(config, path) == muon}

  adam = optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=jnp.float32)
  found, new = adam.update(of(gradients, False), state._replace(mu=of(state.mu, False)))
  kernels, momentum = muon_directions(of(gradients, True), of(state.mu, True), state.count)
  return {**found, **kernels}, new._replace(mu={**new.mu, **momentum})


def directions(config: OptimizerConfig) -> optax.GradientTransformation:
  """Adam's direction, or Muon's, in float32: that of the moments before they are rounded for storage.

  The state is Adam's, without the second moment of what Muon steps.
  """
  dtype = jnp.dtype(config.moment_dtype)

  def init(params: Flat) -> optax.ScaleByAdamState:
    mu = optax.tree.zeros_like(params, dtype)
    nu = {path: jnp.zeros_like(moment) for path, moment in mu.items() if not steps_by_muon(config, path)}
    return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), mu=mu, nu=nu)

  def update(
    gradients: Flat, state: optax.ScaleByAdamState, params: Flat | None = None
  ) -> tuple[Flat, optax.ScaleByAdamState]:
    if dtype == jnp.float32:
      return _exact(config, gradients, state)
    mu, nu = optax.tree.cast((state.mu, state.nu), jnp.float32)
    found, new = _exact(config, gradients, state._replace(mu=mu, nu=nu))
    # From the count alone: a run that resumes samples what it would have sampled.
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0, impl='threefry2x32'), new.count))
    return found, new._replace(mu=_stored(keys[0], new.mu), nu=_stored(keys[1], new.nu))

  return optax.GradientTransformation(init, update)


def kernel_mask(params: Any) -> Any:
  """Tree of bools like the parameters': True of kernels."""
  return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == 'kernel', params)


def _stored(key: jax.Array, moments: Flat) -> Flat:
  keys = jax.random.split(key, len(moments))
  return {path: stochastically_rounded(moments[path], keys[i]) for i, path in enumerate(sorted(moments))}


def stochastically_rounded(x: jax.Array, key: jax.Array) -> jax.Array:
  """float32 x in bfloat16, rounded up or down with the probabilities that make it right on average.

  Rounding to nearest would lose what moves a moment by less than half of a unit in the last place (1/512 to 1/256 of
  it) in one step: with a decay of 0.999 a second moment could never fall again. So an average over the steps has no
  bias, and the error of one stored value is below 1/128 of it.
  """
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  # bfloat16 is the upper half of a float32: noise in the lower half carries over as often as that half is large.
  noise = jax.random.bits(key, x.shape, 'uint16').astype(jnp.uint32)
  upper = (bits + noise) & jnp.uint32(0xFFFF0000)
  # What is not finite would turn into something else.
  kept = jnp.where(jnp.isfinite(x), jax.lax.bitcast_convert_type(upper, jnp.float32), x)
  return kept.astype(jnp.bfloat16)


def adamw(config: OptimizerConfig, learning_rate: jax.Array, weight_decay: jax.Array) -> optax.GradientTransformation:
  """The optimizer, over flat trees {path: array}, with the rates of a step (float32): the one place to change it."""
  return optax.chain(
    clip_by_norm(config.max_grad_norm),
    directions(config),
    add_decayed_weights(weight_decay, config.weight_decay_rules),
    scale_by_rate(learning_rate, config.learning_rate_rules),
  )


def update(
  transformation: optax.GradientTransformation, gradients: Flat, opt_state: optax.ScaleByAdamState, params: Flat
) -> tuple[Flat, optax.ScaleByAdamState]:
  """New parameters, computed in float32 and kept in their dtypes, and the state of Adam, which alone has one."""
  none = optax.EmptyState()
  updates, (_, opt_state, *_) = transformation.update(gradients, (none, opt_state, none, none), params)
  return optax.apply_updates(params, updates), opt_state


def clip_by_norm(max_norm: float) -> optax.GradientTransformation:
  """Shortens gradients whose common norm is larger to `max_norm`."""

  def clipped(updates: Flat, params: Flat | None) -> Flat:
    factor = jnp.minimum(1.0, max_norm / jnp.maximum(optax.tree.norm(updates), 1e-12))
    return {path: u * factor for path, u in updates.items()}

  return optax.stateless(clipped)


def add_decayed_weights(weight_decay: jax.Array, rules: Rules) -> optax.GradientTransformation:
  """Adds decay * parameter, each path by its rule."""

  def decayed(updates: Flat, params: Flat) -> Flat:
    factors = {path: weight_decay * factor_of(path, rules) for path in updates}
    return {path: u + factors[path] * params[path].astype(jnp.float32) for path, u in updates.items()}

  return optax.stateless(decayed)


def scale_by_rate(learning_rate: jax.Array, rules: Rules) -> optax.GradientTransformation:
  """Multiplies by -rate, each path by its rule."""
  return optax.stateless(
    lambda updates, params: {path: -(learning_rate * factor_of(path, rules)) * u for path, u in updates.items()}
  )


def learning_rates(kind: str, peak: float, warmup_steps: int, steps: int, final_fraction: float = 0.0) -> np.ndarray:
  """float32[steps]: a line from 0 to the peak, which the first update after the warm-up has, then one of SCHEDULES.

  A stage that is shorter than its warm-up is all warm-up.

  'cosine' and 'linear' fall to `final_fraction` of the peak at the end.

  Raises:
    InputError: an unknown kind.
  """
  if kind not in SCHEDULES:
    raise InputError(f'schedule is {kind!r}: expected one of {", ".join(SCHEDULES)}')
  rest = max(steps - warmup_steps, 1)
  after = {
    'constant': optax.constant_schedule(peak),
    'cosine': optax.cosine_decay_schedule(peak, rest, final_fraction),
    'linear': optax.linear_schedule(peak, peak * final_fraction, rest),
  }[kind]
  # From the first update on: a rate of 0 would waste it.
  warmup = optax.linear_schedule(peak / (warmup_steps + 1), peak, max(warmup_steps, 1))
  schedule = optax.join_schedules([warmup, after], [warmup_steps])
  return np.asarray(jax.vmap(schedule)(jnp.arange(steps)), np.float32) if steps else np.zeros(0, np.float32)
