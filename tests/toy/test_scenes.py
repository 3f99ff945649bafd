import itertools
import subprocess
import sys

import numpy as np
import pytest

from janus_jax.toy import scenes
from janus_jax.toy.shapes import COLOURS, SHAPES, SIZES, Object, Scene, World

WORLD = World()
TRIPLES = set(itertools.product(COLOURS, SHAPES, SIZES))


def _sampled(split, count=600):
  return [scenes.scene_at(WORLD, split, index) for index in range(count)]


@pytest.fixture(scope='module')
def train():
  return _sampled('train', 4000)


@pytest.fixture(scope='module')
def unseen():
  return {split: _sampled(split) for split in ('test', 'held_out')}


def _triples(scene):
  return {(item.colour, item.shape, item.size) for item in scene.objects}


def test_no_unseen_scene_is_in_training(train, unseen):
  assert not set(train) & set(unseen['test'])
  assert not set(train) & set(unseen['held_out'])
  assert not set(unseen['test']) & set(unseen['held_out'])


def test_every_scene_of_one_object_is_in_one_split(train, unseen):
  """The whole set of them is small enough to count."""
  positions = list(itertools.product(WORLD.positions, repeat=2))
  everything = [Scene((Object(s, c, z, x, y),)) for c, s, z in TRIPLES for x, y in positions]
  counts = {split: sum(scenes.split_of(scene) == split for scene in everything) for split in scenes.SPLITS}
  assert sum(counts.values()) == len(everything) == 1200
  assert counts['held_out'] == 6 * 25
  assert 0.15 < counts['test'] / (counts['test'] + counts['train']) < 0.25


def test_split_is_the_same_in_another_process(unseen):
  code = 'from janus_jax.toy import scenes, shapes; print([scenes.scene_at(shapes.World(), "test", i) for i in (0, 1)])'
  output = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
  assert output.strip() == repr(unseen['test'][:2])


def test_training_never_shows_what_is_held_out(train):
  shown = set().union(*map(_triples, train))
  assert shown == TRIPLES - scenes.HELD_OUT_TRIPLES
  counts = {(len(s.objects), s.objects[0].colour, s.objects[0].shape) for s in train if scenes.layout(s) == 'alike'}
  assert counts == set(itertools.product(scenes.COUNTS, COLOURS, SHAPES)) - scenes.HELD_OUT_COUNTS


def test_every_pair_of_attributes_is_still_shown(train):
  shown = set().union(*map(_triples, train))
  for first, second in itertools.combinations(range(3), 2):
    assert {(t[first], t[second]) for t in shown} == {(t[first], t[second]) for t in TRIPLES}
  for position, values in enumerate((COLOURS, SHAPES, SIZES)):
    assert {triple[position] for triple in scenes.HELD_OUT_TRIPLES} == set(values)


def test_two_objects_differ_and_some_pairs_and_relations_are_held_out(train):
  coloured = list(itertools.product(COLOURS, SHAPES))
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
  assert len(relations) == 12 * 4 - 2 * len(scenes.HELD_OUT_RELATIONS)
  assert {(shape, name) for shape, name, _ in relations} == set(itertools.product(SHAPES, scenes.RELATIONS))
  assert not any(scenes.relation_held_out(*item) for item in relations)
  assert scenes.relation_held_out('square', 'right of', 'circle')


def test_held_out_scenes_are_held_out_for_every_reason(unseen):
  reasons = {'triple': 0, 'count': 0, 'pair': 0, 'relation': 0}
  for scene in unseen['held_out']:
    first, *others = scene.objects
    reasons['triple'] += bool(_triples(scene) & scenes.HELD_OUT_TRIPLES)
    if scenes.layout(scene) == 'alike':
      reasons['count'] += (len(scene.objects), first.colour, first.shape) in scenes.HELD_OUT_COUNTS
    if scenes.layout(scene) == 'two':
      (second,) = others
      reasons['pair'] += scenes.pair_held_out((first.colour, first.shape), (second.colour, second.shape))
      reasons['relation'] += scenes.relation_held_out(first.shape, scenes.relation(first, second), second.shape)
  assert all(count > 10 for count in reasons.values()), reasons


def test_objects_lie_inside_and_apart(train):
  for scene in train[:1000]:
    assert all(item.x in WORLD.positions and item.y in WORLD.positions for item in scene.objects)
    for a, b in itertools.combinations(scene.objects, 2):
      assert max(abs(a.x - b.x), abs(a.y - b.y)) >= 2


def test_relations_are_what_they_say():
  left, right = Object('circle', 'red', 'small', 1, 3), Object('cross', 'blue', 'small', 4, 2)
  assert scenes.relation(left, right) == 'left of'
  assert scenes.relation(right, left) == 'right of'
  top = Object('square', 'blue', 'small', 2, 1)
  assert scenes.relation(top, left) == 'above'
  assert scenes.relation(left, top) == 'below'
  with pytest.raises(ValueError, match='no axis'):
    scenes.relation(Object('circle', 'red', 'small', 1, 1), Object('cross', 'blue', 'small', 3, 3))


def test_sampling_is_reproducible_and_depends_on_the_seed(train):
  assert _sampled('train', 50) == train[:50]
  other = World(seed=1)
  assert [scenes.scene_at(other, 'train', index) for index in range(50)] != train[:50]


def test_layouts_come_by_the_weights_of_the_mixture():
  rng = np.random.default_rng(0)
  layouts = [scenes.layout(scenes.sample_scene(World(mixture=(2, 1, 1)), rng)) for _ in range(2000)]
  assert abs(layouts.count('one') / 2000 - 0.5) < 0.05
  assert abs(layouts.count('alike') / 2000 - 0.25) < 0.05
