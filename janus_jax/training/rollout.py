"""What an update of a stage with rewards learns from: samples of some prompts, rewarded, as a batch."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from janus_jax.inference.requests import LoadedJanus
from janus_jax.training import hosts
from janus_jax.training.preference import group_advantages
from janus_jax.training.preference_config import PreferenceConfig
from janus_jax.training.samplers import Sampler
from janus_jax.training.samples import Sample, sample_batch

# Samples, and the model that generated them -> float[N].
Reward = Callable[[Sequence[Sample], LoadedJanus], Sequence[float]]


def chosen_prompts(count: int, number: int, update: int, seed: int) -> list[int]:
  """Indices of the `number` prompts of an update, of `count`: all in an order of the seed's, then all in another."""
  indices = range(update * number, (update + 1) * number)
  return [int(_order(count, seed, index // count)[index % count]) for index in indices]


@functools.lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
  return np.random.default_rng([seed, epoch]).permutation(count)


@dataclasses.dataclass(frozen=True)
class Rollout:
  """Generates the samples of a stage and has them rewarded.

  Attributes:
    sampler: generates them.
    rewards: by name, those of `preference.rewards`.
    preference: the stage's settings.
    objective: the stage's, 'grpo' or 'dpo'.
    seed: the run's.
    streams: that the rows of a batch are cut into.
  """

  sampler: Sampler
  rewards: Mapping[str, Reward]
  preference: PreferenceConfig
  objective: str
  seed: int
  streams: int = 1

  def generate(self, update: int, params: Any) -> list[Sample]:
    """The samples of an update, those of one prompt after another."""
    chosen = chosen_prompts(len(self.sampler.records), self.preference.num_prompts, update, self.seed)
    return self.sampler(update, chosen, params)

  def __call__(self, update: int, params: Any) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """The batch that an update learns from, and figures about it: mean rewards, the fraction of groups whose rewards
    are all alike, of which nothing is learned, and seconds.
    """
    how, began = self.preference, time.perf_counter()
    samples = self.generate(update, params)
    generated = time.perf_counter()
    janus = dataclasses.replace(self.sampler.janus, params=params)
    with hosts.together():
      found = {name: list(map(float, reward(samples, janus))) for name, reward in self.rewards.items()}
    # All processes learn from those of the first: a reward may give another number each time.
    rewards = {name: np.array(values) for name, values in hosts.gathered(found)[0].items()}
    total = sum(config.weight * rewards[name] for name, config in how.reward_configs.items())
    total = total.reshape(how.num_prompts, how.group)
    batch = self.batch(samples, total)
    seconds = {'sampling_seconds': time.perf_counter() - began, 'reward_seconds': time.perf_counter() - generated}
    figures = {f'reward/{name}': float(values.mean()) for name, values in rewards.items()}
    figures |= {'reward': float(total.mean()), 'groups_alike': float((total.std(axis=1) == 0).mean())}
    return batch, figures | seconds | {'samples_per_second': len(samples) / (generated - began)}

  def batch(self, samples: Sequence[Sample], rewards: np.ndarray) -> dict[str, np.ndarray]:
    """The batch of samples with rewards float[U, G]."""
    advantages = group_advantages(rewards)
    kept = np.arange(len(samples))
    if self.objective == 'dpo':
      # Of groups whose rewards are all alike nothing is to be learned: both have the advantage 0.
      best, worst = rewards.argmax(axis=1), rewards.argmin(axis=1)
      firsts = np.arange(len(rewards)) * rewards.shape[1]
      kept = np.stack([firsts + best, firsts + worst], axis=1).ravel()
    sampler = self.sampler
    return sample_batch(
      [samples[i] for i in kept],
      advantages.ravel()[kept],
      sampler.length,
      pad=sampler.janus.tokenizer_and_template()[0].special.pad if self.preference.has_unconditional else None,
      streams=self.streams,
      images=sampler.images,
    )
