"""Cross-entropies of a packed batch, one sum and one weight per task (Janus paper section 3.3).

Text is predicted by `lm_head`, codes by `gen_head`; begin-of-image predicts code 0. Logits over the vocabulary exist
for a few positions at a time only, and only for those that count.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from janus_jax.data.examples import CODE, GENERATION_LOSS, IMAGE, TEXT, TEXT_LOSS, UNDERSTANDING_LOSS
from janus_jax.models.janus import Janus
from janus_jax.sharding.collectives import Spread, Weights
from janus_jax.sharding.rules import ways
from janus_jax.training.image_encoding import Batch, image_features, resolve_codes, split_pixels, take
from janus_jax.training.state import flatten, unflatten
from janus_jax.training.step_config import StepConfig

# Method of the model -> what its weights' paths begin with.
HEADS = {'text_logits': 'language_model/lm_head/', 'image_logits': 'gen_head/'}
_LOSSES = (UNDERSTANDING_LOSS, TEXT_LOSS, GENERATION_LOSS)


@flax.struct.dataclass
class TaskLosses:
  """Losses per task, in the order of `data.examples.TASKS`.

  Attributes:
    sums: float32[3], summed cross-entropy in nats.
    weights: float32[3], how many targets that was (their summed weights).
  """

  sums: jax.Array
  weights: jax.Array


def target_counts(batch: Batch) -> jax.Array:
  """float32[3]: the summed weights of the targets of each task."""
  return jnp.stack([jnp.sum(batch['weights'] * (batch['loss_ids'] == loss)) for loss in _LOSSES])


class Head(NamedTuple):
  """A head of the model.

  Attributes:
    logits: function of weights {path: array} and hidden states [B, t, D] -> float32[B, t, V].
    spread: devices that its loss is spread over; None for one, or to leave it to XLA.
  """

  logits: Callable[[Weights, jax.Array], jax.Array]
  spread: Spread | None = None

  def losses(self, weights: Weights, hidden: jax.Array, targets: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(self.logits(weights, hidden), targets)


class Targets(NamedTuple):
  """Targets of each position of a batch, of which those that are wanted count; scales have no gradient."""

  ids: jax.Array  # int32[B, T].
  wanted: jax.Array  # bool[B, T].
  scales: jax.Array  # float32[B, T].


def cross_entropy(
  head: Head, weights: Weights, hidden: jax.Array, targets: Targets, chunk: int
) -> tuple[jax.Array, jax.Array]:
  """-log softmax(logits)[target] of each position that is wanted, and their scaled sum, which has a gradient.

  Positions that are wanted are put first, on each device by itself, and then taken a few at a time: logits of the
  others are never computed. Those of a chunk are made once, and its gradients on the spot: the sum is linear in them.

  Args:
    head: gives the logits, with its `weights`.
    weights: {path: array}.
    hidden: [B, T, D].
    targets: what is predicted.
    chunk: positions of a row whose logits exist together. From T on all logits are computed, at once.

  Returns:
    float32[B, T], 0 where it is not wanted, without a gradient; float32[], the sum of scales * losses.
  """
  B, T = targets.ids.shape
  if chunk >= T:
    losses = jnp.where(targets.wanted, head.losses(weights, hidden, targets.ids), 0.0)
    return jax.lax.stop_gradient(losses), jnp.sum(targets.scales * losses)
  # [B, T, ...] -> [R, C, L, ...]: what each of R x C devices holds lies along L.
  spread = head.spread
  R, C = (1, 1) if spread is None else (ways(entry, spread.mesh) for entry in (spread.rows, spread.positions))
  chunks = -(-T // chunk)
  L = B * T // (R * C)
  size = -(-L // chunks)

  def split(x: jax.Array) -> jax.Array:
    return jnp.moveaxis(x.reshape(R, B // R, C, T // C, *x.shape[2:]), 2, 1).reshape(R, C, L, *x.shape[2:])

  order = jnp.argsort(~split(targets.wanted), axis=-1)

  def sorted_and_filled(x: jax.Array) -> jax.Array:
    x = split(x)
    x = jnp.take_along_axis(x, order.reshape(order.shape + (1,) * (x.ndim - 3)), axis=2)
    return jnp.pad(x, [(0, chunks * size - L if axis == 2 else 0) for axis in range(x.ndim)])

  needed = -(-jnp.max(jnp.sum(split(targets.wanted), axis=-1)) // size)
  scales = jnp.where(targets.wanted, targets.scales, 0.0)
  operands = [sorted_and_filled(x) for x in (hidden, targets.ids, scales)]
  total, losses = _in_chunks((head, size), needed, *operands, weights)
  losses = jnp.take_along_axis(losses[:, :, :L], jnp.argsort(order, axis=-1), axis=2)
  losses = jnp.moveaxis(losses.reshape(R, C, B // R, T // C), 1, 2).reshape(B, T)
  return jax.lax.stop_gradient(jnp.where(targets.wanted, losses, 0.0)), total


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_chunks(
  how: tuple[Head, int], needed: jax.Array, hidden: jax.Array, targets: jax.Array, scales: jax.Array, weights: Weights
) -> tuple[jax.Array, jax.Array]:
  """The first `needed` chunks of `size` positions of each device: sum of scaled losses, and losses float32[R, C, L].

  A loop whose trip count is an array has no gradient of its own: hence the rule below.

  `how` is (head, size). hidden is [R, C, L, D], L a multiple of size; targets are int32[R, C, L], scales float32.
  """
  head, size = how

  def on_device(needed: jax.Array, hidden: jax.Array, targets: jax.Array, weights: Weights) -> jax.Array:
    whole = _whole(weights, hidden.dtype, head.spread)

    def fill(i: jax.Array, found: jax.Array) -> jax.Array:
      losses = head.losses(whole, _chunk(hidden, i, size), _chunk(targets, i, size))
      return _with_chunk(found, losses, i, size)

    return jax.lax.fori_loop(0, needed, fill, jnp.zeros(targets.shape))

  if head.spread is not None:
    on_device = head.spread.over(on_device, 2, weights, head.spread.place)
  found = on_device(needed, hidden, targets, weights)
  return jnp.sum(scales * found), found


def _in_chunks_forward(how, needed, hidden, targets, scales, weights):
  head, size = how
  spread = head.spread
  # A frozen weight gets no gradient.
  trained = {path for path, weight in weights.items() if weight.perturbed}
  needed, hidden, targets, scales = needed.value, hidden.value, targets.value, scales.value
  weights = {path: weight.value for path, weight in weights.items()}

  def on_device(needed, hidden, targets, scales, weights):
    whole = _whole(weights, hidden.dtype, spread)
    frozen = {path: weight for path, weight in whole.items() if path not in trained}
    variables = {path: weight for path, weight in whole.items() if path in trained}

    def fill(i, carry):
      found, dhidden, sums = carry

      def chunk_losses(hidden, variables):
        return head.losses({**frozen, **variables}, hidden, _chunk(targets, i, size))

      losses, pull = jax.vjp(chunk_losses, _chunk(hidden, i, size), variables)
      more, parts = pull(_chunk(scales, i, size))
      sums = {path: total + parts[path] for path, total in sums.items()}
      return _with_chunk(found, losses, i, size), _with_chunk(dhidden, more, i, size), sums

    sums = {path: jnp.zeros(weight.shape, jnp.float32) for path, weight in variables.items()}
    start = (jnp.zeros(targets.shape), jnp.zeros_like(hidden), sums)
    found, dhidden, sums = jax.lax.fori_loop(0, needed, fill, start)
    # Over devices they are summed up once, after all chunks.
    return found, dhidden, sums if spread is None else spread.scatter(sums)

  if spread is not None:
    on_device = spread.over(on_device, 3, weights, (spread.place, spread.place, spread.specs(trained)))
  found, dhidden, sums = on_device(needed, hidden, targets, scales, weights)
  sums = {path: total.astype(weights[path].dtype) for path, total in sums.items()}
  return (jnp.sum(scales * found), found), (dhidden, {path: sums.get(path) for path in weights})


def _in_chunks_backward(how, gradients, cotangents):
  factor, _ = cotangents
  dhidden, sums = jax.tree.map(lambda x: x * factor.astype(x.dtype), gradients)
  return None, dhidden, None, None, sums


_in_chunks.defvjp(_in_chunks_forward, _in_chunks_backward, symbolic_zeros=True)


def _whole(weights: Weights, dtype: jnp.dtype, spread: Spread | None) -> Weights:
  """All of the weights on a device; matrices in the dtype that they are multiplied in, so that no chunk casts them."""
  if spread is not None:
    return spread.gather(weights, dtype)
  return {path: weight.astype(dtype) if weight.ndim > 1 else weight for path, weight in weights.items()}


def _chunk(x: jax.Array, i: jax.Array, size: int) -> jax.Array:
  """[R, C, L, ...] -> [R, C * size, ...], the i-th chunk of every device."""
  part = jax.lax.dynamic_slice_in_dim(x, i * size, size, 2)
  return part.reshape(x.shape[0], x.shape[1] * size, *x.shape[3:])


def _with_chunk(x: jax.Array, part: jax.Array, i: jax.Array, size: int) -> jax.Array:
  """x [R, C, L, ...] with `part` [R, C * size, ...] as the i-th chunk of every device."""
  part = part.reshape(*x.shape[:2], size, *x.shape[3:]).astype(x.dtype)
  return jax.lax.dynamic_update_slice_in_dim(x, part, i * size, 2)


def embed(apply: Callable[..., Any], batch: Batch, features: jax.Array | None) -> jax.Array:
  """[B, T, D]: text, image features and codes, each where the batch says it stands.

  `features` are [N, J * P, Dv] of `image_encoding.image_features`, or None; with them the batch has `image_places`.
  """
  tokens, token_types = batch['tokens'], batch['token_types']
  x = apply(jnp.where(token_types == TEXT, tokens, 0), method='embed_text')
  codes = apply(jnp.where(token_types == CODE, tokens, 0), method='embed_codes')
  x = jnp.where((token_types == CODE)[..., None], codes, x)
  if features is None:
    return x
  align = functools.partial(apply, method='align_features')
  # The adaptor looks at each position by itself: it is applied to features or to positions, whichever are fewer. Of a
  # microbatch those are its positions, of a whole batch the features.
  if features.shape[0] * features.shape[1] <= token_types.size:
    placed = take(align(features), batch['image_places'])
  else:
    placed = align(take(features, batch['image_places']))
  return jnp.where((token_types == IMAGE)[..., None], placed, x)


def row_losses(
  params: Any, batch: Batch, features: jax.Array | None, loss_weights: jax.Array, config: StepConfig
) -> tuple[jax.Array, TaskLosses]:
  """The losses of rows whose images are encoded: their weighted sum, which has a gradient, and those of each task.

  Args:
    params: the model's tree.
    batch: rows of `image_encoding.split_pixels`, or a microbatch of them. With 'factors', float32[B, T], the gradient
      of each target is multiplied by its own.
    features: features of the images of the whole batch, or None.
    loss_weights: float32[3], weight of a target of each task.
    config: what the loss is compiled for.
  """
  losses, weights = batch['loss_ids'], batch['weights']
  scales = weights * sum(loss_weights[task] * (losses == loss) for task, loss in enumerate(_LOSSES))
  found, total = _target_losses(params, batch, features, scales * batch.get('factors', 1.0), config)
  weighted = weights * found
  sums = jnp.stack([jnp.sum(weighted * (losses == loss)) for loss in _LOSSES])
  return total, TaskLosses(sums, target_counts(batch))


def _target_losses(
  params: Any, batch: Batch, features: jax.Array | None, scales: jax.Array, config: StepConfig
) -> tuple[jax.Array, jax.Array]:
  """The cross-entropy of each target, float32[B, T] without a gradient, and their sum by `scales`, which has one."""
  model = Janus(config.model, config.compute)

  def apply(*args: Any, method: str) -> Any:
    return model.apply({'params': params}, *args, method=method)

  hidden, _ = apply(embed(apply, batch, features), batch['positions'], batch['segments'], method='hidden')
  ids, is_code, counts = batch['targets'], batch['loss_ids'] == GENERATION_LOSS, batch['weights'] != 0
  # The other head's targets may lie outside of this one's vocabulary.
  text_ids, code_ids = jnp.where(is_code, 0, ids), jnp.where(is_code, ids, 0)
  text_targets, code_targets = Targets(text_ids, counts & ~is_code, scales), Targets(code_ids, counts & is_code, scales)
  text, text_sum = _head_loss(params, config, hidden, 'text_logits', text_targets)
  if config.guidance == 1:
    codes, code_sum = _head_loss(params, config, hidden, 'image_logits', code_targets)
  else:
    guided, R = jnp.concatenate(jnp.split(hidden, 2), axis=-1), len(hidden) // 2
    codes, code_sum = _head_loss(params, config, guided, 'image_logits', Targets(*(x[:R] for x in code_targets)))
    codes = jnp.pad(codes, ((0, R), (0, 0)))
  return text + codes, text_sum + code_sum


def microbatches(batch: Batch, count: int) -> Batch:
  """[B, ...] -> [count, B / count, ...]: every count-th row together, so that each is spread over mesh and streams."""
  return {name: x.reshape(len(x) // count, count, *x.shape[1:]).swapaxes(0, 1) for name, x in batch.items()}


def batch_losses(
  params: Any, batch: Batch, loss_weights: jax.Array, config: StepConfig
) -> tuple[jax.Array, TaskLosses]:
  """The losses of a batch of `data.packing.make_batch`, microbatch by microbatch; the rest as in `row_losses`."""
  losses = _over_microbatches(lambda *rows: row_losses(params, *rows, loss_weights, config), params, batch, config)
  return jax.tree.map(lambda x: x.sum(0), losses)


def log_probs(params: Any, batch: Batch, config: StepConfig) -> jax.Array:
  """float32[B, T], the log-probability of each target of a batch, 0 where there is none; it has no gradient."""
  zeros = jnp.zeros(batch['targets'].shape)

  def of_rows(rows: Batch, features: jax.Array | None) -> jax.Array:
    return -_target_losses(params, rows, features, zeros[: len(rows['targets'])], config)[0]

  found = _over_microbatches(of_rows, params, batch, config)
  return found.swapaxes(0, 1).reshape(zeros.shape)  # As `microbatches` cut them.


def _over_microbatches(
  function: Callable[[Batch, jax.Array | None], Any], params: Any, batch: Batch, config: StepConfig
) -> Any:
  """Applies a function of rows and features to each microbatch; stacks the results."""
  rows, pixels = split_pixels(resolve_codes(params, batch, config))
  features = None if pixels is None else image_features(params, pixels, config)
  if config.accumulation == 1:
    return jax.tree.map(lambda x: x[None], function(rows, features))
  return jax.lax.map(lambda part: function(part, features), microbatches(rows, config.accumulation))


def _head_loss(
  params: Any, config: StepConfig, hidden: jax.Array, method: str, targets: Targets
) -> tuple[jax.Array, jax.Array]:
  """`cross_entropy` of one of the model's heads."""
  weights = {path: leaf for path, leaf in flatten(params).items() if path.startswith(HEADS[method])}
  compute, spread = config.compute, None
  if compute.layout is not None and compute.layout.mesh.size > 1 and config.loss_chunk < targets.ids.shape[1]:
    rows, positions, _ = compute.layout.spec('logits', (*targets.ids.shape, 0))
    specs = tuple((path, compute.layout.parameter(path)) for path in sorted(weights))
    spread = Spread(compute.layout.mesh, rows, positions, specs)
    # Each device works for itself.
    compute = dataclasses.replace(compute, layout=None)
  model = Janus(config.model, compute)

  def logits(weights: Weights, hidden: jax.Array) -> jax.Array:
    apply = functools.partial(model.apply, {'params': unflatten(weights)}, method=method)
    if method == 'text_logits' or config.guidance == 1:
      return apply(hidden) / config.temperature
    conditional, unconditional = map(apply, jnp.split(hidden, 2, axis=-1))
    return (unconditional + config.guidance * (conditional - unconditional)) / config.temperature

  return cross_entropy(Head(logits, spread), weights, hidden, targets, config.loss_chunk)
