"""Plans for GPUs, by formula, beside what a card took (janus_jax/benchmarking/README.md)."""

import dataclasses

import pytest
from recipes import recipe as load

from janus_jax.errors import InputError
from janus_jax.planning.compile import make_setup, plan_stage
from janus_jax.planning.report import plan_to_json, plan_to_text
from janus_jax.planning.suggest import find_fitting
from janus_jax.planning.topologies import Topology, parse_topology
from janus_jax.runs.config import parse_config
from janus_jax.runs.start import find_start
from janus_jax.sharding.accelerators import GIB


def plan(topology: str | Topology, recipe: str = 'janus_pro_1b', **changes):
  config = load(recipe)
  config.run = ('stage3',)
  config.update_from_flattened_dict(changes)
  parsed = parse_config(config)
  devices = parse_topology(topology) if isinstance(topology, str) else topology
  setup = make_setup(parsed, find_start(parsed, f'configs/{recipe}.py'), devices)
  return parsed, plan_stage(setup, 0)


@pytest.mark.parametrize(
  ('rows', 'remat', 'codes', 'chunk', 'measured'),
  [(4, 'auto', True, 256, 52.7), (4, 'full', False, 256, 33.0), (6, 'full', True, 512, 34.5)],
)
def test_memory_is_a_little_more_than_an_h100_took(rows, remat, codes, chunk, measured):
  options = {'compute.remat': remat, 'data.precompute_codes': codes, 'loss_chunk': chunk}
  _, found = plan('h100-1', **{'stages.stage3.batch_size': rows}, **options)
  assert found.setup.step.compute.remat == ('dots' if remat == 'auto' else 'full')
  assert measured * GIB < found.memory.peak < 1.12 * measured * GIB
  assert found.memory.fits


def test_a_plan_says_that_it_is_an_estimate():
  _, found = plan('h100-8', 'janus_pro_7b')
  assert plan_to_text(found, [], None).splitlines()[0].endswith(': fits, estimated by formula and not compiled')
  assert plan_to_json(found, [], None)['estimated']
  assert 0.3 < found.figures.mfu_bound < 1


def test_several_nodes_meet_through_their_network():
  one_node = parse_topology('h100-8')
  two_nodes = dataclasses.replace(one_node, slices=2, grid=(4,))
  (_, one), (_, two) = (plan(topology, 'janus_pro_7b') for topology in (one_node, two_nodes))
  assert one.received['between-slices'] == 0 < two.received['between-slices']
  assert two.figures.bound.network > one.figures.bound.network


def test_settings_are_found_with_which_it_fits():
  config, found = plan('h100-4', 'janus_pro_7b')
  assert not found.memory.fits
  options, fitting = find_fitting(config, 0, found)
  assert options == ['--config.stages.stage3.accumulation=4']
  assert fitting.memory.fits


def test_names_of_gpus():
  assert dataclasses.astuple(parse_topology('h100-4'))[2:] == (1, (4,))
  assert dataclasses.astuple(parse_topology('h100-16'))[2:] == (2, (8,))
  with pytest.raises(InputError, match='up to 8 GPUs, or a multiple of that'):
    parse_topology('h100-12')
  with pytest.raises(InputError, match='did you mean h100-8'):
    parse_topology('8xH100')
