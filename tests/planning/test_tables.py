"""Golden tables: where every parameter of the released models lies on a mesh, and what a device holds of it."""

import math
import os
import pathlib

import pytest
from jax.sharding import AbstractMesh

from janus_jax.conversion.translate import parameter_shapes
from janus_jax.models.config import PRESETS
from janus_jax.sharding.mesh import AXES, make_mesh
from janus_jax.sharding.rules import parameter_shardings
from janus_jax.training.state import Placement

PLANS = pathlib.Path(__file__).parent / 'plans'


def table(name: str, sizes: dict[str, int]) -> str:
  """Every parameter of a preset on a mesh: path, shape, spec, bytes that a device holds of it in float32."""
  mesh = AbstractMesh(tuple(sizes.get(axis, 1) for axis in AXES), AXES)
  shapes = parameter_shapes(PRESETS[name])
  shardings = parameter_shardings(shapes, mesh)
  rows = []
  for path in sorted(shapes):
    held = 4 * math.prod(shardings[path].shard_shape(shapes[path]))
    spec = ', '.join(str(entry) for entry in shardings[path].spec)
    rows.append((path, 'x'.join(map(str, shapes[path])), f'({spec})', str(held)))
  rows.append(('all', '', '', str(sum(int(row[3]) for row in rows))))
  return ''.join(f'{path:48} {shape:20} {spec:32} {held:>12}\n' for path, shape, spec, held in rows)


@pytest.mark.parametrize('name', ['janus_pro_1b', 'janus_pro_7b'])
@pytest.mark.parametrize('sizes', [{'fsdp': 16}, {'fsdp': 8, 'tensor': 2}], ids=['fsdp16', 'fsdp8_tensor2'])
def test_parameters_lie_where_the_golden_table_has_them(name, sizes):
  file = PLANS / f'{name}-{"-".join(f"{axis}{size}" for axis, size in sizes.items())}.txt'
  found = table(name, sizes)
  if os.environ.get('UPDATE_PLANS'):
    file.write_text(found)
  assert found == file.read_text(), f'{file} differs: if that is meant, run again with UPDATE_PLANS=1'


def test_golden_tables_are_of_the_mesh_that_runs():
  real = make_mesh({'fsdp': 4, 'tensor': 2})
  shapes = parameter_shapes(PRESETS['janus_pro_1b'])
  abstract = AbstractMesh((1, 4, 2, 1), AXES)
  found, expected = (parameter_shardings(shapes, mesh) for mesh in (abstract, real))
  assert {path: s.shard_shape(shapes[path]) for path, s in found.items()} == {
    path: s.shard_shape(shapes[path]) for path, s in expected.items()
  }
  assert Placement.of(real, shapes).params == expected
