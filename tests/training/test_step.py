"""The train step against itself in other forms, and through three stages. Against torch: test_step_parity.py."""

import dataclasses

import chex
import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
from training import batches
from training.batches import CONFIG, params
from training.steps import STAGE_1, STAGE_2, STAGE_3, STEP, fresh, stage_values, to_numpy

from janus_jax.models.config import ComputeConfig
from janus_jax.sharding.mesh import make_mesh
from janus_jax.training import step as step_lib
from janus_jax.training.optimizer import OptimizerConfig
from janus_jax.training.state import Placement, flatten, place_batch, start_stage, start_state, unflatten
from janus_jax.training.step import StepConfig, jit_train_step

# What trains, for how many steps, at which rate: the reports' rates.
STAGES = ((STAGE_1, 50, 1e-3), (STAGE_2, 5, 1e-4), (STAGE_3, 5, 4e-5))


def largest_difference(one: dict, other: dict) -> float:
  assert one.keys() == other.keys()
  return max(float(np.abs(one[path] - other[path]).max()) for path in one)


@pytest.fixture(scope='module')
def spec(tmp_path_factory):
  return batches.make_spec(tmp_path_factory.mktemp('tokenizer'))


@pytest.fixture(scope='module')
def examples(spec):
  return batches.make_examples(spec, batches.records())


@pytest.fixture(scope='module')
def batch(examples):
  return batches.batch_of(examples, batches.ROWS)


ONE_DEVICE = Placement.of(
  make_mesh({}, jax.devices()[:1]), {path: leaf.shape for path, leaf in flatten(params()).items()}
)


class CountCompilations:
  """How often XLA compiled the step inside a `with`."""

  def __enter__(self):
    self.steps = 0
    jax.monitoring.register_event_duration_secs_listener(self._listen)
    return self

  def __exit__(self, *_):
    jax.monitoring.unregister_event_duration_listener(self._listen)

  def _listen(self, event: str, seconds: float, **labels) -> None:
    self.steps += event.endswith('/backend_compile_duration') and 'train_step' in str(labels.get('fun_name'))


def through_stages(mode: str, batch) -> tuple[list, int]:
  """State before each stage and after the last, and after each; and how often the step was compiled."""
  step = jit_train_step(mode)
  everything = STAGE_1 | STAGE_2 | STAGE_3

  def with_moments(trained):
    return trained if mode == 'static' else everything

  state, snapshots = start_state(params(), with_moments(STAGE_1), STEP.optimizer, ONE_DEVICE), []
  with CountCompilations() as compiled:
    for trained, steps, rate in STAGES:
      state = start_stage(state, with_moments(trained), STEP.optimizer, ONE_DEVICE)
      masks = trained if mode == 'static' else {path: jnp.array(path in trained) for path in sorted(everything)}
      before = to_numpy(state)
      for _ in range(steps):
        state, metrics = step(state, batch, stage_values(rate), masks=masks, config=STEP)
      assert int(metrics['skipped']) == 0
      snapshots.append((before, to_numpy(state)))
  return snapshots, compiled.steps


@pytest.fixture(scope='module')
def static_run(batch):
  return through_stages('static', batch)


@pytest.fixture(scope='module')
def traced_run(batch):
  return through_stages('traced', batch)


def test_static_masks_compile_once_per_stage(static_run):
  assert static_run[1] == 3


def test_traced_masks_compile_once(traced_run):
  assert traced_run[1] == 1


@pytest.mark.parametrize('mode', step_lib.MODES)
def test_what_is_frozen_stays_bit_identical_and_all_else_moves(mode, request):
  snapshots, _ = request.getfixturevalue(f'{mode}_run')
  for (trained, *_), (before, after) in zip(STAGES, snapshots):
    before, after = flatten(before.params), flatten(after.params)
    for path in before:
      same = before[path].tobytes() == after[path].tobytes()
      if path not in trained:
        assert same, path
      elif path != 'vision_encoder/layers/attn/k/bias':  # It changes no attention: its gradient is mere rounding.
        assert not same, path


def test_static_frozen_parameters_have_no_moments(static_run):
  for (trained, *_), (_, after) in zip(STAGES, static_run[0]):
    assert after.opt_state.mu.keys() == trained
    assert after.opt_state.nu.keys() == trained
    assert all(np.any(moment) for moment in after.opt_state.nu.values())


def test_traced_moments_of_frozen_parameters_never_move(traced_run):
  for (trained, *_), (_, after) in zip(STAGES, traced_run[0]):
    for moments in (after.opt_state.mu, after.opt_state.nu):
      assert {path for path, moment in moments.items() if np.any(moment)} == trained


def test_static_and_traced_end_in_the_same_parameters(static_run, traced_run):
  for (_, static), (_, traced) in zip(static_run[0], traced_run[0]):
    assert largest_difference(flatten(static.params), flatten(traced.params)) < 1e-6


@pytest.fixture(scope='module')
def full_step(static_run):
  """(state, batch, values) -> (state, metrics), everything but the VQ training; compiled by `static_run`."""
  step = jit_train_step('static')
  return lambda state, batch, values: step(state, batch, values, masks=STAGE_3, config=STEP)


def test_packed_loss_equals_the_loss_of_each_example_in_a_row_of_its_own(full_step, examples, batch):
  _, packed = full_step(fresh(), batch, stage_values())
  sums, weights = np.zeros(3), np.zeros(3)
  for start in range(0, len(examples), batches.SHAPE.rows):
    alone = batches.batch_of(examples[start : start + batches.SHAPE.rows], range(batches.SHAPE.rows))
    assert alone['segments'].max() == 1 < batch['segments'].max()
    _, metrics = full_step(fresh(), alone, stage_values())
    sums += metrics['loss_sums']
    weights += metrics['loss_weights']
  np.testing.assert_array_equal(packed['loss_weights'], weights)
  np.testing.assert_allclose(packed['loss_sums'], sums, rtol=1e-6)


@pytest.mark.parametrize(('trained', 'accumulation', 'streams'), [(STAGE_1, 4, 1), (STAGE_3, 2, 2)])
def test_accumulating_microbatches_equals_one_batch(static_run, examples, trained, accumulation, streams):
  """The microbatches have unequal numbers of targets, so that a mean of means would show.

  In Stage III gradients reach SigLIP, which encodes the images of all of them a group at a time.
  """
  # More features than a microbatch has positions, of one batch less: the adaptor is applied to either.
  batch = batches.batch_of(examples, batches.ROWS, streams=streams, shape=dataclasses.replace(batches.SHAPE, images=6))
  assert len(set(batch['weights'].sum(1))) > 1
  config = dataclasses.replace(STEP, accumulation=accumulation)
  step = jit_train_step('static')
  (cut, cut_metrics), (whole, whole_metrics) = (
    step(fresh(trained=trained), batch, stage_values(), masks=trained, config=c) for c in (config, STEP)
  )
  assert (trained == STAGE_1) or np.linalg.norm(whole.opt_state.mu['vision_encoder/final_norm/scale']) > 1e-5
  for name in whole_metrics:
    np.testing.assert_allclose(cut_metrics[name], whole_metrics[name], rtol=1e-5, err_msg=name)
  assert largest_difference(to_numpy(cut.opt_state.mu), to_numpy(whole.opt_state.mu)) < 1e-6
  assert largest_difference(flatten(to_numpy(cut.params)), flatten(to_numpy(whole.params))) < 1e-6


def test_gradients_summed_up_in_bfloat16_are_right_to_a_percent(static_run, batch):
  exact = dataclasses.replace(STEP, accumulation=4)
  rounded = dataclasses.replace(
    STEP, accumulation=4, optimizer=dataclasses.replace(STEP.optimizer, gradient_sum_dtype='bfloat16')
  )
  step = jit_train_step('static')
  (state, metrics), (other, other_metrics) = (
    step(fresh(trained=STAGE_1), batch, stage_values(), masks=STAGE_1, config=c) for c in (exact, rounded)
  )
  np.testing.assert_array_equal(metrics['loss_sums'], other_metrics['loss_sums'])
  for path, first in to_numpy(state.opt_state.mu).items():
    error = np.linalg.norm(first - np.asarray(other.opt_state.mu[path])) / np.linalg.norm(first)
    assert 0 < error < 0.01, path


def test_metrics_are_norms_of_what_trains(full_step, batch):
  before = flatten(params())
  state, metrics = full_step(fresh(), batch, stage_values())
  after = flatten(to_numpy(state.params))

  def norm(leaves):
    return np.sqrt(sum(np.square(leaf, dtype=np.float64).sum() for leaf in leaves))

  assert abs(metrics['param_norm'] - norm(after[path] for path in STAGE_3)) < 1e-3
  expected = norm(after[path] - before[path] for path in STAGE_3)
  assert abs(metrics['update_norm'] - expected) < 1e-3 * expected


def test_overfits_one_batch_of_all_tasks(full_step, batch):
  state = fresh(tree=params())
  for _ in range(70):
    state, metrics = full_step(state, batch, stage_values(2e-3))
  understanding, text, generation = metrics['loss_sums'] / metrics['loss_weights']
  assert understanding < 0.02
  assert generation < 0.02
  # Nothing before it tells which of the two texts begins.
  assert text < 2 * np.log(2) / metrics['loss_weights'][1] + 0.02


def broken(kind: str, state, batch):
  """The same with a loss that is NaN, or with a finite loss and a gradient whose norm is infinite."""
  if kind == 'loss':
    return state, {**batch, 'weights': np.where(batch['loss_ids'] == 2, np.nan, batch['weights'])}
  flat = flatten(state.params)
  head = 'language_model/lm_head/kernel'
  return state.replace(params=unflatten({**flat, head: flat[head] * 1e25})), batch


@pytest.mark.parametrize('kind', ['loss', 'gradient'])
def test_what_is_not_finite_changes_nothing_but_counters(kind, full_step, batch):
  state, _ = full_step(fresh(), batch, stage_values())
  state, bad = broken(kind, state, batch)
  before = to_numpy(state)
  for count in (1, 2):
    state, metrics = full_step(state, bad, stage_values(1e-3, 0.1))
    assert np.isfinite(metrics['loss']) == (kind == 'gradient')
    assert (int(state.skipped), int(state.skipped_in_a_row), int(state.step)) == (count, count, 1 + count)
    assert int(metrics['skipped']) == int(metrics['skipped_in_a_row']) == count
  counters = {'step': before.step, 'skipped': before.skipped, 'skipped_in_a_row': before.skipped_in_a_row}
  chex.assert_trees_all_equal(to_numpy(state).replace(**counters), before)
  if kind == 'loss':
    state, metrics = full_step(state, batch, stage_values())
    assert (int(state.skipped), int(state.skipped_in_a_row), int(state.step)) == (2, 0, 4)
    assert int(state.opt_state.count) == 2


# --- bfloat16, averages

HALF = StepConfig(
  CONFIG,
  compute=ComputeConfig(dtype='bfloat16', remat='full'),
  optimizer=OptimizerConfig(ema_decay=0.75),
  loss_chunk=16,
)


@pytest.fixture(scope='module')
def half_step(static_run):
  step = jit_train_step('static')
  return lambda state, batch, values: step(state, batch, values, masks=STAGE_1, config=HALF)


def half_state():
  tree = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params())
  return fresh(HALF, STAGE_1, tree)


def test_bfloat16_compute_has_float32_masters_and_bfloat16_frozen_parameters(half_step, full_step, batch):
  state = half_state()
  before = flatten(to_numpy(state.params))
  state, metrics = half_step(state, batch, stage_values())
  for path, leaf in flatten(state.params).items():
    assert leaf.dtype == (jnp.float32 if path in STAGE_1 else jnp.bfloat16)
    assert path in STAGE_1 or np.array(leaf).tobytes() == before[path].tobytes()
  assert {leaf.dtype for leaf in jax.tree.leaves((state.opt_state.mu, state.opt_state.nu, state.ema))} == {
    np.dtype('f4')
  }
  _, exact = full_step(fresh(), batch, stage_values())
  np.testing.assert_allclose(metrics['loss'], exact['loss'], rtol=0.02)
  # Steps too small for bfloat16 add up.
  for _ in range(3):
    state, metrics = half_step(state, batch, stage_values(1e-5))
    assert metrics['update_norm'] > 1e-5


def test_average_of_what_trains(half_step, batch):
  state = half_state()
  average = {path: leaf.copy() for path, leaf in to_numpy(state.ema).items()}
  assert average.keys() == STAGE_1
  for _ in range(3):
    state, _ = half_step(state, batch, stage_values())
    now = flatten(to_numpy(state.params))
    average = {path: 0.75 * average[path] + 0.25 * now[path] for path in average}
  assert largest_difference(to_numpy(state.ema), average) < 1e-6
  before = to_numpy(state)
  assert largest_difference(before.ema, {path: now[path] for path in STAGE_1}) > 1e-4
  state, _ = half_step(state, broken('loss', state, batch)[1], stage_values())
  chex.assert_trees_all_equal(to_numpy(state.ema), before.ema)


# --- cost


def flops(trained: frozenset[str], batch) -> float:
  """Of the compiled step."""
  state = jax.eval_shape(lambda: fresh(trained=trained))
  compiled = jit_train_step('static').lower(state, batch, stage_values(), masks=trained, config=STEP).compile()
  # The body of a loop over layers would be counted once. XLA may write a scatter as a loop, but adds up little in it.
  loops = [line for line in compiled.as_text().splitlines() if ' while(' in line and 'scatter' not in line]
  assert not loops
  return compiled.cost_analysis()['flops']


def test_a_static_first_stage_costs_at_most_three_quarters(static_run, batch):
  first, full = flops(STAGE_1, batch), flops(STAGE_3, batch)
  print(f'stage I / full: {first / full:.3f}')
  assert 0.3 < first / full < 0.75


# --- many devices


def test_on_a_mesh_everything_stays_in_place_and_compiles_once(full_step, batch, examples):
  mesh = make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2})
  placement = Placement.of(mesh, {path: leaf.shape for path, leaf in flatten(params()).items()})
  config = dataclasses.replace(STEP, shardings=tuple(sorted(placement.params.items())))
  trained = STAGE_1 | {'language_model/layers/attn/o/kernel'}
  state = start_state(params(), trained, STEP.optimizer, placement)
  expected = placement.shardings(state)
  placed = place_batch(batches.batch_of(examples, batches.ROWS, streams=4), mesh)
  with CountCompilations() as compiled:
    for _ in range(3):
      state, metrics = jit_train_step('static')(state, placed, stage_values(), masks=trained, config=config)
  assert compiled.steps == 1
  same = jax.tree.map(lambda leaf, sharding: leaf.sharding.is_equivalent_to(sharding, leaf.ndim), state, expected)
  assert all(jax.tree.leaves(same)), [path for path, ok in jax.tree.leaves_with_path(same) if not ok]
  one_device = fresh(STEP, STAGE_3)
  _, exact = full_step(one_device, batch, stage_values())
  state = start_state(params(), trained, STEP.optimizer, placement)
  _, metrics = jit_train_step('static')(state, placed, stage_values(), masks=trained, config=config)
  np.testing.assert_allclose(metrics['loss_sums'], exact['loss_sums'], rtol=1e-5)
