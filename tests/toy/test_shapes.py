import numpy as np
import pytest
from PIL import Image, ImageDraw

from janus_jax.errors import InputError
from janus_jax.toy import scenes, shapes
from janus_jax.toy.shapes import COLOURS, GROUND, Object, Scene, World

SCALE = 64
WORLDS = [
  World(),
  World(size=32, grid=8),
  World(size=24, grid=12, small=1.25, large=1.7, gap=0.5),
  World(size=56, grid=7, num_shapes=6, num_colours=8, num_sizes=3, small=0.45, large=0.9),
]


def _scene(world, seed):
  return scenes.sample_scene(world, np.random.default_rng(seed))


def _outline(shape, x, y, r):
  """Polygons in pixels; y grows downwards."""
  box = [(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r)]
  match shape:
    case 'square':
      return [box]
    case 'triangle':
      return [[(x, y - r), box[2], box[3]]]
    case 'circle':
      angles = np.linspace(0, 2 * np.pi, 200)
      return [[(x + 0.95 * r * np.cos(a), y + 0.95 * r * np.sin(a)) for a in angles]]
    case 'diamond':
      return [[(x, y - r), (x + r, y), (x, y + r), (x - r, y)]]
    case 'ring':  # The second is the hole.
      angles = np.linspace(0, 2 * np.pi, 200)
      return [[(x + k * r * np.cos(a), y + k * r * np.sin(a)) for a in angles] for k in (1, 0.5)]
    case 'cross':
      t = r / 3
      return [
        [(x - r, y - t), (x + r, y - t), (x + r, y + t), (x - r, y + t)],
        [(x - t, y - r), (x + t, y - r), (x + t, y + r), (x - t, y + r)],
      ]


def _reference(world, scene):
  """The scene rendered large by Pillow, then averaged."""
  canvas = Image.new('RGB', (world.size * SCALE,) * 2, (GROUND,) * 3)
  step = world.size / world.grid
  for item in scene.objects:
    steps = {'small': world.small, 'medium': (world.small + world.large) / 2, 'large': world.large}[item.size]
    for number, polygon in enumerate(_outline(item.shape, item.x * step, item.y * step, step * steps)):
      points = [(px * SCALE - 0.5, py * SCALE - 0.5) for px, py in polygon]
      is_hole = item.shape == 'ring' and number
      ImageDraw.Draw(canvas).polygon(points, fill=(GROUND,) * 3 if is_hole else COLOURS[item.colour])
  return np.asarray(canvas, np.float32).reshape(world.size, SCALE, world.size, SCALE, 3).mean((1, 3))


@pytest.mark.parametrize('world', WORLDS, ids=lambda world: f'{world.size}-{world.grid}')
def test_images_look_as_pillow_draws_them(world):
  sampled = [_scene(world, seed) for seed in range(30 if world.size < 50 else 8)]  # Each is made of 13 M pixels.
  for scene, image in zip(sampled, shapes.render_scene(world, sampled), strict=True):
    difference = np.abs(image - _reference(world, scene))
    # 8 x 8 samples of a pixel against 64 x 64.
    assert difference.max() < 30
    assert difference.mean() < 1


def test_ground_is_constant():
  image = shapes.render_scene(World(), [Scene((Object('circle', 'red', 'large', 1, 1),))])[0]
  assert (image[8:] == 242).all()
  assert (image[:, 8:] == 242).all()
  assert (image[4, 4] == COLOURS['red']).all()


def test_no_cell_shows_two_objects_and_each_fills_four():
  world = World()
  for seed in range(50):
    scene = _scene(world, seed)
    single = [shapes.render_scene(world, [Scene((item,))])[0] for item in scene.objects]
    cells = [(image != GROUND).any(-1).reshape(6, 4, 6, 4).any((1, 3)) for image in single]
    assert all(cell.sum() == 4 for cell in cells)
    assert sum(cells).max() == 1


@pytest.mark.parametrize('world', WORLDS, ids=lambda world: f'{world.size}-{world.grid}')
def test_codes_of_scenes_decode_to_them(world):
  for seed in range(50):
    scene = _scene(world, seed)
    assert shapes.decode(shapes.encode(scene)) == scene


def test_scenes_do_not_depend_on_the_order_of_objects():
  first, second = Object('circle', 'red', 'small', 1, 1), Object('cross', 'blue', 'large', 3, 5)
  assert Scene((first, second)) == Scene((second, first))
  assert len({Scene((first, second)), Scene((second, first))}) == 1


def test_worlds_without_room_are_refused():
  with pytest.raises(InputError, match='a grid of 4 has 3 positions a side: expected 4 or more'):
    World(grid=4)
  with pytest.raises(InputError, match='mixture'):
    World(mixture=(0, 0, 0))


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'num_shapes': 2}, '^a world of 2 shapes: expected 3 to 6$'),
    ({'num_shapes': 7}, '^a world of 7 shapes: expected 3 to 6$'),
    ({'num_colours': 1}, '^a world of 1 colours: expected 2 to 8$'),
    ({'num_sizes': 1}, '^a world of 1 sizes: expected 2 to 3$'),
    ({'combinations': 13}, '^13 combinations held out of 6 colours and 4 shapes: expected 1 to 12$'),
    ({'combinations': 0}, '^0 combinations held out of 6 colours and 4 shapes: expected 1 to 12$'),
    ({'num_shapes': 3, 'num_colours': 8, 'combinations': 9}, '8 colours and 3 shapes: expected 1 to 8$'),
  ],
)
def test_what_a_world_cannot_spare_or_does_not_have_is_refused(fields, message):
  with pytest.raises(InputError, match=message):
    World(**fields)


def test_a_world_of_two_sizes_has_the_outer_ones():
  assert World().sizes == ('small', 'large')
  assert World(num_sizes=3).sizes == ('small', 'medium', 'large')
  radii = [World(num_sizes=3).radius(size) for size in World(num_sizes=3).sizes]
  assert radii[0] < radii[1] < radii[2]
