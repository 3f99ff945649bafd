"""Samples that an update learns from: images of some prompts, generated from the parameters as they are, with rewards.

What is sampled depends on the parameters, the run's seed and the number of the update alone: a run that was killed in
the middle of a rollout samples the same again.
"""

import dataclasses
import functools
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.data import prompts as prompts_lib
from janus_jax.data.examples import Example, generation_example, no_images
from janus_jax.data.packing import BatchShape, make_batch
from janus_jax.inference.generation import prompt_rows, stream_images
from janus_jax.inference.requests import ImageSettings, LoadedJanus, decoder_for
from janus_jax.training import hosts
from janus_jax.training.preference import ADVANTAGE, SAMPLE, group_advantages
from janus_jax.training.preference_config import PreferenceConfig
from janus_jax.training.run_config import row_length


class SampledImage(NamedTuple):
  """A sampled image: the record of its prompt, which has a 'prompt', the ids of that, up to begin-of-image, codes
  int32[P], pixels uint8[size, size, 3].
  """

  record: Mapping[str, Any]
  ids: Sequence[int]
  codes: np.ndarray
  pixels: np.ndarray


# Samples, and the model that generated them -> float[N].
Reward = Callable[[Sequence[SampledImage], LoadedJanus], Sequence[float]]


def chosen_prompts(count: int, number: int, update: int, seed: int) -> list[int]:
  """Indices of the `number` prompts of an update, of `count`: all in an order of the seed's, then all in another."""
  indices = range(update * number, (update + 1) * number)
  return [int(_order(count, seed, index // count)[index % count]) for index in indices]


@functools.lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
  return np.random.default_rng([seed, epoch]).permutation(count)


def sample_batch(
  samples: Sequence[SampledImage], advantages: np.ndarray, length: int, pad: int | None
) -> dict[str, np.ndarray]:
  """Samples as a batch, a row each (`packing.make_batch`), with SAMPLE and ADVANTAGE of each target.

  Args:
    samples: N.
    advantages: float32[N].
    length: T.
    pad: the id that stands for a prompt in N rows more, which have no targets; None for no such rows.
  """
  N, P = len(samples), len(samples[0].codes)
  examples = [_example(sample.ids, sample.codes) for sample in samples]
  shape = BatchShape(N, length, 0, 0)
  batch = make_batch(examples, range(N), shape, num_codes=P, image_size=1, generation_size=None)
  del batch['pixels']
  is_target = batch['weights'] > 0
  batch[SAMPLE] = np.where(is_target, np.arange(N, dtype=np.int32)[:, None], 0)
  batch[ADVANTAGE] = np.where(is_target, advantages[:, None], 0).astype(np.float32)
  if pad is None:
    return batch
  dropped = [_example(prompts_lib.unconditional_ids(sample.ids, pad), sample.codes) for sample in samples]
  others = make_batch(dropped, range(N), shape, num_codes=P, image_size=1, generation_size=None)
  none = {name: np.zeros_like(batch[name]) for name in ('weights', SAMPLE, ADVANTAGE)}
  return {name: np.concatenate([x, (others | none)[name]]) for name, x in batch.items()}


def _cast(params: Any, dtype: str) -> Any:
  """The tree with its floats in another dtype; kernels in int8 stay."""
  return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, params)


def _example(ids: Sequence[int], codes: np.ndarray) -> Example:
  none = no_images(1)
  return generation_example(np.array(ids, np.int32), codes, none, none)


@dataclasses.dataclass(frozen=True)
class Rollout:
  """Generates the samples of a stage and has them rewarded.

  Attributes:
    janus: model, tokenizer and template; without parameters.
    dtype: dtype that images are generated in.
    records: of the prompts, each with a 'prompt'.
    rewards: by name, those of `preference.rewards`.
    preference: the stage's settings.
    objective: the stage's, 'grpo' or 'dpo'.
    seed: the run's.
  """

  janus: LoadedJanus
  dtype: str
  records: Sequence[Mapping[str, Any]]
  rewards: Mapping[str, Reward]
  preference: PreferenceConfig
  objective: str
  seed: int

  @functools.cached_property
  def ids(self) -> list[list[int]]:
    """Ids of each prompt, up to begin-of-image. Raises InputError for one that is empty or too long."""
    tokenizer, template = self.janus.tokenizer_and_template()
    return prompt_rows(self.janus.config, [record['prompt'] for record in self.records], tokenizer, template)

  @functools.cached_property
  def length(self) -> int:
    """Positions of a row."""
    return row_length(max(map(len, self.ids)) + self.janus.config.vq.num_tokens - 1)

  def generate(self, update: int, params: Any) -> list[SampledImage]:
    """The samples of an update, those of one prompt after another."""
    how, (tokenizer, _) = self.preference, self.janus.tokenizer_and_template()
    first = update * how.num_prompts
    chosen = chosen_prompts(len(self.records), how.num_prompts, update, self.seed)
    # The index of an image among all of the run decides its noise. Evaluations have seeds of their own.
    rows = {first + i: self.ids[index] for i, index in enumerate(chosen)}
    wanted = [(prompt, sample) for prompt in rows for sample in range(how.group)]
    settings = ImageSettings(
      cfg_weight=how.cfg_weight,
      temperature=how.temperature,
      seed=zlib.crc32(f'samples {self.seed}'.encode()),
      batch_size=len(wanted),
    )
    decoder = decoder_for(dataclasses.replace(self.janus, params=_cast(params, self.dtype)))
    stream = stream_images(decoder, rows, wanted, tokenizer.special.pad, settings)
    found = {(image.prompt_index, image.image_index): image for image in stream}
    return [
      SampledImage(self.records[chosen[prompt - first]], rows[prompt], found[prompt, i].codes, found[prompt, i].pixels)
      for prompt, i in wanted
    ]

  def __call__(self, update: int, params: Any) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """The batch that an update learns from, and figures about it: mean rewards, the fraction of groups whose rewards
    are all alike, of which nothing is learned, and seconds.
    """
    how, began = self.preference, time.perf_counter()
    samples = self.generate(update, params)
    generated = time.perf_counter()
    janus = dataclasses.replace(self.janus, params=params)
    found = {name: list(map(float, reward(samples, janus))) for name, reward in self.rewards.items()}
    # All processes learn from those of the first: a reward may give another number each time.
    rewards = {name: np.array(values) for name, values in hosts.gathered(found)[0].items()}
    total = sum(config.weight * rewards[name] for name, config in how.reward_configs.items())
    total = total.reshape(how.num_prompts, how.group)
    batch = self.batch(samples, total)
    seconds = {'sampling_seconds': time.perf_counter() - began, 'reward_seconds': time.perf_counter() - generated}
    figures = {f'reward/{name}': float(values.mean()) for name, values in rewards.items()}
    figures |= {'reward': float(total.mean()), 'groups_alike': float((total.std(axis=1) == 0).mean())}
    return batch, figures | seconds | {'sampled_images_per_second': len(samples) / (generated - began)}

  def batch(self, samples: Sequence[SampledImage], rewards: np.ndarray) -> dict[str, np.ndarray]:
    """The batch of samples with rewards float[U, G]."""
    advantages = group_advantages(rewards)
    kept = np.arange(len(samples))
    if self.objective == 'dpo':
      # Of groups whose rewards are all alike nothing is to be learned: both have the advantage 0.
      best, worst = rewards.argmax(axis=1), rewards.argmin(axis=1)
      firsts = np.arange(len(rewards)) * rewards.shape[1]
      kept = np.stack([firsts + best, firsts + worst], axis=1).ravel()
    pad = self.janus.tokenizer_and_template()[0].special.pad if self.preference.has_unconditional else None
    return sample_batch([samples[i] for i in kept], advantages.ravel()[kept], self.length, pad)
