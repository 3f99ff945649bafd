"""Crowds for the tokenizer: full of objects, and nothing that is held out."""

import numpy as np

from janus_jax.toy import shapes
from janus_jax.toy.crowds import crowds
from janus_jax.toy.scenes import HELD_OUT_TRIPLES
from janus_jax.toy.shape_judge import parse_prompt
from janus_jax.toy.shapes import Object, Scene, World

WORLD = World()


def test_most_places_hold_an_object_and_none_is_held_out():
  pictures = crowds(WORLD, 60, np.random.default_rng(0))
  assert pictures.shape == (60, 24, 24, 3)
  ground = (pictures == shapes.GROUND).all(-1)
  assert 0.3 < ground.mean() < 0.75  # A scene of one object has over 0.9.
  # Objects stand on every other grid step, four cells each: cut out, each is a scene of one object for the parser.
  found = held_out = 0
  for picture in pictures[:10]:
    for x in range(3):
      for y in range(3):
        alone = np.full((24, 24, 3), shapes.GROUND, np.uint8)
        alone[8:16, 8:16] = picture[8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
        for seen in parse_prompt(WORLD, alone):
          found += 1
          held_out += (seen.colour, seen.shape, seen.size) in HELD_OUT_TRIPLES
  assert found > 40  # Of 90 places, 70 % hold one.
  assert held_out == 0


def test_the_cut_of_the_test_above_reads_single_objects():
  scene = Scene((Object('circle', 'red', 'small', 3, 3),))
  (picture,) = shapes.render_scene(WORLD, [scene])
  (seen,) = parse_prompt(WORLD, picture)
  assert (seen.colour, seen.shape, seen.size) == ('red', 'circle', 'small')


def test_the_same_draws_give_the_same_pictures():
  first, second = (crowds(WORLD, 3, np.random.default_rng(1)) for _ in range(2))
  np.testing.assert_array_equal(first, second)
