"""Checkpoints of a run: exact, onto any mesh, and never lost to a kill, a full disk or a damaged file."""

import json
import logging
import os
import pathlib
from typing import Any

import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from janus_jax.conversion.orbax_files import read_orbax
from janus_jax.errors import InputError
from janus_jax.sharding.mesh import make_mesh
from janus_jax.training import checkpoint
from janus_jax.training.checkpoint import Checkpoints

ROOT = pathlib.Path(__file__).parents[2]


@flax.struct.dataclass
class State:
  step: jax.Array
  params: Any
  opt_state: Any
  ema: Any = None
  skipped: Any = None


def random_bits(shape, dtype, seed):
  """Any finite-or-not bit pattern."""
  dtype = np.dtype(dtype)
  bits = np.random.default_rng(seed).integers(0, 256, size=(*shape, dtype.itemsize), dtype=np.uint8)
  return bits.reshape(-1).view(dtype).reshape(shape)


def make_state(seed=0):
  """All that a real state has: bfloat16 beside float32, optax's tuples, keys with '/', scalars, None."""
  flat = {
    'language_model/layers/attn/q/kernel': random_bits((3, 8, 16), jnp.bfloat16, seed),
    'language_model/embed_tokens/table': random_bits((64, 16), np.float32, seed + 1),
    'vq/codebook': random_bits((32, 8), np.float32, seed + 2),
  }
  trained = {path: jnp.asarray(value) for path, value in flat.items() if path.startswith('language_model')}
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(0.0, 1.0, 10)))
  opt_state = tx.init(trained)
  leaves, tree = jax.tree.flatten(opt_state)
  filled = [jnp.asarray(random_bits(leaf.shape, leaf.dtype, seed + 10 + i)) for i, leaf in enumerate(leaves)]
  params = jax.tree.map(jnp.asarray, flax.traverse_util.unflatten_dict(flat, sep='/'))
  return State(jnp.int32(seed), params, jax.tree.unflatten(tree, filled), {'vq/a.b': jnp.ones(3)}, jnp.int32(2))


def abstract(state, sharding=None):
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state)


def place(state, mesh, axis):
  """Splits everything whose first axis the mesh divides."""
  size = mesh.shape[axis]

  def sharding(leaf):
    return NamedSharding(mesh, PartitionSpec(axis) if leaf.ndim and leaf.shape[0] % size == 0 else PartitionSpec())

  return jax.tree.map(lambda leaf: jax.device_put(leaf, sharding(leaf)), state)


def assert_same(first, second):
  assert jax.tree.structure(first) == jax.tree.structure(second)
  for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(first), jax.tree.leaves(second)):
    assert a.dtype == b.dtype, path
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), path


def save(checkpoints, step, state=None, **metadata):
  state = make_state(step) if state is None else state
  return checkpoints.save(step, state, {'position': step}, {'stage': 'stage1', **metadata})


def restore(checkpoints):
  return checkpoints.restore(lambda metadata: abstract(make_state()))


@pytest.fixture
def workdir(tmp_path):
  """Holds checkpoints 1, 2 and 3."""
  with Checkpoints(tmp_path, save_every=1, keep_last=3) as checkpoints:
    for step in (1, 2, 3):
      save(checkpoints, step)
  return tmp_path


def test_everything_comes_back_bit_for_bit_onto_another_mesh(tmp_path):
  state = place(make_state(), make_mesh({'fsdp': 8}), 'fsdp')
  data_state = {'index': 7, 'nested': {'list': [1, None, 'text'], 'float': 0.1}}
  metadata = {'stage': 'stage2', 'config': {'lr': 1e-4}, 'versions': ['0.10.2']}
  with Checkpoints(tmp_path, save_every=1) as checkpoints:
    assert restore(checkpoints) is None
    checkpoints.save(5, state, data_state, metadata)
  other = place(make_state(1), make_mesh({'data': 4, 'tensor': 2}), 'tensor')
  shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), other)
  asked = []
  with Checkpoints(tmp_path, save_every=1) as checkpoints:
    restored = checkpoints.restore(lambda found: asked.append(found) or shapes)
  assert asked == [metadata]
  assert restored.step == 5
  assert restored.data_states == [data_state]
  assert restored.metadata == metadata
  assert_same(restored.state, state)
  assert all(a.sharding == b.sharding for a, b in zip(jax.tree.leaves(restored.state), jax.tree.leaves(other)))


def test_a_relative_workdir(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with Checkpoints('runs/first', save_every=1) as checkpoints:
    save(checkpoints, 1)
    monkeypatch.chdir('/')
    assert restore(checkpoints).step == 1
  assert (tmp_path / 'runs' / 'first' / 'checkpoints' / '1').is_dir()


def test_dtypes_are_those_asked_for(workdir):
  state = abstract(make_state())
  wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), state.params)
  with Checkpoints(workdir, save_every=1) as checkpoints:
    restored = checkpoints.restore(lambda _: state.replace(params=wanted))
  assert restored.step == 3
  found = restored.state.params['vq']['codebook']
  assert found.dtype == jnp.bfloat16
  expected = np.asarray(make_state(3).params['vq']['codebook']).astype(jnp.bfloat16)
  np.testing.assert_array_equal(np.asarray(found).astype(np.float32), expected.astype(np.float32))


def test_the_parameters_can_be_opened_by_themselves(workdir):
  found = read_orbax(str(workdir / 'checkpoints' / '3' / 'params'))
  expected = flax.traverse_util.flatten_dict(make_state(3).params, sep='/')
  assert found.keys() == expected.keys()
  for path, leaf in found.items():
    assert leaf.dtype == expected[path].dtype
    assert leaf[...].tobytes() == np.asarray(expected[path]).tobytes()


def test_a_state_may_be_donated_and_its_data_state_changed_as_soon_as_save_returns(tmp_path):
  add_one = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
  state = State(jnp.int32(0), {'a': jnp.zeros((1024, 1024))}, {'b': jnp.zeros((1024, 1024))}, None, jnp.int32(0))
  shapes = abstract(state)
  data_state = {'position': 0}
  with Checkpoints(tmp_path, save_every=1) as checkpoints:
    state = add_one(state)
    checkpoints.save(1, state, data_state, {})
    for _ in range(5):
      state = add_one(state)
    data_state['position'] = 9
    jax.block_until_ready(state)
    restored = checkpoints.restore(lambda _: shapes)
  assert all((np.asarray(leaf) == 1).all() for leaf in jax.tree.leaves(restored.state))
  assert restored.data_states == [{'position': 0}]


def test_policies(tmp_path):
  with Checkpoints(tmp_path, save_every=4, keep_last=2, keep_every=8, keep_steps=(6,)) as checkpoints:
    due = []
    for step in range(1, 25):
      if checkpoints.should_save(step):
        due.append(step)
        assert save(checkpoints, step, State(jnp.int32(step), {'a': jnp.ones(2)}, {}))
        assert not checkpoints.should_save(step)
        assert not save(checkpoints, step)
    assert due == [4, 6, 8, 12, 16, 20, 24]
    checkpoints.wait()
    assert checkpoints.steps == [6, 8, 16, 20, 24]
  assert sorted(int(path.name) for path in (tmp_path / 'checkpoints').iterdir()) == [6, 8, 16, 20, 24]


def largest_file(directory):
  return max((path for path in directory.rglob('*') if path.is_file()), key=lambda path: path.stat().st_size)


DAMAGE = {
  'a data file cut short': lambda d: os.truncate(largest_file(d / 'params'), 10),
  'a data file gone': lambda d: largest_file(d / 'train').unlink(),
  'an empty index': lambda d: os.truncate(d / 'params' / 'manifest.ocdbt', 0),
  'no tree metadata': lambda d: (d / 'params' / '_METADATA').unlink(),
  'empty tree metadata': lambda d: os.truncate(d / 'train' / '_METADATA', 0),
  'no metadata': lambda d: (d / '_CHECKPOINT_METADATA').unlink(),
  'cut metadata': lambda d: os.truncate(d / '_CHECKPOINT_METADATA', 20),
  'no optimizer': lambda d: (d / 'train').rename(d.parent / 'elsewhere'),
  'no parameters': lambda d: (d / 'params').rename(d.parent / 'elsewhere'),
  'no data state': lambda d: (d / 'data' / 'process_0-of-1.json').unlink(),
  'cut data state': lambda d: os.truncate(d / 'data' / 'process_0-of-1.json', 5),
}


@pytest.mark.parametrize('damage', DAMAGE)
def test_a_damaged_newest_checkpoint_is_passed_over(damage, workdir, caplog):
  newest = workdir / 'checkpoints' / '3'
  DAMAGE[damage](newest)
  with Checkpoints(workdir, save_every=1, keep_last=2) as checkpoints:
    with caplog.at_level(logging.WARNING):
      restored = restore(checkpoints)
    assert restored.step == 2
    assert_same(restored.state, make_state(2))
    assert restored.data_states == [{'position': 2}]
    # asyncio logs Orbax's abandoned tasks whenever they are collected.
    records = [record for record in caplog.records if record.name == 'root']
    lines = [record.getMessage() for record in records if str(newest) in record.getMessage()]
    assert len(lines) == 1
    assert 'damaged' in lines[0]
    assert '\n' not in lines[0]
    # Its step can be saved anew, and it takes nobody's place among those that are kept.
    assert (workdir / 'checkpoints' / '3.damaged').exists()
    assert checkpoints.steps == [1, 2]
    assert save(checkpoints, 3)
    checkpoints.wait()
    assert checkpoints.steps == [2, 3]
    assert restore(checkpoints).step == 3


def test_if_none_is_whole_the_run_is_refused_and_nothing_moved(workdir):
  for step in '123':
    os.truncate(workdir / 'checkpoints' / step / 'params' / 'manifest.ocdbt', 0)
  with Checkpoints(workdir, save_every=1) as checkpoints, pytest.raises(InputError, match='none of 3 checkpoints'):
    restore(checkpoints)
  assert {path.name for path in (workdir / 'checkpoints').iterdir()} == {'1', '2', '3'}


def test_another_tree_is_refused_by_name_and_not_taken_for_damage(workdir):
  other = abstract(make_state())
  attn = other.params['language_model'].pop('layers')
  other.params['vq']['extra'] = attn['attn']['q']['kernel']
  other.params['vq']['codebook'] = jax.ShapeDtypeStruct((32, 9), jnp.float32)
  with Checkpoints(workdir, save_every=1) as checkpoints, pytest.raises(InputError) as error:
    checkpoints.restore(lambda _: other)
  message = str(error.value)
  assert '1 missing (vq/extra)' in message
  assert '1 unexpected (language_model/layers/attn/q/kernel)' in message
  assert 'vq/codebook (32, 8) not (32, 9)' in message
  assert str(workdir / 'checkpoints' / '3' / 'params') in message
  assert '\n' not in message
  assert {path.name for path in (workdir / 'checkpoints').iterdir()} == {'1', '2', '3'}


def test_another_optimizer_is_refused_too(workdir):
  other = abstract(make_state()).replace(opt_state={'mu': jax.ShapeDtypeStruct((), jnp.int32)})
  with Checkpoints(workdir, save_every=1) as checkpoints, pytest.raises(InputError, match='opt_state/mu'):
    checkpoints.restore(lambda _: other)


def test_the_data_of_another_number_of_processes_comes_whole_or_not_at_all(workdir):
  for step in (2, 3):
    data = workdir / 'checkpoints' / str(step) / 'data'
    (data / 'process_0-of-1.json').rename(data / 'process_1-of-2.json')
    if step == 2:
      (data / 'process_0-of-2.json').write_text('{"position": 0}')
  with Checkpoints(workdir, save_every=1) as checkpoints:
    restored = restore(checkpoints)
  assert restored.step == 2
  assert restored.data_states == [{'position': 0}, {'position': 2}]


@pytest.mark.parametrize('arguments', [{'save_every': 0}, {'save_every': 1, 'keep_last': 0}])
def test_bad_numbers(arguments, tmp_path):
  with pytest.raises(InputError, match='expected at least 1'):
    Checkpoints(tmp_path, **arguments)


def test_metadata_is_plain_json_on_disk(workdir):
  """What other programs may read: the format of a checkpoint is part of its interface."""
  directory = workdir / 'checkpoints' / '2'
  assert json.loads((directory / '_CHECKPOINT_METADATA').read_text())['custom_metadata'] == {'stage': 'stage1'}
  assert json.loads((directory / 'data' / 'process_0-of-1.json').read_text()) == {'position': 2}
  assert {checkpoint.TRAIN_DIRECTORY, checkpoint.DATA_DIRECTORY} < {path.name for path in directory.iterdir()}
