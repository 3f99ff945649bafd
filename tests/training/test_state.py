"""States: what trains in float32 with moments of its own, what is kept between stages, where everything lies."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from training import batches

from janus_jax.sharding.mesh import make_mesh
from janus_jax.training.optimizer import OptimizerConfig
from janus_jax.training.state import (
  Placement,
  abstract,
  enter_stage,
  evaluated_params,
  flatten,
  new_state,
  place,
  place_batch,
  unflatten,
)

AVERAGED = OptimizerConfig(ema_decay=0.9)


@pytest.fixture(scope='module')
def params():
  return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), batches.params())


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


def test_no_buffer_occurs_twice(params):
  """A state is donated, and XLA refuses to be given a buffer twice."""
  trained = paths_of(params, 'gen_head')
  state = new_state(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params), trained, AVERAGED)
  for one in (state, enter_stage(state, paths_of(params, 'gen_head', 'gen_embed'), AVERAGED)):
    found = buffers(one)
    assert len(set(found)) == len(found)


def test_a_stage_keeps_parameters_and_counters_and_starts_moments_afresh(params):
  first = paths_of(params, 'gen_head', 'vision_aligner')
  state = new_state(params, first, AVERAGED)
  ones = lambda flat: {path: jnp.ones_like(leaf) for path, leaf in flat.items()}  # noqa: E731
  state = state.replace(
    step=jnp.int32(7),
    skipped=jnp.int32(3),
    skipped_in_a_row=jnp.int32(2),
    opt_state=state.opt_state._replace(count=jnp.int32(5), mu=ones(state.opt_state.mu), nu=ones(state.opt_state.nu)),
    ema=ones(state.ema),
  )
  second = paths_of(params, 'gen_head', 'language_model/lm_head')
  entered = enter_stage(state, second, AVERAGED)
  assert [int(x) for x in (entered.step, entered.skipped, entered.skipped_in_a_row)] == [7, 3, 0]
  before, after = flatten(state.params), flatten(entered.params)
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


def test_placed_states_lie_with_their_parameters(params):
  mesh = make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2})
  placement = Placement.of(mesh, {path: leaf.shape for path, leaf in flatten(params).items()})
  trained = paths_of(params, 'language_model')
  state = place(new_state(params, trained, AVERAGED), placement)
  chex.assert_trees_all_equal(state, new_state(params, trained, AVERAGED))
  table = 'language_model/embed_tokens/table'
  for flat in (flatten(state.params), state.opt_state.mu, state.opt_state.nu, state.ema):
    assert flat[table].sharding.spec == PartitionSpec('tensor', 'fsdp')
    assert flat[table].addressable_shards[0].data.shape == (256, 32)
  assert state.step.sharding.is_fully_replicated
  for leaf, wanted in zip(jax.tree.leaves(abstract(state, placement)), jax.tree.leaves(state), strict=True):
    assert (leaf.shape, leaf.dtype, leaf.sharding) == (wanted.shape, wanted.dtype, wanted.sharding)


def test_abstract_states_need_no_values(params):
  mesh = make_mesh({'fsdp': 8})
  placement = Placement.of(mesh, {path: leaf.shape for path, leaf in flatten(params).items()})
  trained = paths_of(params, 'gen_head')
  shapes = jax.eval_shape(lambda: new_state(params, trained, AVERAGED))
  real = abstract(place(new_state(params, trained, AVERAGED), placement), placement)
  assert jax.tree.leaves(abstract(shapes, placement)) == jax.tree.leaves(real)


def test_rows_of_a_batch_are_split_over_data_and_fsdp():
  mesh = make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2})
  rows = {'tokens': np.arange(32, dtype=np.int32).reshape(8, 4), 'pixels': np.zeros((8, 1, 2, 2, 3), np.uint8)}
  placed = place_batch(rows, mesh)
  for name, array in placed.items():
    np.testing.assert_array_equal(array, rows[name])
    assert array.dtype == rows[name].dtype
    assert {shard.data.shape[0] for shard in array.addressable_shards} == {2}
    assert len({shard.index[0].start for shard in array.addressable_shards}) == 4
