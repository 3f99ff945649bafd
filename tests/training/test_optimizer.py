"""AdamW against torch's, rules against arithmetic, schedules against their formulas."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from janus_jax.errors import InputError
from janus_jax.training import optimizer
from janus_jax.training.optimizer import OptimizerConfig, check_rules, factor_of, learning_rates

PATHS = (
  'language_model/layers/attn/q/kernel',
  'language_model/layers/attn_norm/scale',
  'language_model/embed_tokens/table',
  'vision_encoder/layers/norm1/bias',
  'vision_encoder/layers/attn/q/bias',
  'vision_encoder/pos_embed',
  'vq/encoder/norm_out/scale',
)


def sampled(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(seed)
  return {path: (scale * rng.normal(size=(3, 4))).astype(np.float32) for path in PATHS}


def steps(config: OptimizerConfig, gradients: list, learning_rate: float, weight_decay: float) -> dict:
  params = sampled(0)
  state = optimizer.directions(config).init(params)
  chain = optimizer.adamw(config, jnp.float32(learning_rate), jnp.float32(weight_decay))
  for g in gradients:
    params, state = optimizer.update(chain, g, state, params)
  return params


@pytest.mark.parametrize('size', [0.01, 10.0], ids=['below the clip', 'clipped'])
def test_steps_are_those_of_torch(size):
  torch = pytest.importorskip('torch')
  rules = (('vision_encoder/.*', 0.1), ('.*table', 3.0))
  gradients = [sampled(seed, size) for seed in range(1, 5)]
  ours = steps(OptimizerConfig(learning_rate_rules=rules), gradients, 1e-2, 0.1)
  leaves = {path: torch.nn.Parameter(torch.from_numpy(leaf.copy())) for path, leaf in sampled(0).items()}
  rates = {path: 1e-3 if path.startswith('vision') else 3e-2 if path.endswith('table') else 1e-2 for path in PATHS}
  decays = {path: 0.1 if path.endswith(('kernel', 'table', 'pos_embed')) else 0.0 for path in PATHS}
  groups = [{'params': [leaves[path]], 'lr': rates[path], 'weight_decay': decays[path]} for path in PATHS]
  adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
  for gradient in gradients:
    for path, leaf in leaves.items():
      leaf.grad = torch.from_numpy(gradient[path].copy())
    torch.nn.utils.clip_grad_norm_(leaves.values(), 1.0)
    adamw.step()
  for path, leaf in leaves.items():
    np.testing.assert_allclose(ours[path], leaf.detach().numpy(), atol=2e-6)


def test_an_update_keeps_dtypes_and_computes_in_float32():
  params = {'a/kernel': jnp.ones(4, jnp.bfloat16), 'b/kernel': jnp.ones(4)}
  decay, rate = (
    optimizer.add_decayed_weights(jnp.float32(1.0), ()),
    optimizer.scale_by_rate(jnp.float32(0.125), ()),
  )
  chain = optax.chain(decay, rate)
  updates, _ = chain.update({path: jnp.full(4, 0.5) for path in params}, chain.init(params), params)
  new = optax.apply_updates(params, updates)
  assert [leaf.dtype for leaf in new.values()] == [jnp.bfloat16, jnp.float32]
  np.testing.assert_array_equal(new['a/kernel'].astype(np.float32), np.full(4, 1 - 0.125 * 1.5))
  np.testing.assert_array_equal(new['b/kernel'], np.full(4, 1 - 0.125 * 1.5))


@pytest.mark.parametrize(('norm', 'factor'), [(0.0, 1.0), (0.5, 1.0), (1.0, 1.0), (4.0, 0.25)])
def test_clipping_shortens_only(norm, factor):
  gradients = {'a': jnp.array([0.6 * norm]), 'b': jnp.array([0.8 * norm])}
  clipped, _ = optimizer.clip_by_norm(1.0).update(gradients, optax.EmptyState())
  np.testing.assert_allclose([clipped['a'][0], clipped['b'][0]], np.array([0.6, 0.8]) * norm * factor, rtol=1e-6)


def test_the_first_rule_that_matches_the_whole_path_decides():
  rules = (('gen_head/.*', 2.0), ('.*/bias', 0.0), ('gen_head', 9.0))
  assert factor_of('gen_head/fc1/bias', rules) == 2.0
  assert factor_of('vision_aligner/fc1/bias', rules) == 0.0
  assert factor_of('vision_aligner/fc1/kernel', rules) == 1.0
  assert factor_of('x/gen_head/fc1/kernel', rules) == 1.0


def test_decay_spares_norms_and_biases_of_every_part():
  decayed = {path for path in PATHS if factor_of(path, OptimizerConfig().weight_decay_rules)}
  assert decayed == {path for path in PATHS if path.endswith(('kernel', 'table', 'pos_embed'))}


@pytest.mark.parametrize(
  ('rules', 'message'),
  [
    (
      (('.*', 1.0), ('languge_model/.*', 0.1)),
      r"^rates: 'languge_model/.\*' matches no parameter: expected .*language",
    ),
    ((('(', 1.0),), r"^rates: '\(' is no regular expression"),
  ],
)
def test_a_rule_that_can_do_nothing_is_refused(rules, message):
  with pytest.raises(InputError, match=message):
    check_rules('rates', rules, PATHS)
  check_rules('rates', rules[:1] if len(rules) > 1 else (), PATHS)


PEAK, WARMUP, STEPS = 3e-4, 10, 50


@pytest.mark.parametrize('kind', optimizer.SCHEDULES)
@pytest.mark.parametrize('final', [0.0, 0.1])
def test_schedules_by_formula(kind, final):
  rates = learning_rates(kind, PEAK, WARMUP, STEPS, final)
  assert rates.dtype == np.float32
  assert rates.shape == (STEPS,)
  progress = np.arange(STEPS - WARMUP) / (STEPS - WARMUP)
  after = {
    'constant': np.ones(STEPS - WARMUP),
    'cosine': final + (1 - final) * (1 + np.cos(np.pi * progress)) / 2,
    'linear': 1 - (1 - final) * progress,
  }[kind]
  warmup = (1 + np.arange(WARMUP)) / (1 + WARMUP)
  np.testing.assert_allclose(rates, PEAK * np.concatenate([warmup, after]), rtol=1e-5, atol=1e-6 * PEAK)


@pytest.mark.parametrize('kind', optimizer.SCHEDULES)
def test_schedules_equal_those_of_optax_after_the_warmup(kind):
  rates = learning_rates(kind, PEAK, WARMUP, STEPS, 0.1)
  theirs = {
    'constant': lambda count: PEAK,
    # Of optax's the warm-up starts at 0, one step earlier than ours.
    'cosine': optax.warmup_cosine_decay_schedule(0.0, PEAK, WARMUP, STEPS, 0.1 * PEAK),
    'linear': optax.linear_schedule(PEAK, 0.1 * PEAK, STEPS - WARMUP, WARMUP),
  }[kind]
  np.testing.assert_allclose(rates[WARMUP:], [theirs(count) for count in range(WARMUP, STEPS)], rtol=1e-5)


@pytest.mark.parametrize('kind', optimizer.SCHEDULES)
def test_schedules_of_odd_lengths(kind):
  assert learning_rates(kind, PEAK, 0, 0).shape == (0,)
  np.testing.assert_allclose(learning_rates(kind, PEAK, 0, 1), [PEAK], rtol=1e-6)
  np.testing.assert_allclose(learning_rates(kind, PEAK, 0, 3)[0], PEAK, rtol=1e-6)
  np.testing.assert_allclose(learning_rates(kind, PEAK, 3, 3), PEAK * np.array([0.25, 0.5, 0.75]), rtol=1e-6)


def test_schedules_that_cannot_be():
  with pytest.raises(InputError, match=r"^schedule is 'cosin': expected one of constant, cosine, linear$"):
    learning_rates('cosin', PEAK, 0, 10)


def test_a_stage_shorter_than_its_warmup_ends_on_the_way_up():
  long, short = (learning_rates('cosine', PEAK, 10, steps) for steps in (40, 4))
  np.testing.assert_array_equal(short, long[:4])
