"""Sharding rules cover exactly the parameters, and say so when they do not."""

import jax
import pytest
from jax.sharding import PartitionSpec

from janus_jax.conversion.translate import parameter_shapes
from janus_jax.errors import InputError
from janus_jax.models.config import PRESETS
from janus_jax.sharding.mesh import AXES, make_mesh
from janus_jax.sharding.rules import PARAMETER_RULES, parameter_shardings

SHAPES = {preset: parameter_shapes(PRESETS[preset]) for preset in ('tiny', 'janus_pro_7b')}
LARGE = 16 * 2**20  # Parameters of more elements than this must not be replicated.


@pytest.mark.parametrize('preset', sorted(SHAPES))
def test_every_parameter_has_a_rule_and_no_large_one_is_replicated(preset):
  mesh = make_mesh({'fsdp': 4, 'tensor': 2})
  shardings = parameter_shardings(SHAPES[preset], mesh)
  assert shardings.keys() == SHAPES[preset].keys()
  for path, shape in SHAPES[preset].items():
    elements = 1
    for size in shape:
      elements *= size
    if elements > LARGE:
      assert shardings[path].num_devices == 8
      local = shardings[path].shard_shape(shape)
      fraction = 1
      for part, size in zip(local, shape):
        fraction *= size // part
      assert fraction == 8, f'{path} is split {fraction} ways'


def test_stacked_parameters_keep_their_layer_axis_whole():
  shardings = parameter_shardings(SHAPES['tiny'], make_mesh({'fsdp': 4, 'tensor': 2}))
  for path, sharding in shardings.items():
    if '/layers/' in path and len(sharding.spec):
      assert sharding.spec[0] is None, path


@pytest.mark.parametrize(
  ('shapes', 'rules', 'message'),
  [
    ({**SHAPES['tiny'], 'new/kernel': (8, 8)}, PARAMETER_RULES, 'parameter new/kernel is covered by no sharding rule'),
    (SHAPES['tiny'], (('nothing/.*', PartitionSpec()), *PARAMETER_RULES), "rule 'nothing/.*' matches no parameter"),
    (
      {**SHAPES['tiny'], 'language_model/lm_head/kernel': (511, 64)},
      PARAMETER_RULES,
      "parameter language_model/lm_head/kernel has 511 on axis 0: the mesh axis 'tensor' of 2 does not divide it",
    ),
  ],
)
def test_what_the_rules_do_not_fit_is_an_error(shapes, rules, message):
  with pytest.raises(InputError, match=message.replace('.*', r'\.\*')):
    parameter_shardings(shapes, make_mesh({'fsdp': 4, 'tensor': 2}), rules)


def test_mesh_has_all_axes_and_fills_one():
  mesh = make_mesh({'tensor': 2, 'fsdp': -1})
  assert dict(mesh.shape) == {'data': 1, 'fsdp': 4, 'tensor': 2, 'context': 1}
  assert mesh.axis_names == AXES
  # Linen's constraints are silently wrong on Explicit axes, jax's default.
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize(
  ('sizes', 'message'),
  [
    ({'model': 2}, "mesh axis 'model' is unknown: expected some of data, fsdp, tensor, context"),
    ({'data': -1, 'fsdp': -1}, 'at most one -1'),
    ({'data': 3}, 'need 3 devices: there are 8'),
    ({'tensor': 3, 'data': -1}, 'need 6 devices: there are 8'),
    ({'data': 0}, 'expected positive numbers'),
  ],
)
def test_meshes_that_do_not_fit(sizes, message):
  with pytest.raises(InputError, match=message):
    make_mesh(sizes)
