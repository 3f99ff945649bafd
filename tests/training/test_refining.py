"""Training of a refiner: the loss where it is known, what is learned, and going on after a stop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.errors import InputError
from janus_jax.models.config import ComputeConfig, VQConfig
from janus_jax.models.refiner import RefinerConfig, initial_params, refine
from janus_jax.models.vq import VQ
from janus_jax.training import refining
from janus_jax.training.refining import RefiningConfig, RefiningSetup, encode_pairs, flow_loss, train_refiner

VQ_CONFIG = VQConfig(8, 16, code_dim=4, z_channels=32, base_channels=32, channel_multipliers=(1, 1), num_res_blocks=0)
SETTINGS = RefiningConfig(
  steps=6,
  batch_size=8,
  learning_rate=3e-3,
  warmup_steps=2,
  block_out_channels=(8,),
  norm_num_groups=4,
  flow_steps=2,
  save_every=2,
)
LARGE = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3)).astype(np.uint8)
BATCH = {'large': LARGE, 'small': LARGE[:, ::2, ::2]}


@pytest.fixture(scope='module')
def setup() -> RefiningSetup:
  images = jnp.zeros((1, 8, 8, 3))
  params = jax.jit(VQ(VQ_CONFIG, ComputeConfig()).init)(jax.random.key(0), images)['params']
  return RefiningSetup(SETTINGS, VQ_CONFIG, jax.device_get(params), seed=1, made_by='a', log_every=2)


def test_the_loss_of_a_network_that_says_nothing():
  """Velocity 0, as of fresh weights: the mean square of noise - x is that of the noise, 1, and that of x."""
  config = RefinerConfig(code_dim=4, block_out_channels=(8,), norm_num_groups=4, residual_std=0.5)
  pairs = jnp.zeros((64, 16, 16, 7)), jnp.full((64, 16, 16, 3), 1.5)
  loss = flow_loss(config, initial_params(config, 0), pairs, jax.random.key(0))
  assert loss == pytest.approx(1 + 3**2, rel=0.01)


def test_pairs_are_what_the_vq_shows_and_what_it_lacks(setup):
  config = SETTINGS.network(4)
  conditions, residuals = encode_pairs(config, VQ_CONFIG, setup.vq_params, BATCH)
  assert (conditions.shape, residuals.shape) == ((8, 16, 16, 7), (8, 16, 16, 3))
  np.testing.assert_allclose(conditions[..., :3] + residuals, LARGE / 127.5 - 1, atol=1e-5)
  # Codes are replaced, all of them by this much noise, and decoded so.
  noisy, _ = encode_pairs(config, VQ_CONFIG, setup.vq_params, BATCH, (jax.random.key(0), 1.0))
  assert np.mean(np.any(conditions[..., 3:] != noisy[..., 3:], axis=-1)) > 0.8
  assert (conditions[..., :3] != noisy[..., :3]).mean() > 0.8


def test_one_image_is_learned_better_than_a_filter_enlarges_it(setup):
  small = {name: np.broadcast_to(array[:1], array.shape) for name, array in BATCH.items()}
  settings = dataclasses.replace(SETTINGS, steps=150, learning_rate=1e-2, ema_decay=0.9, code_noise=0.0, flow_steps=4)
  network, params = train_refiner(dataclasses.replace(setup, settings=settings, log_every=50), lambda step: small)
  conditions, residuals = encode_pairs(network, VQ_CONFIG, setup.vq_params, {k: v[:1] for k, v in small.items()})
  assert network.residual_std == pytest.approx(float(jnp.sqrt(jnp.mean(residuals**2))), rel=1e-4)
  noise = jax.random.normal(jax.random.key(5), residuals.shape)
  refined = refine(network, params, conditions, noise)
  error = jnp.mean(jnp.square(refined - (LARGE[:1] / 127.5 - 1)))
  assert error < 0.3 * jnp.mean(jnp.square(residuals))


def test_a_training_that_is_stopped_goes_on_to_the_bit(setup, tmp_path, monkeypatch):
  def batches(step):
    return {name: np.roll(array, step, axis=0) for name, array in BATCH.items()}

  whole = train_refiner(setup, batches)
  saved = dataclasses.replace(setup, save_path=str(tmp_path / 'state'))
  save, calls = refining._save, []

  def killed(*arguments):
    save(*arguments)
    calls.append(arguments)
    raise SystemExit

  monkeypatch.setattr(refining, '_save', killed)
  with pytest.raises(SystemExit):
    train_refiner(saved, batches)
  monkeypatch.undo()
  seen = []
  found = train_refiner(saved, lambda step: seen.append(step) or batches(step))
  assert seen == [*range(refining.MEASURED_BATCHES), 2, 3, 4, 5]
  assert found[0] == whole[0]
  jax.tree.map(np.testing.assert_array_equal, found[1], whole[1])
  with pytest.raises(InputError, match='state: left by another training, of other settings, data or VQ: expected'):
    train_refiner(dataclasses.replace(saved, made_by='b'), batches)
  (tmp_path / 'state').write_bytes(b'\x81\x00')
  with pytest.raises(InputError, match=r'state: damaged \(\w+\): expected the training'):
    train_refiner(saved, batches)


def test_each_step_has_noise_of_its_own(setup):
  network, key = SETTINGS.network(4), jax.random.key(0)
  update, losses = refining._jit_update(SETTINGS, VQ_CONFIG, network), []
  for step in (0, 1, 1):
    params = jax.device_put(initial_params(network, 0))
    opt_state, ema = SETTINGS.optimizer().init(params), jax.tree.map(jnp.copy, params)
    state = refining.RefiningState(jnp.asarray(step, jnp.int32), params, ema, opt_state, jnp.ones(()))
    losses.append(float(update(state, setup.vq_params, BATCH, key)[1]))
  assert losses[0] != losses[1] == losses[2]


def test_what_cannot_be_trained_is_refused(setup):
  with pytest.raises(InputError, match=r'refining\.batch_size is 12: expected a multiple of the 8 devices'):
    train_refiner(dataclasses.replace(setup, settings=dataclasses.replace(SETTINGS, batch_size=12)), lambda _: BATCH)
  with pytest.raises(InputError, match=r'warmup_steps is 6: expected 0 or more, and less than steps \(6\)'):
    dataclasses.replace(SETTINGS, warmup_steps=6)
  settings = dataclasses.replace(SETTINGS, learning_rate=1e30)
  with pytest.raises(InputError, match=r'the loss is (nan|inf) by step \d: expected a lower refining\.learning_rate'):
    train_refiner(dataclasses.replace(setup, settings=settings), lambda _: BATCH)
