"""Short pretraining of the decoder by next-token prediction, and what the short pretrainings share.

A real run starts from parts that were trained on data of their own: a tokenizer, an understanding encoder, a language
model. The toy world has none to download, so `pretraining_vq`, `pretraining_vision` and this file train small
ones by the same objectives. Numpy arrays in, a parameter tree out; one process, one device, nothing resumable.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from janus_jax.errors import InputError
from janus_jax.models.config import ComputeConfig, JanusConfig, LlamaConfig
from janus_jax.models.llama import Llama

# Called after every step with its number (from 1) and its loss, which is still on the device: reading it waits.
Progress = Callable[[int, jax.Array], None]


@dataclasses.dataclass(frozen=True)
class Optimization:
  """AdamW with a warm-up and a cosine to `final_fraction` of the learning rate.

  Attributes:
    steps: updates.
    batch_size: images or packed rows per update, sampled with replacement.
    learning_rate: the highest.
    warmup_steps: first of the `steps`, in which the rate rises from 0 along a line.
    final_fraction: fraction of the learning rate that is left at the end.
    b2: decay of the second moment; short runs want less than the usual 0.999.
    weight_decay: weight decay of matrices; biases, norms and tables are spared.
    max_grad_norm: a longer gradient is shortened to it.
  """

  steps: int
  batch_size: int
  learning_rate: float
  warmup_steps: int = 30
  final_fraction: float = 0.02
  b2: float = 0.98
  weight_decay: float = 0.0
  max_grad_norm: float = 1.0

  def __post_init__(self):
    if not 0 <= self.warmup_steps < self.steps:
      raise InputError(f'warmup_steps is {self.warmup_steps}: expected 0 or more, and less than steps ({self.steps})')
    if self.batch_size < 1:
      raise InputError(f'batch_size is {self.batch_size}: expected 1 or more')

  def optimizer(self) -> optax.GradientTransformation:
    peak = self.learning_rate
    schedule = optax.warmup_cosine_decay_schedule(
      0.0, peak, self.warmup_steps, self.steps, end_value=peak * self.final_fraction
    )
    adamw = optax.adamw(schedule, b2=self.b2, weight_decay=self.weight_decay, mask=_is_kernel)
    return optax.chain(optax.clip_by_global_norm(self.max_grad_norm), adamw)


def _is_kernel(params: Any) -> Any:
  return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == 'kernel', params)


def no_progress(step: int, loss: jax.Array) -> None:
  """The default: says nothing."""


def draw_rows(rng: np.random.Generator, rows: int, optimization: Optimization) -> np.ndarray:
  """int64[steps, batch_size]: which rows each step sees."""
  if rows < 1:
    raise InputError('pretraining was given 0 rows: expected 1 or more')
  return rng.integers(rows, size=(optimization.steps, optimization.batch_size))


def next_token_loss(logits: jax.Array, tokens: jax.Array, segments: jax.Array) -> jax.Array:
  """Mean cross-entropy of the next token, where that belongs to the same example.

  Args:
    logits: float32[B, T, V].
    tokens: int32[B, T].
    segments: int32[B, T]; examples of a row are numbered from 1, 0 is padding.

  Returns:
    float32, in nats; 0 where no token is followed by another.
  """
  follows = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] != 0)
  losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
  return jnp.sum(losses * follows) / jnp.maximum(jnp.sum(follows), 1)


@functools.partial(jax.jit, static_argnames=('config', 'compute', 'optimization'))
def _train_step(
  params: Any,
  state: Any,
  tokens: jax.Array,
  segments: jax.Array,
  positions: jax.Array,
  *,
  config: LlamaConfig,
  compute: ComputeConfig,
  optimization: Optimization,
):
  model = Llama(config, compute)

  def objective(params):
    return next_token_loss(model.apply({'params': params}, tokens, positions, segments), tokens, segments)

  loss, gradients = jax.value_and_grad(objective)(params)
  updates, state = optimization.optimizer().update(gradients, state, params)
  return optax.apply_updates(params, updates), state, loss


def pretrain_decoder(
  config: JanusConfig,
  compute: ComputeConfig,
  params: Any,
  tokens: np.ndarray,
  segments: np.ndarray,
  positions: np.ndarray,
  optimization: Optimization,
  seed: int,
  progress: Progress = no_progress,
) -> Any:
  """Trains the decoder, token table and text head on packed text.

  Args:
    config: sizes; `language_model` is used.
    compute: dtypes and loops.
    params: tree of `language_model`. It is not changed.
    tokens: int32[N, T].
    segments: int32[N, T]; examples of a row are numbered from 1, 0 is padding.
    positions: int32[N, T], counted within each example.
    optimization: steps, batch, rates.
    seed: of the order of the rows.
    progress: called after each step.

  Returns:
    The trained tree, on the device.

  Raises:
    InputError: the three arrays differ in shape, hold no row, or a token lies outside the vocabulary.
  """
  vocab = config.language_model.vocab_size
  if not tokens.shape == segments.shape == positions.shape or tokens.ndim != 2:
    shapes = f'{tokens.shape}, {segments.shape}, {positions.shape}'
    raise InputError(f'tokens, segments and positions have shapes {shapes}: expected [N, T] three times')
  order = draw_rows(np.random.default_rng(seed), len(tokens), optimization)
  if tokens.min() < 0 or tokens.max() >= vocab:
    raise InputError(f'tokens lie in {tokens.min()}..{tokens.max()}: expected 0..{vocab - 1}')
  settings = {'config': config.language_model, 'compute': compute, 'optimization': optimization}
  state = jax.jit(optimization.optimizer().init)(params)
  for number, rows in enumerate(order, start=1):
    params, state, loss = _train_step(params, state, tokens[rows], segments[rows], positions[rows], **settings)
    progress(number, loss)
  return params
