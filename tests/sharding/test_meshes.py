"""On every kind of mesh training is what it is on one device: the same losses, stage after stage.

All three stages run through one executable (traced masks), which saves two thirds of the compiling;
tests/training/test_step.py shows that static masks give the same.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from training import batches
from training.batches import params
from training.steps import STAGE_1, STAGE_2, STAGE_3, STEP, stage_values

from janus_jax.models.config import ComputeConfig
from janus_jax.planning.hlo import received_bytes
from janus_jax.sharding.layout import ActivationLayout
from janus_jax.sharding.mesh import ROW_AXES, make_mesh
from janus_jax.training.losses import Head, Spread, Targets, cross_entropy
from janus_jax.training.state import Placement, flatten, new_state, place_batch, start_state
from janus_jax.training.step import jit_train_step

STAGES = (STAGE_1, STAGE_2, STAGE_3)
EVERYTHING = frozenset().union(*STAGES)
STEPS = 5


@pytest.fixture(scope='module')
def batch(tmp_path_factory):
  """Eight rows, no two the same."""
  spec = batches.make_spec(tmp_path_factory.mktemp('tokenizer'))
  examples = batches.make_examples(spec, batches.records())
  rows = [*batches.ROWS, 4, 4, 5, 5, 6, 7, 6, 7]
  return batches.batch_of(examples + examples[::-1], rows, num_rows=8, streams=8)


def losses(batch, config, placement=None) -> np.ndarray:
  """float[stages * steps, kinds]: the summed loss of each kind at each step."""
  make = functools.partial(start_state, placement=placement) if placement else new_state
  state = make(params(), EVERYTHING, config.optimizer)
  found = []
  for trained in STAGES:
    masks = {path: jnp.asarray(path in trained) for path in sorted(EVERYTHING)}
    for _ in range(STEPS):
      state, metrics = jit_train_step('traced')(state, batch, stage_values(), masks=masks, config=config)
      found.append(metrics['loss_sums'])
  return np.array(found)


@pytest.fixture(scope='module')
def on_one_device(batch):
  found = losses(batch, STEP)
  # It learns, and each kind has its share.
  assert np.all(found > 0)
  assert np.all(found[-1] < 0.9 * found[0])
  return found


@pytest.mark.parametrize(
  ('sizes', 'attention', 'loss_chunk'),
  [
    ({'data': 8}, 'xla', batches.SHAPE.length),
    ({'fsdp': 8}, 'xla', batches.SHAPE.length),
    ({'fsdp': 4, 'tensor': 2}, 'xla', batches.SHAPE.length),
    ({'fsdp': 2, 'tensor': 2, 'context': 2}, 'chunked', 16),
  ],
)
def test_losses_are_those_of_one_device(sizes, attention, loss_chunk, batch, on_one_device):
  mesh = make_mesh(sizes)
  placement = Placement.of(mesh, {path: leaf.shape for path, leaf in flatten(params()).items()})
  config = dataclasses.replace(
    STEP,
    compute=ComputeConfig(attention=attention, layout=ActivationLayout(mesh)),
    loss_chunk=loss_chunk,
    shardings=tuple(sorted(placement.params.items())),
  )
  found = losses(place_batch(batch, mesh), config, placement)
  np.testing.assert_allclose(found, on_one_device, rtol=1e-5)


@pytest.mark.parametrize('chunk', [16, 4])
def test_a_head_sends_its_weights_once_and_their_gradient_once_however_many_chunks(chunk):
  mesh = make_mesh({'fsdp': 4, 'context': 2})
  B, T, D, V = 8, 64, 16, 96
  split = PartitionSpec(None, 'fsdp')
  spread = Spread(mesh, ROW_AXES, 'context', (('kernel', split),))

  def total(hidden, weights, targets, wanted, scales):
    head = lambda weights, h: h @ weights['kernel'].T  # noqa: E731
    return cross_entropy(Head(head, spread), weights, hidden, Targets(targets, wanted, scales), chunk)[1]

  def given(spec, dtype, *shape):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

  rows = functools.partial(given, PartitionSpec(ROW_AXES, 'context'))
  arguments = rows(jnp.float32, B, T, D), {'kernel': given(split, jnp.float32, V, D)}
  arguments += rows(jnp.int32, B, T), rows(jnp.bool_, B, T), rows(jnp.float32, B, T)
  with jax.set_mesh(mesh):
    program = jax.jit(jax.grad(total, argnums=(0, 1))).lower(*arguments).compile().as_text()
  received = received_bytes(program, trip_count=T // chunk)
  size = 4 * V * D
  assert received.pop('all-gather') == received.pop('reduce-scatter') == size * 3 // 4
  # Of the part that a device keeps, over `context`; and how many chunks are needed.
  assert size // 4 <= received.pop('all-reduce') < size // 4 + 100
  assert not any(received.values())
