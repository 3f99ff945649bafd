"""On every kind of mesh training is what it is on one device: the same losses, stage after stage.

All three stages run through one executable (traced masks), which saves two thirds of the compiling;
tests/training/test_step.py shows that static masks give the same.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from training import batches
from training.batches import params
from training.steps import STAGE_1, STAGE_2, STAGE_3, STEP, stage_values

from janus_jax.models.config import ComputeConfig
from janus_jax.sharding.layout import ActivationLayout
from janus_jax.sharding.mesh import make_mesh
from janus_jax.training.state import Placement, flatten, new_state, place, place_batch
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
  return batches.batch_of(examples + examples[::-1], rows, num_rows=8)


def losses(batch, config, placement=None) -> np.ndarray:
  """float[stages * steps, kinds]: the summed loss of each kind at each step."""
  state = new_state(params(), EVERYTHING, config.optimizer)
  state = place(state, placement) if placement else state
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
