"""Samples of stages with the objectives 'grpo' and 'dpo': images of prompts with their rewards, or stored pairs."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.data.images import generation_pixels, load_image
from janus_jax.errors import InputError
from janus_jax.inference.generation import prompt_rows
from janus_jax.inference.image_files import read_prompts
from janus_jax.inference.requests import LoadedJanus
from janus_jax.runs.config import TrainConfig
from janus_jax.runs.datasets import read_world
from janus_jax.runs.image_codes import image_encoder
from janus_jax.runs.rewards import open_reward
from janus_jax.toy import rewards as toy_rewards
from janus_jax.training.preference_config import PreferenceConfig
from janus_jax.training.rollout import Rollout, SampledImage, chosen_prompts, sample_batch
from janus_jax.training.run_config import row_length
from janus_jax.training.stages import Stage
from janus_jax.training.step_config import StepConfig
from janus_jax.training.training_run import SampleBatches

# Keys of a line of stored pairs beside 'prompt'.
PAIR = ('chosen', 'rejected')


def open_rollouts(config: TrainConfig, step: StepConfig, janus: LoadedJanus) -> dict[str, SampleBatches]:
  """By name, what the stages of a run learn from that have another objective than the data's targets.

  Args:
    config: the run's.
    step: its step's.
    janus: model, tokenizer and template; parameters are those of the update.

  Raises:
    InputError: a file of prompts or pairs that is not one, a reward that is not there, nothing to learn from.
  """
  found: dict[str, SampleBatches] = {}
  for stage in config.run_stages:
    if stage.objective == 'sft':
      continue
    try:
      if stage.preference.pairs:
        found[stage.name] = _stored_pairs(stage, janus, config)
      else:
        found[stage.name] = _rollout(stage, janus, config, step)
    except InputError as error:
      raise InputError(f'stages.{stage.name}.preference: {error}') from None
  return found


def _rollout(stage: Stage, janus: LoadedJanus, config: TrainConfig, step: StepConfig) -> Rollout:
  preference = stage.preference
  if not any(reward.weight for reward in preference.reward_configs.values()):
    raise InputError('rewards: expected one or more with a weight')
  is_toy = config.data.name == 'toy' and not preference.prompts
  if not is_toy and not preference.prompts:
    raise InputError("prompts is empty: expected a file, as data.name is not 'toy'")
  if 'toy' in preference.rewards and not is_toy:
    raise InputError("rewards.toy judges the toy world's own prompts: expected data.name 'toy' and no file of prompts")
  world = read_world(config, janus.config) if is_toy else None
  records = (
    toy_rewards.training_prompts(world, preference.skills, config.seed) if is_toy else read_prompts(preference.prompts)
  )
  own = step.for_stage(stage)
  toy = functools.partial(toy_rewards.exact_judge, world)
  rewards = {name: open_reward(name, how, toy, own) for name, how in preference.reward_configs.items()}
  rollout = Rollout(janus, step.compute.dtype, records, rewards, preference, stage.objective, config.seed)
  _ = rollout.ids  # Checks them.
  return rollout


def _stored_pairs(stage: Stage, janus: LoadedJanus, config: TrainConfig) -> 'StoredPairs':
  if stage.objective != 'dpo':
    raise InputError(f"pairs is for the objective 'dpo': expected '', as the objective is {stage.objective!r}")
  records, path = read_prompts(stage.preference.pairs), stage.preference.pairs
  folder = os.path.dirname(path)
  for number, record in enumerate(records, start=1):
    for key in PAIR:
      record[key] = _checked(record.get(key), folder, janus, f'{path} pair {number}: {key}')
  tokenizer, template = janus.tokenizer_and_template()
  ids = prompt_rows(janus.config, [record['prompt'] for record in records], tokenizer, template)
  return StoredPairs(janus, records, ids, stage.preference, config.seed)


def _checked(value: Any, folder: str, janus: LoadedJanus, where: str) -> str | np.ndarray:
  """The path of an image that is there, or int32[P] codes."""
  vq = janus.config.vq
  if isinstance(value, str):
    path = os.path.join(folder, value)
    if not os.path.exists(path):
      raise InputError(f'{where}: {path}: no such file')
    return path
  try:
    codes = np.asarray(value)
  except ValueError:
    codes = np.empty(0)
  if codes.shape != (vq.num_tokens,) or codes.dtype.kind != 'i' or codes.min() < 0 or codes.max() >= vq.codebook_size:
    raise InputError(f'{where}: expected the path of an image, or {vq.num_tokens} codes below {vq.codebook_size}')
  return codes.astype(np.int32)


class StoredPairs:
  """Pairs of a file: for each update the next ones, in an order of the seed's (`rollout.chosen_prompts`)."""

  def __init__(
    self,
    janus: LoadedJanus,
    records: Sequence[Mapping[str, Any]],
    ids: Sequence[Sequence[int]],
    preference: PreferenceConfig,
    seed: int,
  ):
    """`records` hold a path or codes for each of PAIR; `ids` are those of their prompts."""
    self._janus, self._records, self._ids, self._preference, self._seed = janus, records, ids, preference, seed
    self._length = row_length(max(map(len, ids)) + janus.config.vq.num_tokens - 1)
    self._encode: Callable[[np.ndarray], jax.Array] | None = None

  def __call__(self, update: int, params: Any) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """The batch of an update. Raises InputError for an image that cannot be read."""
    chosen = chosen_prompts(len(self._records), self._preference.num_prompts, update, self._seed)
    samples = []
    for index in chosen:
      record = self._records[index]
      samples += [SampledImage(record, self._ids[index], self._codes(record[key], params), None) for key in PAIR]
    pad = self._janus.tokenizer_and_template()[0].special.pad if self._preference.has_unconditional else None
    return sample_batch(samples, np.zeros(len(samples), np.float32), self._length, pad), {}

  def _codes(self, value: str | np.ndarray, params: Any) -> np.ndarray:
    if not isinstance(value, str):
      return value
    vq = self._janus.config.vq
    if self._encode is None:
      # A copy: parameters are donated, and the VQ stays as it is.
      self._encode = image_encoder(vq, jax.tree.map(jnp.copy, params['vq']))
    return np.asarray(self._encode(generation_pixels(load_image(value), vq.image_size)[None]))[0].astype(np.int32)
