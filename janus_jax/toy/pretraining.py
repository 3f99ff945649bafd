"""Short pretraining of the decoder by next-token prediction, and what the short pretrainings share.

A real run starts from parts that were trained on data of their own: a tokenizer, an understanding encoder, a language
model. The toy world has none to download, so `pretraining_vq`, `pretraining_vision` and this file train small ones by
the same objectives. Numpy arrays in, a parameter tree out; one process, one device, nothing resumable.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from janus_jax.errors import InputError
from janus_jax.models.config import ComputeConfig, JanusConfig
from janus_jax.models.llama import Llama
from janus_jax.training.optimizer import kernel_mask


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
    adamw = optax.adamw(schedule, b2=self.b2, weight_decay=self.weight_decay, mask=kernel_mask)
    return optax.chain(optax.clip_by_global_norm(self.max_grad_norm), adamw)

  def sample_rows(self, rng: np.random.Generator, rows: int) -> np.ndarray:
    """int64[steps, batch_size]: the rows of each step."""
    if rows < 1:
      raise InputError('pretraining was given 0 rows: expected 1 or more')
    return rng.integers(rows, size=(self.steps, self.batch_size))


def _no_progress(step: int, loss: jax.Array) -> None:
  """Says nothing."""


@dataclasses.dataclass(frozen=True)
class PretrainingSetup:
  """Settings that the pretrainings of all parts take.

  Attributes:
    model: sizes of all parts.
    compute: dtypes and loops.
    optimization: steps, batch, rates.
    seed: decides the order of the data, and whatever else is sampled.
    progress: called after every step with its number (from 1) and its loss, which is still on the device: reading it
      waits.
  """

  model: JanusConfig
  compute: ComputeConfig
  optimization: Optimization
  seed: int
  progress: Callable[[int, jax.Array], None] = _no_progress


def minimize(
  setup: PretrainingSetup, params: Any, objective: Callable[[Any, Any], jax.Array], batches: Iterable[Any]
) -> Any:
  """Parameters after an update for each batch, by the gradient of objective(params, batch)."""
  optimizer = setup.optimization.optimizer()

  @jax.jit
  def step(params, state, batch):
    loss, gradients = jax.value_and_grad(objective)(params, batch)
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, loss

  state = jax.jit(optimizer.init)(params)
  for number, batch in enumerate(batches, start=1):
    params, state, loss = step(params, state, batch)
    setup.progress(number, loss)
  return params


class PackedText(NamedTuple):
  """Texts in rows, int32[N, T] each: tokens; segments, numbered from 1 in each row, 0 padding; positions in them."""

  tokens: np.ndarray
  segments: np.ndarray
  positions: np.ndarray


def next_token_loss(logits: jax.Array, tokens: jax.Array, segments: jax.Array) -> jax.Array:
  """Mean cross-entropy of the next token in nats, where that belongs to the same segment; 0 where none does.

  Args:
    logits: float32[B, T, V].
    tokens: int32[B, T].
    segments: int32[B, T], as in `PackedText`.
  """
  follows = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] != 0)
  losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
  return jnp.sum(losses * follows) / jnp.maximum(jnp.sum(follows), 1)


def pretrain_decoder(setup: PretrainingSetup, params: Any, rows: PackedText) -> Any:
  """Trains `language_model`, whose tree is `params`: decoder, token table and text head. Returns the trained tree.

  Raises:
    InputError: the three arrays differ in shape, hold no row, or a token lies outside the vocabulary.
  """
  config, shapes = setup.model.language_model, [array.shape for array in rows]
  if len(set(shapes)) > 1 or len(shapes[0]) != 2:
    raise InputError(f'tokens, segments and positions have shapes {shapes}: expected [N, T] three times')
  order = setup.optimization.sample_rows(np.random.default_rng(setup.seed), len(rows.tokens))
  if rows.tokens.min() < 0 or rows.tokens.max() >= config.vocab_size:
    lowest, highest = rows.tokens.min(), rows.tokens.max()
    raise InputError(f'tokens lie in {lowest}..{highest}: expected 0..{config.vocab_size - 1}')
  model = Llama(config, setup.compute)

  def objective(params, batch):
    logits = model.apply({'params': params}, batch.tokens, batch.positions, batch.segments)
    return next_token_loss(logits, batch.tokens, batch.segments)

  return minimize(setup, params, objective, (PackedText(*(array[chosen] for array in rows)) for chosen in order))
