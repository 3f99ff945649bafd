"""Names of topologies, and the devices behind them."""

import math

import pytest

from janus_jax.errors import InputError
from janus_jax.planning import topologies
from janus_jax.planning.topologies import CHIPS, GPUS, abstract_devices, grids, parse_topology


@pytest.mark.parametrize(
  ('name', 'grid', 'slices', 'devices'),
  [
    ('v5e-1', (1, 1), 1, 1),
    ('v5e-8', (2, 4), 1, 8),
    ('v5e-16', (4, 4), 1, 16),
    ('v5p-8', (2, 2, 1), 1, 4),
    ('v5p-128', (4, 4, 4), 1, 64),
    ('v6e-256', (16, 16), 1, 256),
    ('2xv5e-256', (16, 16), 2, 512),
    ('4xv5p-32', (2, 2, 4), 4, 64),
    ('tpu7x-16', (2, 2, 2), 1, 16),
    ('cpu-8', (8,), 1, 8),
    ('cpu-3', (3,), 1, 3),
  ],
)
def test_names_of_topologies(name, grid, slices, devices):
  topology = parse_topology(name)
  assert (topology.name, topology.grid, topology.slices, topology.num_devices) == (name, grid, slices, devices)


@pytest.mark.parametrize(
  ('name', 'meant'),
  [
    *[(name, None) for name in ('v5e', 'v5e-', 'v4-8', 'x2v5e-8', 'cpu-0', '', '8xh20', 'V6E-12', 'v5e-3x5', '0xv5e')],
    ('2xcpu-8', 'cpu-16'),
    ('CPU-8', 'cpu-8'),
    ('V5E-16', 'v5e-16'),
    ('5e-16', 'v5e-16'),
    ('v5e16', 'v5e-16'),
    ('v5e-016', 'v5e-16'),
    ('v5litepod-16', 'v5e-16'),
    ('2xv5litepod-256', '2xv5e-256'),
    ('8xv5e', 'v5e-8'),
    ('8xv5p', 'v5p-16'),
    ('v5e-4x4', 'v5e-16'),
    ('v5p-2x2x2', 'v5p-16'),
    ('0xv5e-8', 'v5e-8'),
    ('TPU v6e 8', 'v6e-8'),
    ('ironwood-8', 'tpu7x-8'),
  ],
)
def test_other_names_are_refused_with_what_may_be_meant(name, meant):
  with pytest.raises(InputError) as error:
    parse_topology(name)
  names = ', '.join(f'{kind}-N' for kind in (*CHIPS, *GPUS))
  kinds = f'expected one of {names}, with 2x before a TPU for two slices; or cpu-N'
  assert str(error.value) == f'topology is {name!r}: {kinds}' + (f'; did you mean {meant}?' if meant else '')


@pytest.mark.parametrize(('name', 'chips'), [('tpu7x-8', 4), ('2xtpu7x-16', 16), ('v5p-8', 4), ('v5e-8', 8)])
def test_chips_are_not_devices(name, chips):
  assert parse_topology(name).num_chips == chips


def test_sizes_that_are_not_sold_are_refused():
  with pytest.raises(InputError) as error:
    parse_topology('v6e-12')
  assert str(error.value) == "topology is 'v6e-12': expected v6e- and one of 1, 4, 8, 16, 32, 64, 128, 256"


@pytest.mark.parametrize('chip', CHIPS.values(), ids=CHIPS)
def test_grids_are_those_of_the_cloud(chip):
  for number, grid in grids(chip).items():
    assert math.prod(grid) * chip.counted == number
    sides = [side for side in grid if side > 1]
    # As near to a square or a cube as a power of two allows, the ones last.
    assert sides == sorted(sides)
    assert not sides or max(sides) <= 2 * min(sides)
    assert list(grid) == sides + [1] * (chip.dimensions - len(sides))


def test_simulated_devices():
  assert len(abstract_devices(parse_topology('cpu-3'))) == 3
  with pytest.raises(InputError, match='topology cpu-9: expected at least so many devices: jax has 8'):
    abstract_devices(parse_topology('cpu-9'))


def test_without_the_compiler_it_says_what_to_install(monkeypatch):
  monkeypatch.setattr(topologies.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(InputError, match=r'topology v5e-8 needs the TPU compiler: expected .*tpu'):
    abstract_devices(parse_topology('v5e-8'))
