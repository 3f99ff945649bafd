"""Learning from rewards (GRPO, arXiv 2402.03300) and pairs (DPO, arXiv 2305.18290): functions of log-probabilities.

Either loss depends on the parameters through the log-probabilities of the targets alone. So the step needs no other
gradient than that of cross-entropy: a first pass finds the log-probabilities, the loss is differentiated by them, and
each target's cross-entropy is then weighted by the result (`target_factors`). The pairs of a batch may lie in different
microbatches, and logits exist for a few positions at a time, as in all training.

Samples are drawn, with their rewards, from the parameters that the update starts from: there is one update for each
batch of samples. So the ratio of new to old probabilities is 1, counts by its gradient alone, and is never clipped.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.models.lora import is_adapter
from janus_jax.training.image_encoding import Batch
from janus_jax.training.losses import log_probs
from janus_jax.training.preference_config import PreferenceConfig
from janus_jax.training.state import Flat, unflatten
from janus_jax.training.step_config import StepConfig

# Beside the arrays of any batch, one of samples has, for each target: int32[R, T] its sample, and float32[R, T] the
# advantage of that.
SAMPLE, ADVANTAGE = 'sample', 'advantage'
# Added to the standard deviation of a group's rewards, as in DeepSeek's and T2I-R1's.
EPSILON = 1e-4
Figures = Mapping[str, jax.Array]


def group_advantages(rewards: np.ndarray) -> np.ndarray:
  """float32[U, G], rewards of the samples of each prompt -> how much better each is than its group: of mean 0 and
  standard deviation 1, or 0 where all are alike.
  """
  centred = rewards - rewards.mean(axis=1, keepdims=True)
  return (centred / (rewards.std(axis=1, keepdims=True) + EPSILON)).astype(np.float32)


def grpo_loss(
  log_probs: jax.Array, reference: jax.Array, samples: Batch, preference: PreferenceConfig
) -> tuple[jax.Array, Figures]:
  """Mean over targets of -advantage * ratio + beta * (e^d - d - 1), d = reference - log_probs, which estimates the
  divergence of the model from the reference (T2I-R1's `compute_loss`).

  Args:
    log_probs: float32[R, T], of each target.
    reference: float32[R, T], those that the reference gives it.
    samples: the batch.
    preference: gives beta.

  Returns:
    the loss, and `log_prob` and, where beta is not 0, `divergence`, means over targets.
  """
  weights = samples['weights']
  total = jnp.maximum(weights.sum(), 1)
  ratio = jnp.exp(log_probs - jax.lax.stop_gradient(log_probs))
  d = reference - log_probs
  divergence = jnp.exp(d) - d - 1
  losses = preference.beta * divergence - samples[ADVANTAGE] * ratio
  figures = {'log_prob': log_probs} | ({'divergence': divergence} if preference.beta else {})
  return jnp.sum(weights * losses) / total, {name: jnp.sum(weights * x) / total for name, x in figures.items()}


def dpo_loss(
  log_probs: jax.Array, reference: jax.Array, samples: Batch, preference: PreferenceConfig
) -> tuple[jax.Array, Figures]:
  """Mean over pairs of -log sigmoid(beta * margin). The margin is by how much more than the reference the model favours
  the chosen sample, 2 i, over the rejected one, 2 i + 1: log-probabilities of whole samples, sums over their targets.

  Arguments as of `grpo_loss`. Returns the loss, `margin` and `pairs_right`, the fraction of margins above 0.
  """
  ahead = samples['weights'] * (log_probs - reference)
  sums = jax.ops.segment_sum(ahead.ravel(), samples[SAMPLE].ravel(), 2 * preference.num_prompts)
  chosen, rejected = sums.reshape(-1, 2).T
  margins = chosen - rejected
  loss = -jnp.mean(jax.nn.log_sigmoid(preference.beta * margins))
  return loss, {'margin': jnp.mean(margins), 'pairs_right': jnp.mean(margins > 0, dtype=jnp.float32)}


LOSSES: Mapping[str, Callable[..., tuple[jax.Array, Figures]]] = {'grpo': grpo_loss, 'dpo': dpo_loss}


def with_factors(
  params: Flat, reference: Flat | None, samples: Batch, config: StepConfig
) -> tuple[Batch, jax.Array, Figures]:
  """The samples with 'factors' that make of the gradient of their summed cross-entropy that of the objective.

  Args:
    params: path -> array.
    reference: path -> array of the parameters that the reference has another value of; the factors of LoRA are left out
      of it. None where the objective needs no reference.
    samples: the batch.
    config: with the stage's objective.

  Returns:
    the batch, the loss, and figures about it.
  """
  found = log_probs(unflatten(params), samples, config)
  other = found
  if reference is not None:
    base = {path: leaf for path, leaf in {**params, **reference}.items() if not is_adapter(path)}
    other = log_probs(unflatten(base), samples, config)

  def loss(found: jax.Array) -> tuple[jax.Array, Figures]:
    return LOSSES[config.objective](found, other, samples, config.preference)

  (value, figures), gradient = jax.value_and_grad(loss, has_aux=True)(found)
  return {**samples, 'factors': -gradient}, value, figures


def split_samples(batch: Mapping[str, Any]) -> tuple[Batch, Batch | None]:
  """The batch of a stage, and the samples in it, if there are any."""
  return {name: x for name, x in batch.items() if name != 'samples'}, batch.get('samples')
