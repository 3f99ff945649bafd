"""Least traffic of FSDP: the formula by hand, and a compiled step against it."""

import dataclasses

import jax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from recipes import recipe

from janus_jax.data.packing import BatchShape, MeanSize
from janus_jax.models.config import PRESETS
from janus_jax.planning.compile import make_setup, plan_stage
from janus_jax.planning.ideal import ideal_bytes, passes
from janus_jax.planning.roofline import StageWork
from janus_jax.planning.topologies import parse_topology
from janus_jax.runs.config import parse_config
from janus_jax.runs.start import find_start
from janus_jax.sharding.mesh import make_mesh

STAGE = dataclasses.replace(parse_config(recipe('janus_pro_7b')).run_stages[1], batch_size=8)
WORK = StageWork(
  stage=STAGE,
  model=PRESETS['test_tiny'],
  shape=BatchShape(2, 64, 0, 0),
  streams=4,
  mean=MeanSize(64.0, 0.0, 0.0),
  trained=frozenset({'language_model', 'gen_embed'}),
  adapted=frozenset(),
  remat='full',
  accumulation=2,
  state_bytes=0,
)
LAYER, HEAD, TABLE = 'language_model/layers/mlp/up/kernel', 'language_model/lm_head/kernel', 'gen_embed/table'


def test_ideal_by_hand():
  mesh = make_mesh({'fsdp': 4, 'context': 2})
  shapes = {LAYER: (3, 160, 64), HEAD: (512, 64), TABLE: (128, 8), 'vq/kernel': (9, 9)}
  specs = {LAYER: P(None, 'tensor', 'fsdp'), HEAD: P('tensor', 'fsdp'), TABLE: P(), 'vq/kernel': P()}
  shardings = {path: NamedSharding(mesh, spec) for path, spec in specs.items()}
  found = ideal_bytes(WORK, shapes, shardings, {LAYER, TABLE}, itemsize=2)
  # Three quarters of 30,720 elements three times, and of their gradient once, of whose rest the two of `context` have
  # the sum; of the head, which does not train, once; the gradient of the table summed over eight devices.
  layer = 2 * (3 * 23_040 + 23_040 + 2 * 7_680 // 2)
  head, table = 2 * 24_576, 2 * 2 * 1024 * 7 // 8
  # Half of the keys and values of 2 rows of 64 positions, in three layers and three passes.
  keys = 2 * 3 * 3 * 2 * (2 * 64 * 2 * 16) // 2
  assert found == 2 * (layer + head + table) + keys
  # Gradients of heads are summed up in float32.
  trained = ideal_bytes(WORK, shapes, shardings, {LAYER, TABLE, HEAD}, itemsize=2)
  assert trained - found == 2 * 4 * (24_576 + 2 * 8_192 // 2)


def test_passes_are_those_that_need_the_weights():
  assert passes(LAYER, WORK) == 3
  assert passes(LAYER, dataclasses.replace(WORK, remat='none')) == 2
  assert passes(LAYER, dataclasses.replace(WORK, trained=frozenset({'gen_head'}))) == 1
  assert passes('vision_encoder/layers/attn/q/kernel', WORK) == 0  # No images.
  seen = dataclasses.replace(WORK, shape=BatchShape(2, 64, 1, 0))
  assert passes('vision_encoder/layers/attn/q/kernel', seen) == 1
  assert passes('vision_encoder/layers/attn/q/kernel', dataclasses.replace(seen, trained={'vision_encoder'})) == 4


@pytest.mark.parametrize(
  ('sizes', 'stage'), [({'fsdp': 8}, 0), ({'fsdp': 4, 'context': 2}, 1), ({'fsdp': 8}, 2)], ids=str
)
def test_a_step_receives_at_most_half_more_than_the_ideal(sizes, stage):
  """Chunks of logits are many here, so anything sent once per chunk would be most of the traffic."""
  config = recipe('tiny')
  config.optimizer.muon = ()  # It gathers whole kernels, which the ideal is not of.
  config.update_from_flattened_dict({'loss_chunk': 4, 'compute.unroll': 1, 'held_out_batches': 0})
  config.mesh.update(sizes)
  for each in config.stages.values():
    each.batch_size = 8
  assert jax.device_count() == 8
  config = parse_config(config)
  plan = plan_stage(make_setup(config, find_start(config, 'configs/tiny.py'), parse_topology('cpu-8')), stage)
  assert sum(plan.received.values()) <= 1.5 * plan.ideal
