"""Crowds for the tokenizer: full of objects, held-out triples among them."""

import itertools

import numpy as np

from janus_jax.toy import shapes
from janus_jax.toy.scenes import render_crowds
from janus_jax.toy.shape_judge import find_objects
from janus_jax.toy.shapes import Object, Scene, World

WORLD = World()


def test_most_positions_hold_an_object_and_every_triple_is_among_them():
  images = render_crowds(WORLD, 60, np.random.default_rng(0))
  assert images.shape == (60, 24, 24, 3)
  ground = (images == shapes.GROUND).all(-1)
  assert 0.3 < ground.mean() < 0.75  # A scene of one object has over 0.9.
  # Objects stand on every other grid step, four cells each: cut out, each is a scene of one object for the parser.
  found, triples = 0, set()
  for image in images:
    for x in range(3):
      for y in range(3):
        alone = np.full((24, 24, 3), shapes.GROUND, np.uint8)
        alone[8:16, 8:16] = image[8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
        seen = find_objects(WORLD, alone)
        found += len(seen)
        triples |= {(item.colour, item.shape, item.size) for item in seen}
  assert found > 240  # Of 540 positions, 70 % hold one.
  assert triples == set(itertools.product(WORLD.colours, WORLD.shapes, WORLD.sizes))


def test_the_cut_of_the_test_above_reads_single_objects():
  scene = Scene((Object('circle', 'red', 'small', 3, 3),))
  (image,) = shapes.render_scene(WORLD, [scene])
  (seen,) = find_objects(WORLD, image)
  assert (seen.colour, seen.shape, seen.size) == ('red', 'circle', 'small')


def test_the_same_seed_gives_the_same_images():
  first, second = (render_crowds(WORLD, 3, np.random.default_rng(1)) for _ in range(2))
  np.testing.assert_array_equal(first, second)
