"""Images that show what was asked for and something else besides, or not all of it, are refused; soft ones are not."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from janus_jax.toy import captions, scenes, shapes
from janus_jax.toy import shape_judge as judge_lib
from janus_jax.toy.shapes import COLOURS, GROUND, Object, Scene, World

WORLDS = {size: World(size=size, grid=min(size // 4, 8)) for size in (24, 32, 48, 64)}
SHAPES, SIZES = World().shapes, World().sizes
PALETTE = {name: np.array(COLOURS[name], np.float32) for name in World().colours}


def of_each_object(world):
  middle = world.positions[len(world.positions) // 2]
  return [Scene((Object(*triple, middle, middle),)) for triple in itertools.product(SHAPES, PALETTE, SIZES)]


def passes(world, scene, image):
  """Judged by the densest description of the scene."""
  pixels = np.rint(image.clip(0, 255)).astype(np.uint8)
  return judge_lib.judge_image(world, captions.scene_descriptions(scene)[-1], pixels).right


def cover_of(world, item, dx=0.0, dy=0.0, scale=1.0):
  """float32[size, size, 1]; dx and dy in grid steps."""
  step = world.size / world.grid
  centre = (item.x + dx) * step, (item.y + dy) * step
  return shapes.coverage(item.shape, scale * world.radius(item.size), *centre, world.size)[..., None]


def painted(image, cover, colour, opacity=1.0):
  return image + opacity * cover * (np.asarray(colour, np.float32) - image)


def layer_of(world, item):
  return cover_of(world, item), PALETTE[item.colour]


def on_ground(world, item, ground):
  return painted(np.broadcast_to(np.asarray(ground, np.float32), (world.size, world.size, 3)), *layer_of(world, item))


def rendered(world, cover, item):
  """On the usual ground, with this cover."""
  return painted(np.full((world.size, world.size, 3), GROUND, np.float32), cover, PALETTE[item.colour])


def cut(side, fraction):
  def spoil(world, item, image, rng):
    # Of a triangle a quarter of the height at its tip is 6 % of the area: half is a quarter.
    part = 0.5 if side == 'upper' and item.shape == 'triangle' else fraction
    centre = (item.y if side in ('lower', 'upper') else item.x) * world.size / world.grid
    edge = world.radius(item.size) * (1 - 2 * part)
    pixels = np.arange(world.size)
    kept = (centre + edge - pixels if side in ('lower', 'right') else pixels + 1 - centre + edge).clip(0, 1)
    kept = kept[:, None] if side in ('lower', 'upper') else kept[None, :]
    return rendered(world, cover_of(world, item) * kept[..., None], item)

  return spoil


def ghost(opacity, colour=None):
  def spoil(world, item, image, rng):
    far = [
      position
      for position in itertools.product(world.positions, repeat=2)
      if max(abs(position[0] - item.x), abs(position[1] - item.y)) >= world.min_distance
    ]
    x, y = far[rng.integers(len(far))]
    shape, size, other = (list(of)[rng.integers(len(of))] for of in (SHAPES, SIZES, PALETTE))
    second = Object(shape, item.colour if colour == 'same' else other, size, x, y)
    return painted(image, *layer_of(world, second), opacity)

  return spoil


def ghost_behind(world, item, image, rng):
  other = Object(SHAPES[rng.integers(4)], list(PALETTE)[(list(PALETTE).index(item.colour) + 2) % 6], 'large', 0, 0)
  behind = cover_of(world, Object(other.shape, other.colour, 'large', item.x, item.y), 0.75, 0.75)
  return painted(painted(np.full_like(image, GROUND), behind, PALETTE[other.colour], 0.5), *layer_of(world, item))


def shadow(world, item, image, rng):
  beside = (cover_of(world, item, dx=0.75) - cover_of(world, item)).clip(0)
  return painted(image, beside, PALETTE[item.colour], 0.5)


def ground(colour):
  return lambda world, item, image, rng: on_ground(world, item, colour)


def ramp(world, item, image, rng):
  slope = GROUND - 40 * np.linspace(0, 1, world.size, dtype=np.float32)[None, :, None]
  return on_ground(world, item, np.broadcast_to(slope, image.shape))


def noise(deviation):
  return lambda world, item, image, rng: image + rng.normal(0, deviation, image.shape)


def washed_out(opacity):
  return lambda world, item, image, rng: GROUND + opacity * (image - GROUND)


def half_in_another_colour(world, item, image, rng):
  other = list(PALETTE.values())[(list(PALETTE).index(item.colour) + 1 + rng.integers(5)) % 6]
  below = np.arange(world.size)[:, None, None] >= item.y * world.size // world.grid
  return np.where(below, painted(np.full_like(image, GROUND), cover_of(world, item), other), image)


def noisy_object(world, item, image, rng):
  return image + cover_of(world, item) * rng.normal(0, 80, image.shape)


def hole(world, item, image, rng):
  return rendered(world, (cover_of(world, item) - cover_of(world, item, scale=0.4)).clip(0), item)


def line(world, item, image, rng):
  spoilt, row = image.copy(), world.size // 6
  spoilt[row : row + world.size // 24] = (GROUND + PALETTE[list(PALETTE)[rng.integers(6)]]) / 2
  return spoilt


def frame(world, item, image, rng):
  inside = np.zeros(image.shape[:2], bool)
  inside[1:-1, 1:-1] = True
  return np.where(inside[..., None], image, GROUND - 80)


def checks(world, item, image, rng):
  side = world.size // 12
  return image - 40 * (np.indices(image.shape[:2]).sum(0) // side % 2)[..., None]


def salt(world, item, image, rng):
  grains = np.array(list(PALETTE.values()))[rng.integers(6, size=image.shape[:2])]
  return np.where(rng.random(image.shape[:2])[..., None] < 0.04, grains, image)


SPOILT = {
  **{f'{side} quarter cut away': cut(side, 0.25) for side in ('lower', 'upper', 'left', 'right')},
  **{f'{side} third cut away': cut(side, 1 / 3) for side in ('lower', 'upper', 'left', 'right')},
  **{f'second object at {opacity}': ghost(opacity) for opacity in (0.3, 0.4, 0.5)},
  'second object of its colour at 0.5': ghost(0.5, 'same'),
  'object behind it at 0.5': ghost_behind,
  'shadow at 0.5': shadow,
  'pink ground': ground((255, 192, 203)),
  'pale pink ground': ground((242, 212, 222)),
  'pale yellow ground': ground((242, 242, 200)),
  'pale blue ground': ground((212, 222, 242)),
  'ground 90 darker': ground((GROUND - 90,) * 3),
  'ground 25 darker': ground((GROUND - 25,) * 3),
  'all 90 darker': lambda world, item, image, rng: image - 90,
  'ramp of 40': ramp,
  'noise of 30': noise(30),
  'noise of 60': noise(60),
  'washed out to 0.65': washed_out(0.65),
  'washed out to 0.5': washed_out(0.5),
  'half in another colour': half_in_another_colour,
  'noisy object': noisy_object,
  'hole': hole,
  'line at 0.5': line,
  'frame': frame,
  'checks': checks,
  'salt': salt,
  'static': lambda world, item, image, rng: rng.uniform(0, 255, image.shape),
  'all of its colour': lambda world, item, image, rng: np.broadcast_to(PALETTE[item.colour], image.shape),
  'bare ground': lambda world, item, image, rng: np.full_like(image, GROUND),
}


def refused(world, spoil):
  rng, found = np.random.default_rng(0), 0
  objects = of_each_object(world)
  for scene, image in zip(objects, shapes.render_scene(world, objects), strict=True):
    found += not passes(world, scene, spoil(world, scene.objects[0], image.astype(np.float32), rng))
  return found


@pytest.mark.parametrize('name', SPOILT)
@pytest.mark.parametrize('size', [24, 48])
def test_spoilt_images_are_refused(size, name):
  assert refused(WORLDS[size], SPOILT[name]) >= 46  # Of 48.


@pytest.mark.parametrize('name', ['lower quarter cut away', 'second object at 0.5', 'pink ground', 'ground 90 darker'])
@pytest.mark.parametrize('size', [32, 64])
def test_spoilt_images_are_refused_at_other_sizes(size, name):
  assert refused(WORLDS[size], SPOILT[name]) >= 46


def softened(image, sigma, rng):
  """As decoders leave an image: blurred, with a little noise, and with a speck of two pixels on the ground."""
  soft = ndimage.gaussian_filter(image.astype(np.float32), (sigma, sigma, 0)) + rng.uniform(-6, 6, image.shape)
  rows, columns = np.nonzero(ndimage.distance_transform_edt((image == GROUND).all(-1)[:, :-1]) > 4)
  chosen = rng.integers(len(rows))
  soft[rows[chosen], columns[chosen] : columns[chosen] + 2] = PALETTE[list(PALETTE)[rng.integers(6)]]
  return soft


def every_object(world):
  positions = itertools.product(world.positions, repeat=2)
  triples = itertools.product(SHAPES, PALETTE, SIZES)
  return [Scene((Object(*triple, *position),)) for position, triple in itertools.product(positions, triples)]


@pytest.mark.parametrize('size', WORLDS)
def test_every_object_passes_everywhere(size):
  world = WORLDS[size]
  everything = every_object(world)[:: 1 if size == 24 else 7]
  images = shapes.render_scene(world, everything)
  assert [s for s, image in zip(everything, images, strict=True) if not passes(world, s, image)] == []


def test_every_test_scene_passes():
  world = WORLDS[24]
  drawn = [scenes.scene_at(world, 'test', index) for index in range(world.num_test)]
  drawn += [scenes.scene_at(world, 'held_out', index) for index in range(world.num_held_out)]
  assert [
    s for s, image in zip(drawn, shapes.render_scene(world, drawn), strict=True) if not passes(world, s, image)
  ] == []


@pytest.mark.parametrize('sigma', [0.3, 0.5])
@pytest.mark.parametrize('size', WORLDS)
def test_soft_images_pass(size, sigma):
  world, rng = WORLDS[size], np.random.default_rng(size)
  drawn = of_each_object(world) + [scenes.scene_at(world, 'test', index) for index in range(150)]
  images = shapes.render_scene(world, drawn)
  failed = [s for s, image in zip(drawn, images, strict=True) if not passes(world, s, softened(image, sigma, rng))]
  assert failed == []


def test_reasons_say_what_is_wrong():
  world = WORLDS[24]
  item = Object('square', 'red', 'large', 3, 3)
  scene = Scene((item,))
  image, rng = shapes.render_scene(world, [scene])[0].astype(np.float32), np.random.default_rng(0)
  reasons = {}
  for name in SPOILT:
    pixels = np.rint(SPOILT[name](world, item, image, rng).clip(0, 255)).astype(np.uint8)
    reasons[name] = judge_lib.judge_image(world, captions.scene_descriptions(scene)[-1], pixels).reason
  assert reasons['pale pink ground'] == 'the ground is off by 21 grey levels'
  assert reasons['hole'] == 'a part of the red square is missing'
  assert reasons['shadow at 0.5'].startswith('something on the ground: ')
  assert reasons['washed out to 0.65'] == 'the red square has 65 % of its colour'
  assert reasons['bare ground'] == '0 objects: expected 1'
  assert judge_lib.find_flaw(world, image.astype(np.uint8), judge_lib.find_objects(world, image.astype(np.uint8))) == ''
