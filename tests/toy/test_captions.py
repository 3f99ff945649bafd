import collections
import itertools
import re

import numpy as np
import pytest

from janus_jax.toy import captions, digits, scenes
from janus_jax.toy.captions import CaptionPart, Description
from janus_jax.toy.shapes import Object, Scene, World

WORLD = World()
SMALL = World(size=56, grid=7, num_shapes=6, num_colours=8, num_sizes=3, small=0.45, large=0.9, combinations=12)


def _texts(scene):
  return [description.text for description in captions.scene_descriptions(scene)]


def test_words():
  assert CaptionPart(1, 'circle', 'orange').text == 'an orange circle'
  assert CaptionPart(1, 'circle', 'orange', 'large').text == 'a large orange circle'
  assert CaptionPart(3, 'cross', 'red').text == 'three red crosses'
  assert CaptionPart(4, 'square').text == 'four squares'
  parts = CaptionPart(1, 'cross'), CaptionPart(1, 'circle', 'orange')
  assert Description(parts).text == 'a cross and an orange circle'
  assert Description(parts, 'left of').text == 'a cross left of an orange circle'


def test_everything_said_of_two_objects():
  scene = Scene((Object('circle', 'red', 'small', 1, 1), Object('cross', 'blue', 'large', 4, 2)))
  expected = []
  for a, b in (('circle', 'cross'), ('red circle', 'blue cross'), ('small red circle', 'large blue cross')):
    expected += [f'a {a} and a {b}', f'a {b} and a {a}', f'a {a} left of a {b}', f'a {b} right of a {a}']
  assert sorted(_texts(scene)) == sorted(expected)


def test_everything_said_of_objects_alike():
  positions = ((1, 1), (3, 3), (5, 5))
  scene = Scene(tuple(Object('cross', 'red', 'small', x, y) for x, y in positions))
  assert _texts(scene) == ['three crosses', 'three red crosses', 'three small red crosses']


def test_every_phrase_loses_two_templates_and_keeps_the_plain_one():
  rng = np.random.default_rng(0)
  missing = set()
  coloured = [f'a {colour} {shape}' for colour, shape in itertools.product(WORLD.colours, WORLD.shapes)]
  for phrase in [*map(digits.phrase, range(10)), *coloured]:
    said = {captions.sample_prompt(phrase, rng) for _ in range(100)}
    never = {captions.sample_prompt(phrase, rng, held_out=True) for _ in range(30)}
    everything = {template.format(phrase) for template in captions.PROMPT_TEMPLATES}
    assert phrase in said
    assert everything - said == never
    assert len(never) == captions.HELD_OUT_TEMPLATES
    missing |= {captions.held_out_templates(phrase)}
  assert set(itertools.chain(*missing)) == set(captions.PROMPT_TEMPLATES[1:])


def test_digits_use_every_template():
  never = [captions.held_out_templates(digits.phrase(digit)) for digit in range(10)]
  assert not set.intersection(*map(set, never))
  assert len(set(itertools.chain(*never))) >= 5


def test_training_never_says_what_is_held_out():
  texts = {text for index in range(3000) for text in _texts(scenes.scene_at(WORLD, 'train', index))}
  said = ' | '.join(sorted(texts))
  held_out = scenes.held_out(WORLD)
  for colour, shape, size in held_out.triples:
    assert f'{size} {colour} {shape}' not in said
    other = 'large' if size == 'small' else 'small'
    assert f'a {other} {colour} {shape}' in texts
  for count, colour, shape in held_out.counts:
    assert CaptionPart(count, shape, colour).text not in texts
    assert CaptionPart(count, shape).text in texts
  for a, b in itertools.permutations(itertools.product(WORLD.colours, WORLD.shapes), 2):
    if scenes.pair_held_out(a, b):
      assert f'{CaptionPart(1, a[1], a[0]).text} and {CaptionPart(1, b[1], b[0]).text}' not in texts
  for shape, name, other in held_out.relations:
    assert f'a {shape} {name} a {other}' not in texts
    assert f'a {other} {scenes.OPPOSITE[name]} a {shape}' not in texts
    assert f'a {shape} {scenes.OPPOSITE[name]} a {other}' in texts


def _read(text):
  """What a dense caption says: [(number, size, colour, shape), ...] and the relation, worked out from its words."""
  *parts, relation = (*re.split(f' ({"|".join(scenes.RELATIONS)}) ', text), None)
  if relation is None and len(parts) == 3:
    parts, relation = parts[::2], parts[1]
  words = [re.sub(r'(?<=[a-rt-z])s$|(?<=ss)es$', '', part).split() for part in parts]
  return [('one' if number in ('a', 'an') else number, *rest) for number, *rest in words], relation


def _difference(true, said):
  """The one thing in which two dense captions differ, 'where' or what is said of an object (swapped between two); None
  where they differ in more.
  """
  (parts, relation), (others, other_relation) = true, said
  changed = [i for i in range(4) if [part[i] for part in parts] != [part[i] for part in others]]
  kinds = [('count', 'size', 'colour', 'shape')[i] for i in changed] + ['where'] * (relation != other_relation)
  if len(kinds) != 1:
    return None
  if len(parts) == 2 and changed:
    assert [part[changed[0]] for part in parts] == [part[changed[0]] for part in others[::-1]], (true, said)
  return kinds[0]


@pytest.mark.parametrize('world', [WORLD, SMALL], ids=['default', 'small'])
def test_near_misses_are_false_in_one_thing_and_none_is_held_out(world):
  held_out, kinds = scenes.held_out(world), collections.defaultdict(set)
  for index in range(1500):
    scene = scenes.scene_at(world, 'train', index)
    true, misses = _texts(scene), captions.near_misses(world, scene)
    assert not set(true) & set(misses)
    assert misses
    assert len(set(misses)) == len(misses)
    for text in misses:
      parts, relation = _read(text)
      # Of two objects either may come first.
      dense = [_read(item.text) for item in captions.dense_descriptions(scene)]
      (kind,) = {_difference(true, (parts, relation)) for true in dense} - {None}
      kinds[scenes.layout(scene)].add(kind)
      assert held_out.triples.isdisjoint((colour, shape, size) for _, size, colour, shape in parts)
      (number, _, colour, shape), *others = parts
      if others:
        (_, _, other_colour, other) = others[0]
        assert not scenes.pair_held_out((colour, shape), (other_colour, other))
        both_ways = {(shape, relation, other), (other, scenes.OPPOSITE[relation], shape)}
        assert held_out.relations.isdisjoint(both_ways)
      else:
        assert (captions.NUMBERS.index(number), colour, shape) not in held_out.counts
  same = {'count', 'size', 'colour', 'shape'}
  assert kinds == {'one': same, 'alike': same, 'two': {'where', 'size', 'colour', 'shape'}}


def test_all_near_misses_of_a_scene():
  pair = Scene((Object('circle', 'red', 'large', 1, 1), Object('cross', 'green', 'large', 4, 2)))
  assert _texts(pair)[-1] == 'a large green cross right of a large red circle'
  assert set(captions.near_misses(WORLD, pair)) == {
    *(f'a large green cross {name} a large red circle' for name in ('left of', 'above', 'below')),
    *(f'a large red circle {name} a large green cross' for name in ('right of', 'above', 'below')),
    'a large green circle right of a large red cross',
    'a large red cross right of a large green circle',
    'a large red cross left of a large green circle',
    'a large green circle left of a large red cross',
  }
  alike = Scene(tuple(Object('circle', 'red', 'large', x, 1) for x in (1, 3)))
  # Two red triangles are held out, and so are small red circles and large purple ones.
  assert set(captions.near_misses(WORLD, alike)) == {
    *(f'two large red {name}' for name in ('squares', 'crosses')),
    *(f'two large {name} circles' for name in ('orange', 'green', 'blue', 'black')),
    'a large red circle',
    'three large red circles',
    'four large red circles',
  }
