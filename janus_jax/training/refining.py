"""Training of a refiner (`models/refiner.py`) for a frozen VQ, from images at the refined size and at the VQ's.

Its loop is its own: one process, data-parallel over its devices. What is returned is an average of the weights (EMA).
"""

import concurrent.futures
import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.serialization
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from janus_jax.data.whole_files import replacing
from janus_jax.errors import InputError
from janus_jax.models.config import ComputeConfig, VQConfig
from janus_jax.models.janus import normalize_pixels
from janus_jax.models.refiner import CHANNELS, Refiner, RefinerConfig, condition, initial_params
from janus_jax.models.vq import VQ
from janus_jax.sharding.mesh import make_mesh
from janus_jax.training.interrupts import StopRequest
from janus_jax.training.optimizer import kernel_mask
from janus_jax.training.progress import Progress
from janus_jax.training.state import Placement, place_batch

MEASURED_BATCHES = 8  # That the scale of residuals is read off.
B2, MAX_GRAD_NORM = 0.99, 1.0
# Step -> {'large': uint8[B, scale size, scale size, 3], 'small': uint8[B, size, size, 3]}: the same images.
Batches = Callable[[int], Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RefiningConfig:
  """Settings of the training of a refiner.

  Attributes:
    steps: updates.
    batch_size: images of an update, over all devices.
    learning_rate: the highest; it falls along a cosine.
    warmup_steps: first of the `steps`, in which the rate rises from 0 along a line.
    final_fraction: fraction of the learning rate that is left at the end.
    weight_decay: weight decay of kernels.
    ema_decay: decay of the average of the weights, which is what is written.
    code_noise: fraction of the codes that are replaced by any others, and decoded so: generated codes have mistakes.
    save_every: steps between saves from which a training that was stopped goes on.
    held_out: images kept out of training, on which the refiner is measured.
    scale: sides of the refined image, as a multiple of those of the VQ's.
    block_out_channels: channels at each resolution, the highest first; each next one has half the side.
    layers_per_block: residual blocks of a resolution.
    norm_num_groups: groups of each normalisation.
    flow_steps: steps from noise to an image.
  """

  steps: int
  batch_size: int
  learning_rate: float
  warmup_steps: int = 100
  final_fraction: float = 0.02
  weight_decay: float = 0.01
  ema_decay: float = 0.999
  code_noise: float = 0.05
  save_every: int = 1000
  held_out: int = 512
  scale: int = RefinerConfig.scale
  block_out_channels: tuple[int, ...] = RefinerConfig.block_out_channels
  layers_per_block: int = RefinerConfig.layers_per_block
  norm_num_groups: int = RefinerConfig.norm_num_groups
  flow_steps: int = RefinerConfig.flow_steps

  def __post_init__(self):
    if not 0 <= self.warmup_steps < self.steps:
      raise InputError(f'warmup_steps is {self.warmup_steps}: expected 0 or more, and less than steps ({self.steps})')
    self.network(code_dim=1)  # Checks the sizes.

  def network(self, code_dim: int, residual_std: float = 1.0) -> RefinerConfig:
    """The network's sizes. Raises InputError where they do not fit each other."""
    names = ('scale', 'block_out_channels', 'layers_per_block', 'norm_num_groups', 'flow_steps')
    sizes = {name: getattr(self, name) for name in names}
    return RefinerConfig(code_dim=code_dim, residual_std=residual_std, **sizes)

  def optimizer(self) -> optax.GradientTransformation:
    """AdamW; clips gradients at MAX_GRAD_NORM."""
    last = self.learning_rate * self.final_fraction
    schedule = optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, self.warmup_steps, self.steps, last)
    adamw = optax.adamw(schedule, b2=B2, weight_decay=self.weight_decay, mask=kernel_mask)
    return optax.chain(optax.clip_by_global_norm(MAX_GRAD_NORM), adamw)


@dataclasses.dataclass(frozen=True)
class RefiningSetup:
  """A training of a refiner.

  Attributes:
    settings: sizes, steps, rates.
    vq: sizes of the VQ at the size of the images that it makes.
    vq_params: its tree, which stays as it is.
    seed: of the first weights, of noise and times.
    save_path: file that the state is kept in until the training is done; '' keeps none.
    made_by: text in that file: a training that this differs from does not go on there.
    log_every: steps between lines of the loss.
  """

  settings: RefiningConfig
  vq: VQConfig
  vq_params: Any
  seed: int
  save_path: str = ''
  made_by: str = ''
  log_every: int = 100


@flax.struct.dataclass
class RefiningState:
  """Updates so far int32; weights, their average, the optimizer's state; residuals' standard deviation float32."""

  step: jax.Array
  params: Any
  ema: Any
  opt_state: optax.OptState
  residual_std: jax.Array


@functools.partial(jax.jit, static_argnames=('network', 'vq_config'))
def encode_pairs(
  network: RefinerConfig, vq_config: VQConfig, vq_params: Any, batch: Mapping[str, jax.Array], noise: Any = None
) -> tuple[jax.Array, jax.Array]:
  """The VQ's part in an update.

  Args:
    network: the refiner's sizes.
    vq_config: the VQ's.
    vq_params: tree of the VQ.
    batch: as of `Batches`.
    noise: (key, fraction of the codes to replace); None replaces none.

  Returns:
    conditions float32[B, h, w, 3 + code_dim] (`models.refiner.condition`), residuals float32[B, h, w, 3]: what the
    enlarged images lack.
  """
  vq = VQ(vq_config, ComputeConfig())
  codes = vq.apply({'params': vq_params}, normalize_pixels(batch['small']), method='encode')
  if noise is not None:
    chosen, others = jax.random.split(noise[0])
    other = jax.random.randint(others, codes.shape, 0, vq_config.codebook_size)
    codes = jnp.where(jax.random.bernoulli(chosen, noise[1], codes.shape), other, codes)
  decoded = vq.apply({'params': vq_params}, codes, method='decode')
  # As an image file has it (`data.images.to_uint8`).
  shown = normalize_pixels(jnp.clip((decoded + 1) / 2 * 255, 0, 255).astype(jnp.uint8))
  conditions = condition(network, shown, codes, jnp.asarray(vq_params['codebook'], jnp.float32))
  return conditions, normalize_pixels(batch['large']) - conditions[..., :CHANNELS]


def flow_loss(network: RefinerConfig, params: Any, pairs: tuple[jax.Array, jax.Array], key: jax.Array) -> jax.Array:
  """Mean squared error of the velocity at times that are logit-normal (arXiv 2403.03206, section 3.1).

  Args:
    network: sizes.
    params: tree of `Refiner`.
    pairs: conditions, and residuals in units of pixels in [-1, 1] (`encode_pairs`).
    key: of times and noise.
  """
  conditions, x = pairs[0], pairs[1] / network.residual_std
  times, noises = jax.random.split(key)
  t = jax.nn.sigmoid(jax.random.normal(times, (len(x),)))
  noise = jax.random.normal(noises, x.shape)
  weight = t[:, None, None, None]
  inputs = jnp.concatenate([(1 - weight) * x + weight * noise, conditions], axis=-1)
  velocity = Refiner(network, ComputeConfig()).apply({'params': params}, inputs, t)
  return jnp.mean(jnp.square(velocity - (noise - x)))


@functools.lru_cache(maxsize=4)
def _jit_update(settings: RefiningConfig, vq: VQConfig, network: RefinerConfig) -> Callable:
  """(state, vq_params, batch, key) -> (state, loss), compiled once for all trainings alike. The state is given up."""
  optimizer = settings.optimizer()

  @functools.partial(jax.jit, donate_argnums=0)
  def update(
    state: RefiningState, vq_params: Any, batch: Mapping[str, jax.Array], key: jax.Array
  ) -> tuple[RefiningState, jax.Array]:
    codes_key, flow_key = jax.random.split(jax.random.fold_in(key, state.step))
    noise = (codes_key, settings.code_noise) if settings.code_noise else None
    pairs = encode_pairs(network, vq, vq_params, batch, noise)
    loss, gradients = jax.value_and_grad(functools.partial(flow_loss, network))(state.params, pairs, flow_key)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    # Shorter at first, so that the average forgets where it began.
    decay = jnp.minimum(settings.ema_decay, (1 + state.step) / (10 + state.step))
    ema = optax.incremental_update(params, state.ema, 1 - decay)
    return state.replace(step=state.step + 1, params=params, ema=ema, opt_state=opt_state), loss

  return update


def _first_state(setup: RefiningSetup, batches: Batches, mesh: jax.sharding.Mesh, vq_params: Any) -> RefiningState:
  """Fresh weights, and the scale of the residuals of the first batches."""
  network = setup.settings.network(setup.vq.code_dim)
  found = (
    encode_pairs(network, setup.vq, vq_params, place_batch(batches(step), mesh)) for step in range(MEASURED_BATCHES)
  )
  std = jnp.sqrt(jnp.mean(jnp.stack([jnp.mean(jnp.square(residuals)) for _, residuals in found])))
  if not 0 < std < jnp.inf:
    expected = "expected a finite one above 0: images that differ from the VQ's"
    raise InputError(f'residuals have a standard deviation of {float(std)}: {expected}')
  params = jax.device_put(initial_params(network, setup.seed))
  opt_state = jax.jit(setup.settings.optimizer().init)(params)
  return RefiningState(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), opt_state, std)


def _restored(setup: RefiningSetup, state: RefiningState) -> RefiningState:
  """The state that a training which was stopped has left; else the first one.

  Raises:
    InputError: it was of another training, or is damaged.
  """
  path = setup.save_path
  if not path or not os.path.exists(path):
    return state
  expected = 'expected the training that it is of, or that the file is removed'
  try:
    found = flax.serialization.msgpack_restore(pathlib.Path(path).read_bytes())
    if found['made_by'] != setup.made_by:
      raise InputError(f'{path}: left by another training, of other settings, data or VQ: {expected}')
    state = flax.serialization.from_state_dict(state, found['state'])
  except InputError:
    raise
  except Exception as error:  # msgpack raises many.
    raise InputError(f'{path}: damaged ({type(error).__name__}): {expected}') from None
  logging.info('%s: goes on at step %d', path, int(state.step))
  return state


def _save(setup: RefiningSetup, state: RefiningState) -> None:
  if setup.save_path:
    content = {'made_by': setup.made_by, 'state': flax.serialization.to_state_dict(jax.device_get(state))}
    with replacing(setup.save_path) as partial:
      pathlib.Path(partial).write_bytes(flax.serialization.msgpack_serialize(content))


def train_refiner(setup: RefiningSetup, batches: Batches) -> tuple[RefinerConfig, Any]:
  """Trains a refiner. Returns its sizes and the average of its weights, numpy arrays in a tree.

  A training that is killed goes on at its last save. Signals that ask for an end save first.

  Raises:
    InputError: rows that the devices do not divide, a state of another training, a loss that is not finite.
    KeyboardInterrupt: a signal asked for an end.
  """
  settings, mesh = setup.settings, make_mesh({'data': -1}, jax.local_devices())
  if settings.batch_size % mesh.size:
    raise InputError(f'refining.batch_size is {settings.batch_size}: expected a multiple of the {mesh.size} devices')
  everywhere = Placement(mesh, {}).everywhere
  vq_params = jax.device_put(setup.vq_params, everywhere)
  state = _restored(setup, _first_state(setup, batches, mesh, vq_params))
  network, state = settings.network(setup.vq.code_dim, float(state.residual_std)), jax.device_put(state, everywhere)
  update, key = _jit_update(settings, setup.vq, network), jax.random.key(setup.seed)
  first, total = int(state.step), 0.0
  with StopRequest().listening() as stop, Progress(settings.steps, first) as progress:
    for step, batch in _read_ahead(batches, first, settings.steps):
      state, loss = update(state, vq_params, place_batch(batch, mesh), key)
      stop.step_done()
      progress.update('refiner')
      total += loss
      if step % setup.log_every == 0 or step == settings.steps:
        count = (step - first - 1) % setup.log_every + 1
        mean, total = float(total) / count, 0.0
        progress.log(f'refiner: step {step}, loss {mean:.4f}')
        if not np.isfinite(mean):
          raise InputError(f'refiner: the loss is {mean} by step {step}: expected a lower refining.learning_rate')
      if stop.asked or (step % settings.save_every == 0 and step < settings.steps):
        _save(setup, state)
      if stop.asked:
        raise KeyboardInterrupt
  return network, jax.device_get(state.ema)


def _read_ahead(batches: Batches, first: int, last: int) -> Iterator[tuple[int, Mapping[str, np.ndarray]]]:
  """(number of the update, from 1, and its batch), one read while the one before it is computed."""
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    waiting = pool.submit(batches, first)
    for step in range(first, last):
      batch = waiting.result()
      if step + 1 < last:
        waiting = pool.submit(batches, step + 1)
      yield step + 1, batch
