"""States: what trains in float32 with moments of its own, what is kept between stages, where everything lies."""

import dataclasses
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training import batches

from janus_jax.models.siglip import POSITIONS, resample_positions
from janus_jax.sharding.mesh import make_mesh
from janus_jax.training.optimizer import OptimizerConfig
from janus_jax.training.state import (
  Placement,
  TrainState,
  abstract,
  evaluated_params,
  flatten,
  new_state,
  place_batch,
  resize_positions,
  start_stage,
  start_state,
  unflatten,
)

AVERAGED = OptimizerConfig(ema_decay=0.9)


@pytest.fixture(scope='module')
def params():
  return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), batches.params())


@pytest.fixture(scope='module')
def placement(params):
  return placement_on(params, {'data': 2, 'fsdp': 2, 'tensor': 2})


def placement_on(params, sizes) -> Placement:
  return Placement.of(make_mesh(sizes), {path: leaf.shape for path, leaf in flatten(params).items()})


def copied(tree):
  """What a state may take for its own."""
  return jax.tree.map(np.array, tree)


def paths_of(params, *prefixes: str) -> frozenset[str]:
  return frozenset(path for path in flatten(params) if path.startswith(prefixes))


def buffers(tree) -> list[int]:
  return [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)]


def test_flatten_and_unflatten(params):
  flat = flatten(params)
  assert flat['language_model/lm_head/kernel'].shape == (512, 64)
  chex.assert_trees_all_equal(unflatten(flat), params)


def test_only_what_trains_is_float32_and_has_moments(params):
  trained = paths_of(params, 'gen_head', 'vision_aligner')
  state = new_state(params, trained, AVERAGED)
  for path, leaf in flatten(state.params).items():
    assert leaf.dtype == (jnp.float32 if path in trained else jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(leaf, np.float32), np.asarray(flatten(params)[path], np.float32))
  for moments in (state.opt_state.mu, state.opt_state.nu):
    assert moments.keys() == trained
    assert all(leaf.dtype == jnp.float32 and not leaf.any() for leaf in moments.values())
  chex.assert_trees_all_equal(state.ema, {path: flatten(state.params)[path] for path in trained})
  assert [int(x) for x in (state.step, state.opt_state.count, state.skipped, state.skipped_in_a_row)] == [0] * 4
  assert new_state(params, trained, OptimizerConfig()).ema is None


def test_no_buffer_occurs_twice(params, placement):
  """A state is donated, and XLA refuses to be given a buffer twice."""
  trained = paths_of(params, 'gen_head')

  def wide():
    return jax.tree.map(lambda leaf: np.array(leaf, np.float32), params)

  found = buffers(new_state(jax.tree.map(jnp.asarray, wide()), trained, AVERAGED))
  assert len(set(found)) == len(found)
  state = start_state(wide(), trained, AVERAGED, placement)
  more = start_stage(state, paths_of(params, 'gen_head', 'gen_embed'), AVERAGED, placement)
  for one in (state.replace(opt_state=None), more):
    found = [leaf.addressable_shards[0].data.unsafe_buffer_pointer() for leaf in jax.tree.leaves(one)]
    assert len(set(found)) == len(found)


def advanced(state: TrainState, placement: Placement) -> TrainState:
  """As after some steps: everything that a stage may carry over is not what it begins with."""

  def ones(flat):
    return {path: jax.device_put(np.ones(leaf.shape, leaf.dtype), leaf.sharding) for path, leaf in flat.items()}

  def count(value):
    return jax.device_put(np.int32(value), placement.everywhere)

  opt_state = state.opt_state._replace(count=count(5), mu=ones(state.opt_state.mu), nu=ones(state.opt_state.nu))
  counters = {'step': count(7), 'skipped': count(3), 'skipped_in_a_row': count(2)}
  return state.replace(**counters, opt_state=opt_state, ema=ones(state.ema))


def test_a_stage_keeps_parameters_and_counters_and_starts_moments_afresh(params, placement):
  first = paths_of(params, 'gen_head', 'vision_aligner')
  state = advanced(start_state(copied(params), first, AVERAGED, placement), placement)
  before = flatten(copied(state.params))
  old_moments = jax.tree.leaves(state.opt_state)
  second = paths_of(params, 'gen_head', 'language_model/lm_head')
  entered = start_stage(state, second, AVERAGED, placement)
  assert all(leaf.is_deleted() for leaf in old_moments)
  assert [int(x) for x in (entered.step, entered.skipped, entered.skipped_in_a_row)] == [7, 3, 0]
  after = flatten(entered.params)
  assert before.keys() == after.keys()
  for path in before:
    np.testing.assert_array_equal(np.asarray(after[path], np.float32), np.asarray(before[path], np.float32))
    # What has been trained is never rounded again.
    assert after[path].dtype == (jnp.float32 if path in first | second else jnp.bfloat16)
  assert entered.opt_state.mu.keys() == entered.opt_state.nu.keys() == entered.ema.keys() == second
  assert int(entered.opt_state.count) == 0
  assert not any(leaf.any() for leaf in entered.opt_state.mu.values())
  for path, average in entered.ema.items():
    np.testing.assert_array_equal(average, jnp.ones_like(average) if path in first else after[path])


def test_the_average_is_evaluated_where_there_is_one(params):
  trained = paths_of(params, 'gen_head')
  state = new_state(params, trained, AVERAGED)
  state = state.replace(ema={path: leaf + 1 for path, leaf in state.ema.items()})
  found, stored = flatten(evaluated_params(state)), flatten(state.params)
  assert found.keys() == stored.keys()
  for path, leaf in found.items():
    np.testing.assert_array_equal(leaf, stored[path] + 1 if path in trained else stored[path])
  plain = new_state(params, trained, OptimizerConfig())
  assert evaluated_params(plain) is plain.params


def test_moments_may_be_carried_over(params, placement):
  trained = paths_of(params, 'gen_head')
  state = advanced(start_state(copied(params), trained, AVERAGED, placement), placement)
  carried = start_stage(state, trained, AVERAGED, placement, carry_moments=True)
  chex.assert_trees_all_equal(carried.replace(skipped_in_a_row=state.skipped_in_a_row), state)
  assert int(carried.skipped_in_a_row) == 0


def test_another_grid_resamples_the_table_and_its_average_and_forgets_its_moments(params, placement):
  paths = paths_of(params, 'vision_encoder')
  state = advanced(start_state(copied(params), paths, AVERAGED, placement), placement)
  before, side = flatten(state.params), round(len(flatten(state.params)[POSITIONS]) ** 0.5)
  assert resize_positions(state, side, placement) is state
  found = resize_positions(state, side + 1, placement)
  after = flatten(found.params)
  for old, new in ((before, after), (state.ema, found.ema)):
    np.testing.assert_array_equal(new[POSITIONS], resample_positions(jnp.asarray(old[POSITIONS]), side + 1))
    assert new[POSITIONS].sharding == placement.params[POSITIONS]
    for path in old.keys() - {POSITIONS}:
      np.testing.assert_array_equal(new[path], old[path], err_msg=path)
  for old, new in ((state.opt_state.mu, found.opt_state.mu), (state.opt_state.nu, found.opt_state.nu)):
    assert np.asarray(old[POSITIONS]).any()
    assert new[POSITIONS].shape == after[POSITIONS].shape
    assert not np.asarray(new[POSITIONS]).any()
    assert all(new[path] is old[path] for path in old.keys() - {POSITIONS})


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_states_lie_with_their_parameters_from_the_start(params, placement, dtype):
  """Moments in either dtype; also of what begins to train, and of parameters that come in bfloat16 from the mesh."""
  config = OptimizerConfig(ema_decay=0.9, moment_dtype=dtype)
  trained = paths_of(params, 'language_model')
  everywhere = {path: jax.device_put(leaf, placement.params[path]) for path, leaf in flatten(copied(params)).items()}
  for state in (
    start_state(copied(params), trained, config, placement),
    start_state(unflatten(everywhere), trained, config, placement),
    start_stage(
      start_state(copied(params), paths_of(params, 'gen_head'), config, placement), trained, config, placement
    ),
  ):
    expected = new_state(params, trained, config)
    chex.assert_trees_all_equal(state.opt_state, expected.opt_state)
    for path, average in state.ema.items():
      np.testing.assert_array_equal(average, flatten(state.params)[path])
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(placement.shardings(state)), strict=True):
      assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    assert state.opt_state.mu['language_model/embed_tokens/table'].addressable_shards[0].data.shape == (256, 32)
    for leaf, wanted in zip(jax.tree.leaves(abstract(state, placement)), jax.tree.leaves(state), strict=True):
      assert (leaf.shape, leaf.dtype, leaf.sharding) == (wanted.shape, wanted.dtype, wanted.sharding)


BOUNDARY = """
import resource, sys
import jax, numpy as np
from janus_jax.sharding.mesh import make_mesh
from janus_jax.training import state as lib
from janus_jax.training.optimizer import OptimizerConfig
jax.config.update('jax_num_cpu_devices', 8)
shapes = {f'language_model/layers/mlp/{name}/kernel': (4, 1024, 2048) for name in ('gate', 'up')}
mesh = make_mesh({'fsdp': 8})
split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, 'fsdp'))
placement = lib.Placement(mesh, dict.fromkeys(shapes, split))
params = {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
config = OptimizerConfig(moment_dtype=sys.argv[1])
state = lib.start_state(lib.unflatten(params), frozenset(shapes), config, placement)
jax.block_until_ready(state)
del params
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
state = lib.start_stage(state, frozenset(shapes), config, placement)
jax.block_until_ready(state)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize(('dtype', 'size'), [('float32', 4), ('bfloat16', 2)])
def test_a_boundary_takes_no_more_memory_than_a_stage(dtype, size):
  """Moments are made where those of the stage before were: the process's peak does not grow by another set of them."""
  moments = 2 * 2 * 4 * 1024 * 2048 * size
  run = subprocess.run([sys.executable, '-c', BOUNDARY, dtype], capture_output=True, text=True, check=True)
  assert int(run.stdout) < moments / 4


def test_abstract_states_need_no_values(params):
  placement = placement_on(params, {'fsdp': 8})
  trained = paths_of(params, 'gen_head')
  config = dataclasses.replace(AVERAGED, muon=('gen_head/.*kernel',))
  shapes = jax.eval_shape(lambda: new_state(params, trained, config))
  real = abstract(start_state(copied(params), trained, config, placement), placement)
  assert jax.tree.leaves(abstract(shapes, placement)) == jax.tree.leaves(real)
  assert {path for path in trained if path not in real.opt_state.nu} == {path for path in trained if 'kernel' in path}


def test_rows_of_a_batch_are_split_over_data_and_fsdp():
  mesh = make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2})
  rows = {'tokens': np.arange(32, dtype=np.int32).reshape(8, 4), 'pixels': np.zeros((8, 1, 2, 2, 3), np.uint8)}
  placed = place_batch(rows, mesh)
  for name, array in placed.items():
    np.testing.assert_array_equal(array, rows[name])
    assert array.dtype == rows[name].dtype
    assert {shard.data.shape[0] for shard in array.addressable_shards} == {2}
    assert len({shard.index[0].start for shard in array.addressable_shards}) == 4


def test_a_reference_is_what_trains_as_its_stage_began(params, placement):
  """In the state of a run's first stage and of later ones, and of no stage without one."""
  first, second = paths_of(params, 'gen_head'), paths_of(params, 'gen_head', 'gen_embed')
  state = start_state(copied(params), first, AVERAGED, placement, with_reference=True)
  assert state.reference.keys() == first
  state = advanced(state, placement)
  entered = start_stage(state, second, AVERAGED, placement, with_reference=True)
  assert entered.reference.keys() == second
  for path, leaf in flatten(entered.params).items():
    if path in second:
      np.testing.assert_array_equal(entered.reference[path], leaf)
  assert start_stage(entered, first, AVERAGED, placement).reference is None
