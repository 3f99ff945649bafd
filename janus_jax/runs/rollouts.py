"""Samples of stages with the objectives 'grpo' and 'dpo': images or answers with their rewards, or stored pairs."""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.data.examples import no_images
from janus_jax.data.images import generation_pixels, load_image, understanding_pixels
from janus_jax.data.tokenizer import EOS
from janus_jax.errors import InputError, shown
from janus_jax.inference.image_files import read_prompts
from janus_jax.inference.requests import LoadedJanus
from janus_jax.runs.config import TrainConfig
from janus_jax.runs.datasets import read_world
from janus_jax.runs.image_codes import image_encoder
from janus_jax.runs.rewards import open_reward
from janus_jax.toy import rewards as toy_rewards
from janus_jax.training.preference_config import PreferenceConfig
from janus_jax.training.rollout import Rollout, chosen_prompts
from janus_jax.training.samplers import AnswerSampler, ImageSampler, Sampler
from janus_jax.training.samples import Sample, SampledAnswer, SampledImage, sample_batch
from janus_jax.training.stages import Stage
from janus_jax.training.step_config import StepConfig
from janus_jax.training.training_run import SampleBatches

# Keys of a line of stored pairs beside 'prompt'.
PAIR = ('chosen', 'rejected')


def open_rollouts(
  config: TrainConfig, stages: Sequence[Stage], step: StepConfig, janus: LoadedJanus, streams: int
) -> dict[str, SampleBatches]:
  """By name, what some stages of a run learn from that have another objective than the data's targets.

  Args:
    config: the run's.
    stages: those whose images have the sizes of `janus`.
    step: their steps'.
    janus: model, tokenizer and template; parameters are those of the update.
    streams: that the rows of a batch are cut into.

  Raises:
    InputError: a file of prompts or pairs that is not one, a reward that is not there, nothing to learn from.
  """
  found: dict[str, SampleBatches] = {}
  for stage in stages:
    if stage.objective == 'sft':
      continue
    try:
      if stage.preference.pairs:
        found[stage.name] = _stored_pairs(stage, janus, config, streams)
      else:
        found[stage.name] = _rollout(stage, janus, config, step, streams)
    except InputError as error:
      raise InputError(f'stages.{stage.name}.preference: {error}') from None
  return found


def _rollout(stage: Stage, janus: LoadedJanus, config: TrainConfig, step: StepConfig, streams: int) -> Rollout:
  preference = stage.preference
  if not any(reward.weight for reward in preference.reward_configs.values()):
    raise InputError('rewards: expected one or more with a weight')
  is_toy = config.data.name == 'toy' and not preference.prompts
  if not is_toy and not preference.prompts:
    raise InputError("prompts is empty: expected a file, as data.name is not 'toy'")
  if 'toy' in preference.rewards and not is_toy:
    raise InputError("rewards.toy judges the toy world's own prompts: expected data.name 'toy' and no file of prompts")
  world, answers = read_world(config, janus.config) if is_toy else None, preference.samples == 'answers'
  if is_toy:
    of_world = toy_rewards.training_questions if answers else toy_rewards.training_prompts
    records = of_world(world, preference.skills, config.seed)
  else:
    records = _with_images(read_prompts(preference.prompts), preference.prompts, answers)
  if 'answer' in preference.rewards and not all('answer' in record for record in records):
    raise InputError(f"rewards.answer: expected an 'answer' with every prompt of {preference.prompts}")
  own = step.for_stage(stage)
  toy = functools.partial(toy_rewards.exact_judge, world)
  rewards = {name: open_reward(name, how, toy, own) for name, how in preference.reward_configs.items()}
  kind = AnswerSampler if answers else ImageSampler
  sampler = kind(janus, step.compute.dtype, records, preference, config.seed)
  _ = sampler.ids  # Checks them.
  return Rollout(sampler, rewards, preference, stage.objective, config.seed, streams)


def _with_images(records: Sequence[dict[str, Any]], path: str, answers: bool) -> list[dict[str, Any]]:
  """The records of a file, with the paths of the 'images' that answers are about. Raises InputError for one that is
  not there.
  """
  if not answers:
    return list(records)
  found = []
  for number, record in enumerate(records, start=1):
    images = record.get('images', record.get('image', []))
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
      raise InputError(f'{path} prompt {number}: images are {shown(images)}: expected a list of paths')
    where = f'{path} prompt {number}'
    found.append({**record, 'images': [_existing(image, os.path.dirname(path), where) for image in images]})
  return found


def _existing(name: str, folder: str, where: str) -> str:
  path = os.path.join(folder, name)
  if not os.path.exists(path):
    raise InputError(f'{where}: {path}: no such file')
  return path


def _stored_pairs(stage: Stage, janus: LoadedJanus, config: TrainConfig, streams: int) -> 'StoredPairs':
  if stage.objective != 'dpo':
    raise InputError(f"pairs is for the objective 'dpo': expected '', as the objective is {stage.objective!r}")
  path, answers = stage.preference.pairs, stage.preference.samples == 'answers'
  records = _with_images(read_prompts(path), path, answers)
  sampler = (AnswerSampler if answers else ImageSampler)(janus, 'float32', records, stage.preference, config.seed)
  _ = sampler.ids  # Checks them.
  for number, record in enumerate(records, start=1):
    for key in PAIR:
      where = f'{path} pair {number}: {key}'
      if answers:
        record[key] = _answer_ids(record.get(key), stage.preference.max_new_tokens, janus, where)
      else:
        record[key] = _image_or_codes(record.get(key), os.path.dirname(path), janus, where)
  return StoredPairs(sampler, stage.preference, config.seed, streams)


def _image_or_codes(value: Any, folder: str, janus: LoadedJanus, where: str) -> str | np.ndarray:
  """The path of an image that is there, or int32[P] codes."""
  vq = janus.config.vq
  if isinstance(value, str):
    return _existing(value, folder, where)
  try:
    codes = np.asarray(value)
  except ValueError:
    codes = np.empty(0)
  if codes.shape != (vq.num_tokens,) or codes.dtype.kind != 'i' or codes.min() < 0 or codes.max() >= vq.codebook_size:
    raise InputError(f'{where}: expected the path of an image, or {vq.num_tokens} codes below {vq.codebook_size}')
  return codes.astype(np.int32)


def _answer_ids(value: Any, longest: int, janus: LoadedJanus, where: str) -> list[int]:
  """The ids of an answer and its end, as training has them."""
  if not isinstance(value, str) or not value.strip():
    raise InputError(f'{where}: {shown(value)}: expected an answer')
  ids = janus.tokenizer.encode(f' {value.strip()}{EOS}', add_bos=False)
  if len(ids) > longest:
    raise InputError(f'{where}: {len(ids)} tokens: expected at most {longest} (max_new_tokens)')
  return ids


class StoredPairs:
  """Pairs of a file: for each update the next ones, in an order of the seed's (`rollout.chosen_prompts`)."""

  def __init__(self, sampler: Sampler, preference: PreferenceConfig, seed: int, streams: int):
    """The records of `sampler` hold for each of PAIR a path or codes, or the ids of an answer."""
    self._sampler, self._preference, self._seed, self._streams = sampler, preference, seed, streams
    self._encode: Callable[[np.ndarray], jax.Array] | None = None

  def __call__(self, update: int, params: Any) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """The batch of an update. Raises InputError for an image that cannot be read."""
    how, sampler = self._preference, self._sampler
    chosen = chosen_prompts(len(sampler.records), how.num_prompts, update, self._seed)
    samples = [self._sample(index, key, params) for index in chosen for key in PAIR]
    pad = sampler.janus.tokenizer_and_template()[0].special.pad if how.has_unconditional else None
    none = np.zeros(len(samples), np.float32)
    room = {'streams': self._streams, 'images': sampler.images}
    return sample_batch(samples, none, sampler.length, pad=pad, **room), {}

  def _sample(self, index: int, key: str, params: Any) -> Sample:
    sampler = self._sampler
    record, ids, config = sampler.records[index], sampler.ids[index], sampler.janus.config
    if self._preference.samples == 'images':
      return SampledImage(record, ids, self._codes(record[key], params), None)
    size = config.image_size
    pixels = [understanding_pixels(load_image(path), size) for path in record['images']]
    seen = np.stack(pixels) if pixels else no_images(size)
    return SampledAnswer(record, ids, record[key], '', seen, config.image_token_id)

  def _codes(self, value: str | np.ndarray, params: Any) -> np.ndarray:
    if not isinstance(value, str):
      return value
    vq = self._sampler.janus.config.vq
    if self._encode is None:
      # A copy: parameters are donated, and the VQ stays as it is.
      self._encode = image_encoder(vq, jax.tree.map(jnp.copy, params['vq']))
    return np.asarray(self._encode(generation_pixels(load_image(value), vq.image_size)[None]))[0].astype(np.int32)
