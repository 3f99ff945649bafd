"""Sharding rules cover exactly the parameters, and say so when they do not."""

import math

import pytest
from jax.sharding import PartitionSpec

from janus_jax.conversion.translate import parameter_shapes
from janus_jax.errors import InputError
from janus_jax.models.config import PRESETS
from janus_jax.sharding.mesh import make_mesh
from janus_jax.sharding.rules import LARGE, PARAMETER_RULES, parameter_shardings

SHAPES = {preset: parameter_shapes(PRESETS[preset]) for preset in ('test_tiny', 'janus_pro_7b')}
TINY = SHAPES['test_tiny']


@pytest.mark.parametrize('preset', sorted(SHAPES))
def test_every_parameter_has_a_rule_and_large_ones_are_split_over_all_devices(preset):
  mesh = make_mesh({'fsdp': 4, 'tensor': 2})
  shardings = parameter_shardings(SHAPES[preset], mesh)
  assert shardings.keys() == SHAPES[preset].keys()
  for path, shape in SHAPES[preset].items():
    if math.prod(shape) > 16 * 2**20:
      parts = math.prod(shape) // math.prod(shardings[path].shard_shape(shape))
      assert parts == 8, f'{path} is split {parts} ways'


def test_stacked_parameters_keep_their_layer_axis_whole():
  shardings = parameter_shardings(TINY, make_mesh({'fsdp': 4, 'tensor': 2}))
  for path, sharding in shardings.items():
    if '/layers/' in path and len(sharding.spec):
      assert sharding.spec[0] is None, path


@pytest.mark.parametrize(
  ('shapes', 'rules', 'message'),
  [
    ({**TINY, 'new/kernel': (8, 8)}, PARAMETER_RULES, 'parameter new/kernel is covered by no sharding rule'),
    (TINY, (('nothing/.*', PartitionSpec()), *PARAMETER_RULES), "rule 'nothing/.*' matches no parameter"),
    (
      {**TINY, 'language_model/lm_head/kernel': (511, 64)},
      PARAMETER_RULES,
      "parameter language_model/lm_head/kernel has 511 on axis 0: the mesh axis 'tensor' of 2 does not divide it",
    ),
  ],
)
def test_what_the_rules_do_not_fit_is_an_error(shapes, rules, message):
  with pytest.raises(InputError, match=message.replace('.*', r'\.\*')):
    parameter_shardings(shapes, make_mesh({'fsdp': 4, 'tensor': 2}), rules)


WHOLE = (('new/kernel', PartitionSpec()), ('vq/.*', PartitionSpec()), ('row/kernel', PartitionSpec('tensor')))


def test_a_large_parameter_that_is_left_whole_is_an_error():
  large, small = {'new/kernel': (2, LARGE)}, {'new/kernel': (LARGE,)}
  others = {'vq/kernel': (2, LARGE), 'row/kernel': (8, LARGE)}
  message = (
    rf'parameter new/kernel has {2 * LARGE} elements and is whole on every device of mesh .*: expected a .* rule'
  )
  for sizes in ({'fsdp': 8}, {'data': 4, 'tensor': 2}):
    with pytest.raises(InputError, match=message):
      parameter_shardings({**large, **others, 'row/kernel': (8, 1)}, make_mesh(sizes), WHOLE)
    parameter_shardings({**small, **others, 'row/kernel': (8, 1)}, make_mesh(sizes), WHOLE)
  # A rule that splits over an axis of one device leaves it whole as well.
  with pytest.raises(InputError, match='parameter row/kernel has'):
    parameter_shardings({**small, **others}, make_mesh({'fsdp': 8}), WHOLE)
  # Where devices are not there to split parameters, nothing is wrong.
  parameter_shardings({**large, **others}, make_mesh({'data': 4, 'context': 2}), WHOLE)
