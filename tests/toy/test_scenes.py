import dataclasses
import functools
import itertools
import subprocess
import sys

import numpy as np
import pytest

from janus_jax.toy import scenes
from janus_jax.toy.shapes import Object, Scene, World

WORLDS = {
  'default': World(),
  # configs/small.py
  'small': World(
    size=56,
    grid=7,
    num_shapes=6,
    num_colours=8,
    num_sizes=3,
    small=0.45,
    large=0.9,
    mixture=(0.2, 0.25, 0.55),
    combinations=12,
    num_train=0,
  ),
}


@pytest.fixture(scope='module', params=WORLDS)
def world(request):
  return WORLDS[request.param]


def _sampled(world, split, count=600):
  return [scenes.scene_at(world, split, index) for index in range(count)]


@pytest.fixture(scope='module')
def train(world):
  return _sampled(world, 'train', 4000)


@pytest.fixture(scope='module')
def unseen(world):
  return {split: _sampled(world, split) for split in ('test', 'held_out')}


def _all_triples(world):
  return set(itertools.product(world.colours, world.shapes, world.sizes))


def _triples(scene):
  return {(item.colour, item.shape, item.size) for item in scene.objects}


def _both_ways(relations):
  return relations | {(other, scenes.OPPOSITE[name], shape) for shape, name, other in relations}


def test_no_unseen_scene_is_in_training(train, unseen):
  assert not set(train) & set(unseen['test'])
  assert not set(train) & set(unseen['held_out'])
  assert not set(unseen['test']) & set(unseen['held_out'])


def test_every_scene_of_one_object_is_in_one_split(world):
  """The whole set of them is small enough to count."""
  positions = list(itertools.product(world.positions, repeat=2))
  everything = [Scene((Object(s, c, z, x, y),)) for c, s, z in _all_triples(world) for x, y in positions]
  counts = {split: sum(scenes.split_of(world, scene) == split for scene in everything) for split in scenes.SPLITS}
  assert sum(counts.values()) == len(everything) == {24: 1200, 56: 5184}[world.size]
  assert counts['held_out'] == world.combinations * len(positions)
  assert 0.15 < counts['test'] / (counts['test'] + counts['train']) < 0.25


def test_split_is_the_same_in_another_process(world, unseen):
  code = f'from janus_jax.toy.shapes import World; from janus_jax.toy.scenes import scene_at; world = {world}; '
  code += 'print([scene_at(world, "test", i) for i in (0, 1)])'
  output = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
  assert output.strip() == repr(unseen['test'][:2])


def test_training_shows_all_triples_and_counts_but_those_held_out(world, train):
  held_out, shown = scenes.held_out(world), set().union(*map(_triples, train))
  assert shown == _all_triples(world) - held_out.triples
  counts = {(len(s.objects), s.objects[0].colour, s.objects[0].shape) for s in train if scenes.layout(s) == 'alike'}
  assert counts == set(itertools.product(scenes.COUNTS, world.colours, world.shapes)) - held_out.counts


def _worlds():
  """Of every number of shapes, colours and sizes, with each number of held-out combinations up to the largest."""
  for shapes, colours, sizes in itertools.product(range(3, 7), range(2, 9), (2, 3)):
    for combinations in range(1, max(shapes, colours) * (min(shapes, colours) // 2) + 1):
      yield World(num_shapes=shapes, num_colours=colours, num_sizes=sizes, combinations=combinations)


def test_as_many_combinations_are_held_out_as_asked_and_no_colour_and_shape_twice():
  for world in _worlds():
    held_out = scenes.held_out(world)
    assert len(held_out.relations) == world.combinations // 2, world
    assert len(_both_ways(held_out.relations)) == 2 * len(held_out.relations), world
    pairs = [t[:2] for t in held_out.triples] + [t[1:] for t in held_out.counts]
    assert len(set(pairs)) == 2 * world.combinations, world
    assert held_out.triples <= _all_triples(world), world
    assert held_out.counts <= set(itertools.product(scenes.COUNTS, world.colours, world.shapes)), world


def test_every_pair_of_values_is_still_shown_in_every_world():
  for world in _worlds():
    held_out = scenes.held_out(world)
    relations = itertools.permutations(world.shapes, 2)
    for everything, held in (
      (_all_triples(world), held_out.triples),
      (set(itertools.product(scenes.COUNTS, world.colours, world.shapes)), held_out.counts),
      ({(a, name, b) for a, b in relations for name in scenes.RELATIONS}, _both_ways(held_out.relations)),
    ):
      for first, second in itertools.combinations(range(3), 2):
        pairs, shown = ({(t[first], t[second]) for t in some} for some in (everything, everything - held))
        assert shown == pairs, (world, pairs - shown)


def test_every_value_is_among_the_held_out_triples_where_there_are_as_many():
  for world in _worlds():
    for position, values in enumerate((world.colours, world.shapes, world.sizes)):
      found = {triple[position] for triple in scenes.held_out(world).triples}
      if world.combinations >= len(values) and (position < 2 or world.num_colours > 2):
        assert found == set(values), world


def test_two_objects_differ_and_some_pairs_and_relations_are_held_out(world, train):
  coloured = list(itertools.product(world.colours, world.shapes))
  pairs = {(a, b) for a, b in itertools.permutations(coloured, 2) if a[0] != b[0] and a[1] != b[1]}
  held = {pair for pair in pairs if scenes.pair_held_out(*pair)}
  assert {(b, a) for a, b in held} == held
  assert 0.05 < len(held) / len(pairs) < 0.15
  relations = set()
  shown = set()
  for scene in train:
    if scenes.layout(scene) == 'two':
      for a, b in itertools.permutations(scene.objects):
        shown.add(((a.colour, a.shape), (b.colour, b.shape)))
        relations.add((a.shape, scenes.relation(a, b), b.shape))
  assert shown <= pairs - held
  assert {a for a, _ in shown} == set(coloured)
  everything = {(a, name, b) for a, b in itertools.permutations(world.shapes, 2) for name in scenes.RELATIONS}
  assert relations == everything - _both_ways(scenes.held_out(world).relations)
  assert {(shape, name) for shape, name, _ in relations} == set(itertools.product(world.shapes, scenes.RELATIONS))


def test_a_relation_is_held_out_from_both_sides(world):
  first, second = (Object(shape, None, None, 0, 0) for shape in ('circle', 'square'))
  held_out = functools.partial(scenes.combination_held_out, world)
  assert held_out([first, second], 1, 'left of')
  assert held_out([second, first], 1, 'right of')
  assert not held_out([first, second], 1, 'right of')
  assert not held_out([first, second], 1, None)


def test_held_out_scenes_are_held_out_for_every_reason(world, unseen):
  reasons, held_out = {'triple': 0, 'count': 0, 'pair': 0, 'relation': 0}, scenes.held_out(world)
  for scene in unseen['held_out']:
    first, *others = scene.objects
    reasons['triple'] += bool(_triples(scene) & held_out.triples)
    if scenes.layout(scene) == 'alike':
      reasons['count'] += (len(scene.objects), first.colour, first.shape) in held_out.counts
    if scenes.layout(scene) == 'two':
      (second,) = others
      reasons['pair'] += scenes.pair_held_out((first.colour, first.shape), (second.colour, second.shape))
      relation = first.shape, scenes.relation(first, second), second.shape
      reasons['relation'] += relation in _both_ways(held_out.relations)
  assert all(count > 10 for count in reasons.values()), reasons


def test_objects_lie_inside_and_apart(world, train):
  for scene in train[:1000]:
    assert all(item.x in world.positions and item.y in world.positions for item in scene.objects)
    for a, b in itertools.combinations(scene.objects, 2):
      assert max(abs(a.x - b.x), abs(a.y - b.y)) >= world.min_distance


def test_relations_are_what_they_say():
  left, right = Object('circle', 'red', 'small', 1, 3), Object('cross', 'blue', 'small', 4, 2)
  assert scenes.relation(left, right) == 'left of'
  assert scenes.relation(right, left) == 'right of'
  top = Object('square', 'blue', 'small', 2, 1)
  assert scenes.relation(top, left) == 'above'
  assert scenes.relation(left, top) == 'below'
  with pytest.raises(ValueError, match='no axis'):
    scenes.relation(Object('circle', 'red', 'small', 1, 1), Object('cross', 'blue', 'small', 3, 3))


def test_sampling_is_reproducible_and_depends_on_the_seed(world, train):
  assert _sampled(world, 'train', 50) == train[:50]
  assert _sampled(dataclasses.replace(world, seed=1), 'train', 50) != train[:50]


def test_layouts_come_by_the_weights_of_the_mixture():
  rng = np.random.default_rng(0)
  layouts = [scenes.layout(scenes.sample_scene(World(mixture=(2, 1, 1)), rng)) for _ in range(2000)]
  assert abs(layouts.count('one') / 2000 - 0.5) < 0.05
  assert abs(layouts.count('alike') / 2000 - 0.25) < 0.05
