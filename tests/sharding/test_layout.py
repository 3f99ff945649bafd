"""Activations: every name has a rule, a constraint is never lost without a word, and one device is left alone."""

import collections
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from training import batches
from training.batches import CONFIG, SHAPE, params
from training.steps import STAGE_3, STEP, fresh, stage_values

from janus_jax.errors import InputError
from janus_jax.models.config import ComputeConfig
from janus_jax.models.janus import abstract_params
from janus_jax.models.layers import Linear
from janus_jax.sharding.layout import ActivationLayout
from janus_jax.sharding.mesh import make_mesh
from janus_jax.sharding.rules import ACTIVATION_RULES
from janus_jax.training.losses import batch_losses
from janus_jax.training.step import jit_train_step
from janus_jax.training.step_config import StepConfig

SIZES = {'fsdp': 2, 'tensor': 2, 'context': 2}
# A forward pass pins, in the decoder, embedded, hidden (embedded, entering, twice a layer), mlp, logits (text, codes);
# in the encoder patches (entering, once a layer) and patch_mlp. The attentions pin their operands by shard_map.
FORWARD = 11


@pytest.fixture(scope='module')
def batch(tmp_path_factory):
  spec = batches.make_spec(tmp_path_factory.mktemp('tokenizer'))
  return batches.batch_of(batches.make_examples(spec, batches.records()), batches.ROWS, streams=2)


def losses(batch, layout, params):
  config = StepConfig(CONFIG, compute=ComputeConfig(layout=layout), loss_chunk=SHAPE.length)
  return batch_losses(params, batch, np.ones(3, np.float32), config)


def lower_losses(batch, layout):
  """The program of the losses of a batch, before XLA has seen it."""
  return jax.jit(functools.partial(losses, batch, layout)).lower(params())


def lower_step(batch, layout):
  config = dataclasses.replace(STEP, compute=ComputeConfig(layout=layout))
  state = jax.eval_shape(lambda: fresh(trained=STAGE_3))
  return jit_train_step('static').lower(state, batch, stage_values(), masks=STAGE_3, config=config)


def constraints(lowered) -> int:
  return lowered.as_text().count('sharding_constraint')


def test_constraints_reach_the_program_with_and_without_a_mesh_in_context(batch):
  """Flax's logical constraints would be lost without `jax.set_mesh`, silently."""
  mesh = make_mesh(SIZES)
  assert constraints(lower_losses(batch, None)) == 0
  assert constraints(lower_losses(batch, ActivationLayout(mesh))) == FORWARD
  with jax.set_mesh(mesh):
    assert constraints(lower_losses(batch, ActivationLayout(mesh))) == FORWARD
  # What is pinned on the way forward is pinned on the way back.
  assert constraints(lower_step(batch, ActivationLayout(mesh))) == 2 * FORWARD


def test_one_device_splits_nothing_and_multiplies_matrices_of_two_axes(batch):
  alone = ActivationLayout(make_mesh({}, jax.devices()[:1]))
  assert constraints(lower_step(batch, alone)) == 0
  # A weight's gradient from three axes is a copy of the transpose on a CPU: only attention's products have more.
  ranks = {name: _ranks(lower_step(batch, layout).as_text()) for name, layout in (('whole', alone), ('plain', None))}
  assert ranks['whole'].total() == ranks['plain'].total()
  assert ranks['whole'][3] == 0 < ranks['plain'][3]


def _ranks(text: str) -> collections.Counter:
  """Number of axes of the left side of every product in a program, and how often."""
  found = re.findall(r'stablehlo\.dot_general .*? : \(tensor<([0-9x]+)xf32>', text)
  return collections.Counter(shape.count('x') + 1 for shape in found)


@dataclasses.dataclass(frozen=True)
class RecordingLayout(ActivationLayout):
  asked: set = dataclasses.field(default_factory=set, hash=False, compare=False)

  def spec(self, name, shape):
    self.asked.add(name)
    return super().spec(name, shape)


def test_models_ask_for_all_that_has_a_rule(batch):
  layout = RecordingLayout(make_mesh(SIZES))
  lower_losses(batch, layout)
  assert layout.asked == {name for name, _ in ACTIVATION_RULES}


@pytest.mark.parametrize('missing', [name for name, _ in ACTIVATION_RULES])
def test_a_name_without_a_rule_is_an_error_before_compiling(missing, batch):
  """Flax would take a misspelt name for one that is not split."""
  rules = tuple((name, spec) for name, spec in ACTIVATION_RULES if name != missing)
  layout = ActivationLayout(make_mesh(SIZES), rules)
  with pytest.raises(InputError, match=f"activation '{missing}' is covered by no sharding rule: expected one of "):
    jax.eval_shape(functools.partial(losses, batch, layout), params())


def test_one_device_knows_the_names_too():
  layout = ActivationLayout(make_mesh({}, jax.devices()[:1]))
  with pytest.raises(InputError, match="activation 'hiden' is covered by no sharding rule"):
    layout.constrain('hiden', jnp.ones((4, 8, 8)))


@pytest.mark.parametrize(
  ('name', 'shape', 'message'),
  [
    ('hidden', (4, 9, 8), "activation 'hidden' has 9 on axis 1: the mesh axis 'context' of 2 does not divide it"),
    ('hidden', (3, 8, 8), "activation 'hidden' has 3 on axis 0: the mesh axis 'data x fsdp' of 2 does not divide it"),
    ('keys', (4, 8, 1, 8), "activation 'keys' has 1 on axis 2: the mesh axis 'tensor' of 2 does not divide it"),
  ],
)
def test_what_the_mesh_does_not_divide_is_an_error(name, shape, message):
  layout = ActivationLayout(make_mesh(SIZES))
  with pytest.raises(InputError, match=message):
    jax.eval_shape(lambda x: layout.constrain(name, x), jax.ShapeDtypeStruct(shape, jnp.float32))


def test_constrained_values_lie_where_the_rules_say():
  layout = ActivationLayout(make_mesh(SIZES), (('some', PartitionSpec('fsdp', None, ('tensor', 'context'))),))
  x = jnp.arange(2 * 3 * 8.0).reshape(2, 3, 8)
  placed = jax.jit(lambda x: layout.constrain('some', x))(x)
  assert placed.sharding.shard_shape(x.shape) == (1, 3, 2)
  assert jnp.array_equal(placed, x)


def test_parameters_can_be_made_with_a_mesh_in_context():
  """Linen's own dense layers, with names for their axes, crash there on kernels of more than two axes."""
  with jax.set_mesh(make_mesh(SIZES)):
    shapes = jax.tree.map(lambda leaf: leaf.shape, abstract_params(CONFIG, ComputeConfig()))
    linear = Linear((4, 2), (8,), ComputeConfig())
    kernel = linear.init(jax.random.key(0), jnp.ones((2, 8)))['params']['kernel']
  assert shapes == jax.tree.map(lambda leaf: leaf.shape, abstract_params(CONFIG, ComputeConfig()))
  assert kernel.shape == (4, 2, 8)
