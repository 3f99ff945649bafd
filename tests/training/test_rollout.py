"""Samples to learn from: what decides them, what becomes of their rewards, and that learning from them raises these."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from training import batches
from training.batches import CONFIG, NUM_CODES, params
from training.steps import STAGE_3, STEP, stage_values

from janus_jax.data.prompts import generation_ids
from janus_jax.errors import InputError
from janus_jax.inference.answering import answer
from janus_jax.inference.generation import generate_images
from janus_jax.inference.requests import LoadedJanus
from janus_jax.models.janus import Janus
from janus_jax.training.losses import log_probs
from janus_jax.training.preference import ADVANTAGE, SAMPLE
from janus_jax.training.preference_config import PreferenceConfig
from janus_jax.training.rollout import Rollout
from janus_jax.training.samplers import AnswerSampler, ImageSampler
from janus_jax.training.samples import SampledImage
from janus_jax.training.state import flatten, new_state
from janus_jax.training.step import jit_train_step

PROMPTS = ('a box', 'two cats on a mat', 'sea', 'Hi')
WANTED = 3
WANTED_BELOW = 30  # Of 308 tokens.
SEED = 11


def wanted_code(samples, janus) -> list[float]:
  """How much of an image is one certain code."""
  return [float((sample.codes == WANTED).mean()) for sample in samples]


@pytest.fixture(scope='module')
def janus(tmp_path_factory) -> LoadedJanus:
  spec = batches.make_spec(tmp_path_factory.mktemp('tokenizer'))
  return LoadedJanus(CONFIG, {}, spec.tokenizer, spec.template)


def rollout(janus: LoadedJanus, objective='grpo', rewards=None, records=None, **preference) -> Rollout:
  rewards = rewards or {'wanted': wanted_code}
  settings = PreferenceConfig(rewards={name: {} for name in rewards}, **{'num_prompts': 2, 'group': 4} | preference)
  records = records or [{'prompt': prompt} for prompt in PROMPTS]
  return Rollout(ImageSampler(janus, 'float32', records, settings, SEED), rewards, settings, objective, SEED)


def test_samples_depend_on_parameters_seed_and_update_alone(janus):
  tree = params()
  first, again = rollout(janus).generate(5, tree), rollout(janus).generate(5, tree)
  for one, other in zip(first, again, strict=True):
    assert one.record == other.record
    np.testing.assert_array_equal(one.codes, other.codes)
    np.testing.assert_array_equal(one.pixels, other.pixels)
  codes = {tuple(sample.codes) for sample in first}
  assert len(codes) == len(first) == 8
  reseeded = dataclasses.replace(rollout(janus).sampler, seed=SEED + 1)
  for other in (rollout(janus).generate(6, tree), reseeded(5, (0, 1), tree)):
    assert not codes & {tuple(sample.codes) for sample in other}


def test_samples_are_what_generate_makes_of_their_prompts(janus):
  """Greedily, so that the noise does not matter; with guidance, from parameters in another dtype than the stored."""
  own = rollout(janus, group=2, cfg_weight=3.0, temperature=1e-4)
  own = dataclasses.replace(own, sampler=dataclasses.replace(own.sampler, dtype='bfloat16'))
  rounded = jax.tree.map(lambda leaf: jnp.asarray(leaf, 'bfloat16'), params())
  for first in own.generate(0, params())[::2]:
    whole = dataclasses.replace(janus, params=rounded)
    (images,) = generate_images(whole, [first.record['prompt']], num_images=1, cfg_weight=3.0, temperature=0.0)
    np.testing.assert_array_equal(first.codes, images[0].codes)
    np.testing.assert_array_equal(first.pixels, images[0].pixels)


def sample(janus: LoadedJanus, number: int) -> SampledImage:
  ids = generation_ids(janus.tokenizer, janus.template, PROMPTS[0], max_length=99)
  return SampledImage({'prompt': PROMPTS[0]}, ids, np.full(NUM_CODES, number, np.int32), None)


def test_every_code_has_the_advantage_of_its_sample(janus):
  samples, rewards = [sample(janus, i) for i in range(8)], np.array([[1.0, 2, 3, 4], [5, 5, 5, 5]])
  batch = rollout(janus).batch(samples, rewards)
  targets = batch['weights'] > 0
  assert targets.sum(axis=1).tolist() == [NUM_CODES] * 8
  for row in range(8):
    assert set(batch['targets'][row][targets[row]]) == {row}
    assert set(batch[SAMPLE][row][targets[row]]) == {row}
    assert len(set(batch[ADVANTAGE][row][targets[row]])) == 1
  advantages = batch[ADVANTAGE].sum(axis=1) / NUM_CODES
  np.testing.assert_allclose(advantages, [-1.3416, -0.4472, 0.4472, 1.3416, 0, 0, 0, 0], atol=1e-3)


def test_pairs_are_the_best_and_the_worst_of_each_prompt(janus):
  samples, rewards = [sample(janus, i) for i in range(8)], np.array([[2.0, 9, 1, 4], [0.5, 0, 0.2, 0.1]])
  batch = rollout(janus, 'dpo').batch(samples, rewards)
  chosen = [set(row[weights > 0]) for row, weights in zip(batch['targets'], batch['weights'])]
  assert chosen == [{1}, {2}, {4}, {5}]
  np.testing.assert_array_equal(batch[SAMPLE].max(axis=1), [0, 1, 2, 3])


def test_rewards_are_summed_by_weight_and_told_apart(janus):
  def length(samples, janus):
    return [float(len(sample.record['prompt'])) for sample in samples]

  own = rollout(janus, rewards={'wanted': wanted_code, 'length': length})
  weights = {'wanted': {'weight': 10.0}, 'length': {'weight': 0.0}}
  own = dataclasses.replace(own, preference=dataclasses.replace(own.preference, rewards=weights))
  batch, figures = own(0, params())
  samples = own.generate(0, params())
  assert figures['reward/length'] == np.mean(length(samples, janus))
  assert figures['reward/wanted'] == pytest.approx(np.mean(wanted_code(samples, janus)))
  assert figures['reward'] == pytest.approx(10 * figures['reward/wanted'])
  expected = own.batch(samples, 10 * np.reshape(wanted_code(samples, janus), (2, 4)))
  np.testing.assert_array_equal(batch[ADVANTAGE], expected[ADVANTAGE])


def test_learning_from_a_reward_raises_it(janus):
  own, step = rollout(janus, group=8), jit_train_step('static')
  config = dataclasses.replace(STEP, objective='grpo', preference=own.preference)
  state, rewards = new_state(jax.tree.map(jnp.asarray, params()), STAGE_3, config.optimizer), []
  vq = {path: np.array(leaf) for path, leaf in flatten(state.params).items() if path.startswith('vq/')}
  for update in range(25):
    samples, figures = own(update, state.params)
    state, _ = step(state, {'samples': samples}, stage_values(3e-3), masks=STAGE_3, config=config)
    rewards.append(figures['reward'])
  assert np.mean(rewards[:3]) < 0.2
  assert np.mean(rewards[-3:]) > 0.8
  for path, leaf in flatten(state.params).items():
    if path in vq:
      np.testing.assert_array_equal(leaf, vq[path], err_msg=path)


def test_a_prompt_that_cannot_be_read_is_refused(janus):
  with pytest.raises(InputError, match='prompt 2 of 2: the prompt is empty'):
    _ = rollout(janus, records=[{'prompt': 'a'}, {'prompt': ' '}]).sampler.ids


def questions() -> list[dict]:
  rng = np.random.default_rng(0)
  images = [rng.integers(0, 256, (16, 16, 3), np.uint8) for _ in range(3)]
  return [
    {'prompt': 'what?', 'images': images[:1]},
    {'prompt': 'Hi', 'images': []},
    {'prompt': 'both', 'images': images[1:]},
  ]


def answers(janus: LoadedJanus, reward, **preference) -> Rollout:
  settings = {'samples': 'answers', 'num_prompts': 3, 'group': 4, 'max_new_tokens': 5, 'rewards': {'own': {}}}
  settings = PreferenceConfig(**settings | preference)
  sampler = AnswerSampler(janus, 'float32', questions(), settings, SEED)
  return Rollout(sampler, {'own': reward}, settings, 'grpo', SEED, streams=2)


def share_of_wanted(samples, janus) -> list[float]:
  return [float(np.mean(np.array(sample.answer) < WANTED_BELOW)) for sample in samples]


def test_sampled_answers_are_those_of_answer_and_depend_on_seed_and_update_alone(janus):
  tree = params()
  greedy = answers(janus, share_of_wanted, temperature=1e-4).generate(0, tree)
  whole = dataclasses.replace(janus, params=tree)
  for sample in greedy:
    images = [Image.fromarray(pixels) for pixels in sample.record['images']]
    (expected,) = answer(whole, [images], [sample.record['prompt']], max_new_tokens=5)
    ended = [janus.tokenizer.special.eos] if len(expected.token_ids) < 5 else []
    assert (sample.text, sample.answer) == (expected.text, expected.token_ids + ended)
  own = answers(janus, share_of_wanted)
  first, again, other = (own.generate(update, tree) for update in (0, 0, 3))
  assert [sample.answer for sample in first] == [sample.answer for sample in again]
  assert len({tuple(sample.answer) for sample in (*first, *other)}) == 24


def test_the_trainer_gives_sampled_answers_the_probability_that_they_were_sampled_with(janus):
  """That of the model's forward pass over the one row alone, at the temperature; the rows are cut into two streams. An
  answer with the placeholder of an image has no image there.
  """
  tree, own = params(), answers(janus, share_of_wanted, temperature=0.7, log_probs='sampled')
  samples = own.generate(0, tree)
  samples[0] = samples[0]._replace(answer=[5, CONFIG.image_token_id, 7])
  batch = own.batch(samples, np.zeros((3, 4)))
  assert batch['pixels'].shape[:2] == (2, 12)
  config = dataclasses.replace(STEP, objective='grpo', preference=own.preference).for_samples()
  found = np.asarray(log_probs(tree, batch, config))
  model = Janus(CONFIG)
  for row, sample in enumerate(samples):
    ids, said = np.array([sample.ids]), np.array([sample.answer])
    embed = ('embed_prompt', ids, sample.pixels) if len(sample.pixels) else ('embed_text', ids)
    x = model.apply({'params': tree}, *embed[1:], method=embed[0])
    x = jnp.concatenate([x, model.apply({'params': tree}, said, method='embed_text')], axis=1)
    places = np.arange(x.shape[1])[None]
    hidden, _ = model.apply({'params': tree}, x, places, np.ones_like(places), method='hidden')
    logits = np.asarray(model.apply({'params': tree}, hidden, method='text_logits'))[0] / 0.7
    predicted = jax.nn.log_softmax(logits)[len(sample.ids) - 1 : -1]
    expected = np.take_along_axis(np.asarray(predicted), np.array(sample.answer)[:, None], 1)[:, 0]
    np.testing.assert_allclose(found[row][batch['weights'][row] > 0], expected, atol=1e-5)


def test_learning_from_a_reward_of_answers_raises_it(janus):
  own, step = answers(janus, share_of_wanted, group=8), jit_train_step('static')
  config = dataclasses.replace(STEP, objective='grpo', preference=own.preference)
  state, rewards = new_state(jax.tree.map(jnp.asarray, params()), STAGE_3, config.optimizer), []
  for update in range(25):
    samples, figures = own(update, state.params)
    state, _ = step(state, {'samples': samples}, stage_values(3e-3), masks=STAGE_3, config=config)
    rewards.append(figures['reward'])
  assert np.mean(rewards[:3]) < 0.2
  assert np.mean(rewards[-3:]) > 0.8
