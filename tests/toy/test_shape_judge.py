import itertools

import numpy as np
import pytest
from scipy import ndimage

from janus_jax.toy import captions, scenes, shapes
from janus_jax.toy import shape_judge as judge_lib
from janus_jax.toy.captions import CaptionPart, Description
from janus_jax.toy.shape_judge import Seen, judge
from janus_jax.toy.shapes import COLOURS, GROUND, Object, Scene, World

WORLD = World()
SMALL = World(size=56, grid=7, num_shapes=6, num_colours=8, num_sizes=3, small=0.45, large=0.9)  # configs/small.py
FINE = World(size=24, grid=12, small=1.25, large=1.7, gap=0.5)
WORLDS = [WORLD, World(size=32, grid=8), World(size=32), FINE, SMALL]


def _sampled(world, count):
  sampled = [scenes.sample_scene(world, np.random.default_rng(seed)) for seed in range(count)]
  return sampled, shapes.render_scene(world, sampled)


def _says(seen):
  return sorted((str(item.shape), str(item.colour), str(item.size)) for item in seen)


def _right(world, scene, pixels):
  seen = judge_lib.find_objects(world, pixels)
  step = world.size / world.grid
  centres = sorted((item.x * step, item.y * step) for item in scene.objects)
  near = len(seen) == len(centres) and np.allclose(sorted((round(o.x), round(o.y)) for o in seen), centres, atol=1.01)
  truths = all(judge(description, seen).right for description in captions.scene_descriptions(scene))
  return _says(seen) == _says(scene.objects) and near and truths


@pytest.mark.parametrize('world', WORLDS, ids=lambda world: f'{world.size}-{world.grid}')
def test_reads_clean_images(world):
  sampled, images = _sampled(world, 300)
  assert sum(_right(world, *pair) for pair in zip(sampled, images, strict=True)) == 300


def _blur(images):
  return ndimage.gaussian_filter(images.astype(np.float32), (0, 0.5, 0.5, 0))


def _noise(images):
  return images + np.random.default_rng(0).normal(0, 12, images.shape)


def _darker(images):
  return images - 12.0


@pytest.mark.parametrize('spoil', [_blur, _noise, _darker])
def test_reads_spoilt_images(spoil):
  sampled, images = _sampled(WORLD, 200)
  spoilt = spoil(images).clip(0, 255).astype(np.uint8)
  assert sum(_right(WORLD, *pair) for pair in zip(sampled, spoilt, strict=True)) >= 199


@pytest.mark.parametrize('world', [WORLD, SMALL], ids=['default', 'small'])
def test_every_object_reads_as_itself_wherever_it_is(world):
  for shape, colour, size in itertools.product(world.shapes, world.colours, world.sizes):
    x, y = 9.3 * world.size / 24, 13.6 * world.size / 24
    alpha = shapes.coverage(shape, world.radius(size), x, y, world.size)[..., None]
    image = np.rint(GROUND + alpha * (np.array(COLOURS[colour]) - GROUND)).astype(np.uint8)
    (seen,) = judge_lib.find_objects(world, image)
    assert (seen.shape, seen.colour, seen.size) == (shape, colour, size)
    assert abs(seen.x - x) < 0.3
    assert abs(seen.y - y) < 0.3


def test_objects_of_many_kinds_are_told_apart_when_soft():
  triples = list(itertools.product(SMALL.shapes, SMALL.colours, SMALL.sizes))
  alone = [Scene((Object(*triple, 3, 3),)) for triple in triples]
  images = _noise(_blur(shapes.render_scene(SMALL, alone))).clip(0, 255).astype(np.uint8)
  seen = [judge_lib.find_objects(SMALL, image) for image in images]
  assert [_says(objects) for objects in seen] == [[(s, c, z)] for s, c, z in triples]
  described = [captions.scene_descriptions(scene)[-1] for scene in alone]
  for number, objects in enumerate(seen):
    assert [i for i, one in enumerate(described) if judge(one, objects).right] == [number]


def test_what_is_no_shape_is_not_recognised():
  image = np.full((24, 24, 3), GROUND, np.uint8)
  image[10:12, 2:22] = COLOURS['red']
  (seen,) = judge_lib.find_objects(WORLD, image)
  assert (seen.shape, seen.colour) == (None, 'red')
  pink = shapes.render_scene(WORLD, [Scene((Object('square', 'red', 'large', 3, 3),))])[0]
  pink[(pink != GROUND).any(-1)] = (120, 200, 120)
  (seen,) = judge_lib.find_objects(WORLD, pink)
  assert seen.shape is None or seen.colour == 'green'
  yellow = shapes.render_scene(WORLD, [Scene((Object('square', 'red', 'large', 3, 3),))])[0]
  yellow[(yellow != GROUND).any(-1)] = (40, 240, 240)
  assert all(item.shape is None for item in judge_lib.find_objects(WORLD, yellow))


def test_a_square_with_long_arms_is_no_square():
  image = shapes.render_scene(WORLD, [Scene((Object('square', 'red', 'large', 3, 3),))])[0]
  image[11:13] = COLOURS['red']
  (seen,) = judge_lib.find_objects(WORLD, image)
  assert seen.shape is None


def test_specks_are_ignored_and_nothing_is_nothing():
  image = np.full((24, 24, 3), GROUND, np.uint8)
  assert judge_lib.find_objects(WORLD, image) == []
  image[5, 5:7] = COLOURS['blue']
  assert judge_lib.find_objects(WORLD, image) == []


RED = Seen('circle', 'red', 'small', 4, 4)
BLUE = Seen('cross', 'blue', 'large', 16, 8)


@pytest.mark.parametrize(
  ('description', 'seen', 'reason'),
  [
    (Description((CaptionPart(1, 'circle'),)), [RED], ''),
    (Description((CaptionPart(1, 'circle', 'red', 'small'),)), [RED], ''),
    (Description((CaptionPart(1, 'circle', 'red', 'large'),)), [RED], '0 large red circles: expected 1'),
    (Description((CaptionPart(1, 'circle'),)), [], '0 objects: expected 1'),
    (Description((CaptionPart(1, 'circle'),)), [RED, BLUE], '2 objects: expected 1'),
    (Description((CaptionPart(2, 'circle', 'red'),)), [RED, RED], ''),
    (Description((CaptionPart(3, 'circle', 'red'),)), [RED, RED], '2 objects: expected 3'),
    (Description((CaptionPart(2, 'circle', 'red'),)), [RED, BLUE], '1 red circles: expected 2'),
    (Description((CaptionPart(1, 'circle'), CaptionPart(1, 'cross'))), [RED, BLUE], ''),
    (Description((CaptionPart(1, 'cross'), CaptionPart(1, 'circle'))), [RED, BLUE], ''),
    (
      Description((CaptionPart(1, 'circle', 'blue'), CaptionPart(1, 'cross', 'red'))),
      [RED, BLUE],
      '0 blue circles: expected 1',
    ),
    (Description((CaptionPart(1, 'circle'), CaptionPart(1, 'cross')), 'left of'), [RED, BLUE], ''),
    (Description((CaptionPart(1, 'cross'), CaptionPart(1, 'circle')), 'right of'), [RED, BLUE], ''),
    (Description((CaptionPart(1, 'circle'), CaptionPart(1, 'cross')), 'above'), [RED, BLUE], 'is left of, not above'),
    (Description((CaptionPart(1, 'circle'),)), [Seen(None, 'red', None, 4, 4)], '1 of 1 objects not recognised'),
  ],
)
def test_verdicts(description, seen, reason):
  verdict = judge(description, seen)
  assert verdict.right == (reason == '')
  assert verdict.reason == reason


def test_false_descriptions_fail():
  """A description that another scene made passes on this one only if this scene's own list has it."""
  sampled, images = _sampled(WORLD, 60)
  seen = [judge_lib.find_objects(WORLD, image) for image in images]
  truths = [set(captions.scene_descriptions(scene)) for scene in sampled]
  for (mine, objects), others in itertools.product(zip(truths, seen, strict=True), truths):
    for description in others:
      assert judge(description, objects).right == (description in mine)
