"""GRPO and DPO: losses and gradients against torch's, over transformers' modules, and what such code gets wrong."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training import batches
from training.batches import CONFIG, NUM_CODES, params
from training.steps import PARTS, STAGE_3, STEP, gradients_of_first_step, stage_values, to_numpy

from janus_jax.conversion.configs import janus_to_huggingface
from janus_jax.conversion.lazy import from_numpy
from janus_jax.conversion.translate import parameter_shapes, params_from_tensors, tensors_from_params
from janus_jax.data.prompts import generation_ids, left_pad, unconditional_ids
from janus_jax.inference.decoder import make_decoder, prompt_positions
from janus_jax.inference.drawing import guided_logits
from janus_jax.models.config import ComputeConfig
from janus_jax.models.lora import LoraConfig, adapted_shapes, new_factors, target_modules
from janus_jax.training.losses import log_probs
from janus_jax.training.preference import group_advantages, with_factors
from janus_jax.training.preference_config import PreferenceConfig, needs_reference
from janus_jax.training.rollout import chosen_prompts
from janus_jax.training.run_config import row_length
from janus_jax.training.samples import SampledImage, sample_batch
from janus_jax.training.state import flatten, new_state, unflatten
from janus_jax.training.step import jit_train_step

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

PROMPTS = ('a box', 'two cats on a mat')
ADVANTAGES = np.array([1.0, -0.5, 0.7, -1.2], np.float32)
LENGTH = 64
GUIDANCE, TEMPERATURE, BETA = 3.0, 0.7, 0.3


@pytest.fixture(scope='module')
def spec(tmp_path_factory):
  return batches.make_spec(tmp_path_factory.mktemp('tokenizer'))


@pytest.fixture(scope='module')
def samples(spec) -> list[SampledImage]:
  """Two of each prompt."""
  rng, found = np.random.default_rng(3), []
  for prompt in PROMPTS:
    ids = generation_ids(spec.tokenizer, spec.template, prompt, max_length=LENGTH)
    for _ in range(2):
      codes = rng.integers(0, CONFIG.vq.codebook_size, NUM_CODES).astype(np.int32)
      found.append(SampledImage({'prompt': prompt}, ids, codes, None))
  return found


def step_of(objective: str, **changes):
  preference = PreferenceConfig(num_prompts=2, group=2, beta=BETA, cfg_weight=GUIDANCE, temperature=TEMPERATURE)
  fields = {name: changes.pop(name) for name in ('accumulation', 'loss_chunk') if name in changes}
  preference = dataclasses.replace(preference, **changes)
  return dataclasses.replace(STEP, objective=objective, preference=preference, **fields)


def batch_for(samples, spec, step, advantages=ADVANTAGES):
  pad = spec.tokenizer.special.pad if step.for_samples().guidance != 1 else None
  return sample_batch(samples, advantages, LENGTH, pad=pad)


def other_params() -> dict:
  """The reference: not the model itself, so that its part in the loss shows."""
  rng = np.random.default_rng(9)
  return jax.tree.map(lambda leaf: leaf + 0.03 * rng.normal(size=leaf.shape).astype(np.float32), params())


def torch_model(tree):
  fields = janus_to_huggingface(CONFIG, 'float32')
  model = transformers.JanusForConditionalGeneration(transformers.JanusConfig.from_dict(fields)).eval()
  weights = tensors_from_params({path: from_numpy(leaf, path) for path, leaf in flatten(tree).items()}, 'huggingface')
  model.load_state_dict({name: torch.tensor(array[...]) for name, array in weights.items()})
  return model


def torch_logits(model, ids, codes):
  text = model.model.language_model.embed_tokens(torch.tensor([ids]))
  generated = model.prepare_embeddings_for_image_generation(codes[None, :-1])
  hidden = model.model.language_model(inputs_embeds=torch.cat([text, generated], 1)).last_hidden_state
  return model.model.generation_head(hidden[0, len(ids) - 1 :])


def torch_log_probs(model, sample, log_probs: str, pad: int):
  """float32[P] of the codes of a sample."""
  codes = torch.tensor(sample.codes).long()
  logits = torch_logits(model, sample.ids, codes)
  if log_probs == 'sampled':
    free = torch_logits(model, unconditional_ids(sample.ids, pad), codes)
    logits = (free + GUIDANCE * (logits - free)) / TEMPERATURE
  return logits.log_softmax(-1).gather(1, codes[:, None])[:, 0]


def torch_loss(objective: str, model, reference, samples, log_probs: str, pad: int):
  """Written as the papers have it, sample by sample."""
  found = [torch_log_probs(model, sample, log_probs, pad) for sample in samples]
  with torch.no_grad():
    others = [torch_log_probs(reference, sample, log_probs, pad) for sample in samples]
  if objective == 'dpo':
    ahead = [(one - other).sum() for one, other in zip(found, others)]
    return -sum(torch.nn.functional.logsigmoid(BETA * (ahead[i] - ahead[i + 1])) for i in (0, 2)) / 2
  losses = []
  for one, other, advantage in zip(found, others, ADVANTAGES):
    ratio = (one - one.detach()).exp()
    divergence = (other - one).exp() - (other - one) - 1
    losses.append(-(ratio * float(advantage) - BETA * divergence).mean())
  return sum(losses) / len(losses)


@pytest.fixture(scope='module')
def torch_models():
  return torch_model(params()), torch_model(other_params())


@pytest.mark.parametrize('objective', ['grpo', 'dpo'])
@pytest.mark.parametrize(
  'how', [{}, {'log_probs': 'sampled', 'accumulation': 2}, {'loss_chunk': 16}], ids=['whole', 'sampled', 'chunks']
)
def test_loss_and_gradients_equal_torch(objective, how, samples, spec, torch_models):
  model, reference = torch_models
  step = step_of(objective, **how)
  model.zero_grad()
  expected = torch_loss(objective, model, reference, samples, step.preference.log_probs, spec.tokenizer.special.pad)
  expected.backward()
  tensors = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in model.named_parameters()}
  lazy = {name: from_numpy(tensor.numpy(), name) for name, tensor in tensors.items()}
  gradients = params_from_tensors(parameter_shapes(CONFIG), lazy, 'huggingface', 'torch')

  state = new_state(params(), STAGE_3, step.optimizer)
  state = state.replace(reference={path: leaf for path, leaf in flatten(other_params()).items() if path in STAGE_3})
  batch = {'samples': batch_for(samples, spec, step)}
  state, metrics = jit_train_step('static')(state, batch, stage_values(), masks=STAGE_3, config=step)
  assert abs(float(metrics['loss']) - expected.item()) < 1e-4
  ours = gradients_of_first_step(state, metrics)
  reached = 0
  for path in ours:
    theirs = gradients[path][...]
    assert np.abs(ours[path] - theirs).max() < 1e-4 * max(1, np.abs(theirs).max()), path
    reached += np.abs(theirs).max() > 1e-3
  assert reached > 10


@pytest.mark.parametrize('log_probs_of', ['conditional', 'sampled'])
def test_the_sampler_and_the_trainer_agree_on_log_probabilities(log_probs_of, samples, spec):
  """The decoder with its cache, which draws, against the step's forward pass."""
  step = step_of('grpo', log_probs=log_probs_of)
  sampled = log_probs_of == 'sampled'
  guidance, temperature = (GUIDANCE, TEMPERATURE) if sampled else (1.0, 1.0)
  ours = log_probs(params(), batch_for(samples, spec, step), step.for_samples())
  decoder = make_decoder(CONFIG, ComputeConfig(), params())
  for row, sample in enumerate(samples):
    ids = [sample.ids, unconditional_ids(sample.ids, spec.tokenizer.special.pad)][: 1 + sampled]
    tokens, mask = left_pad(ids, spec.tokenizer.special.pad)
    cache = decoder.empty_cache((mask,), len(ids), [NUM_CODES])
    hidden, cache = decoder.hidden(decoder.method('embed_text', tokens), prompt_positions(mask), cache)
    x = decoder.method('embed_codes', np.tile(sample.codes[:-1], (len(ids), 1)))
    positions = len(sample.ids) + jnp.arange(NUM_CODES - 1) + jnp.zeros((len(ids), 1), jnp.int32)
    rest, _ = decoder.hidden(x, positions, cache.writing(1))
    hidden = jnp.concatenate([hidden[:, -1:], rest], axis=1)
    logits = jax.vmap(lambda x: guided_logits(decoder.method('image_logits', x), guidance), 1)(hidden)[:, 0]
    theirs = jax.nn.log_softmax(logits / temperature)[jnp.arange(NUM_CODES), sample.codes]
    first = len(sample.ids) - 1
    np.testing.assert_allclose(ours[row, first : first + NUM_CODES], theirs, atol=1e-5)
  assert not ours[len(samples) :].any()


def test_rewards_that_are_all_alike_give_the_gradient_of_the_divergence_alone(samples, spec):
  rewards = np.array([[1.0, 1.0], [0.0, 1.0]])
  advantages = group_advantages(rewards)
  assert not advantages[0].any()
  np.testing.assert_allclose(advantages[1], [-1, 1], rtol=1e-3)
  step = step_of('grpo')
  flat, reference = flatten(params()), flatten(other_params())
  batch = batch_for(samples, spec, step, advantages.ravel())
  mixed = with_factors(flat, reference, batch, step)[0]['factors']
  divergence = with_factors(flat, reference, batch_for(samples, spec, step, np.zeros(4)), step)[0]['factors']
  np.testing.assert_array_equal(mixed[:2], divergence[:2])
  assert np.abs(divergence[:2]).max() > 0
  assert np.abs(mixed[2:] - divergence[2:]).max() > 1e-3


def test_at_its_start_the_divergence_from_itself_has_neither_value_nor_gradient(samples, spec):
  step = step_of('grpo')
  batch = batch_for(samples, spec, step, np.zeros(4))
  found, loss, figures = with_factors(flatten(params()), flatten(params()), batch, step)
  assert float(loss) == float(figures['divergence']) == 0
  assert not np.asarray(found['factors']).any()


def test_the_reference_of_factors_is_the_model_without_them(samples, spec):
  """As peft's `disable_adapter`: nothing is stored for it."""
  lora = LoraConfig(rank=2, targets=('language_model',))
  shapes = {path: leaf.shape for path, leaf in flatten(params()).items()}
  rng, flat = np.random.default_rng(5), flatten(params())
  for module in target_modules(shapes, lora.targets):
    factors = new_factors(module, shapes[f'{module}/kernel'], lora, 0)
    flat |= {path: x + 0.05 * rng.normal(size=x.shape).astype(np.float32) for path, x in factors.items()}
  assert adapted_shapes(shapes, lora).keys() == flat.keys()
  trained = frozenset(path for path in flat if path.endswith(('lora_a', 'lora_b')))
  state = new_state(unflatten(flat), trained, STEP.optimizer, with_reference=True)
  assert state.reference == {}
  step = step_of('grpo', beta=1.0)
  batch = batch_for(samples, spec, step, np.zeros(4))
  _, loss, _ = with_factors(flat, state.reference, batch, step)
  own, other = log_probs(unflatten(flat), batch, step), log_probs(params(), batch, step)
  d = np.asarray(other - own, np.float64)
  expected = (np.exp(d) - d - 1)[batch['weights'] > 0].mean()
  assert float(loss) == pytest.approx(expected, rel=1e-4)
  assert expected > 1e-3


@pytest.mark.parametrize('supervised', [0.0, 0.5])
def test_frozen_parts_stay_and_a_supervised_batch_adds_its_share(supervised, samples, spec):
  step = step_of('grpo', supervised=supervised)
  trained = frozenset(path for path in STAGE_3 if path.startswith(PARTS))
  data = batches.batch_of(batches.make_examples(spec, batches.records()), batches.ROWS)
  run = jit_train_step('static')

  def gradients(batch, config):
    state = new_state(params(), trained, config.optimizer, with_reference=True)
    state, metrics = run(state, batch, stage_values(), masks=trained, config=config)
    return to_numpy(state), metrics, gradients_of_first_step(state, metrics)

  own = {'samples': batch_for(samples, spec, step)}
  state, metrics, both = gradients(own | (data if supervised else {}), step)
  before, after = flatten(params()), flatten(state.params)
  changed = {path for path in after if not np.array_equal(before[path], after[path])}
  assert changed
  assert changed <= trained
  _, alone, parts = gradients(own, step)
  if supervised:
    _, found, added = gradients(data, STEP)
    assert float(metrics['loss']) == pytest.approx(supervised * float(found['loss']) + float(alone['loss']), rel=1e-5)
    parts = {path: parts[path] + supervised * added[path] for path in parts}
  for path in both:
    np.testing.assert_allclose(both[path], parts[path], atol=2e-6, err_msg=path)


def test_every_prompt_comes_once_before_any_comes_again():
  found = [index for update in range(10) for index in chosen_prompts(7, 3, update, seed=4)]
  assert sorted(found[:7]) == sorted(found[7:14]) == sorted(found[14:21]) == list(range(7))
  assert found[:7] != found[7:14]
  assert found == [index for update in range(10) for index in chosen_prompts(7, 3, update, seed=4)]
  assert found[:3] != chosen_prompts(7, 3, 0, seed=5)


def test_rows_hold_the_longest_sample():
  assert row_length(44) == 48
  assert row_length(584) == 640


def test_what_needs_a_reference():
  found = [needs_reference(*asked) for asked in (('sft', 1), ('grpo', 0), ('grpo', 0.1), ('dpo', 0.1))]
  assert found == [False, False, True, True]
