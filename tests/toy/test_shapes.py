import numpy as np
import pytest
from PIL import Image, ImageDraw

from janus_jax.errors import InputError
from janus_jax.toy import scenes, shapes
from janus_jax.toy.shapes import COLOURS, GROUND, Object, Scene, World

SCALE = 64
WORLDS = [World(), World(size=32, grid=8), World(size=24, grid=12, small=1.25, large=1.7, gap=0.5)]


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
    radius = step * (world.small if item.size == 'small' else world.large)
    for polygon in _outline(item.shape, item.x * step, item.y * step, radius):
      points = [(px * SCALE - 0.5, py * SCALE - 0.5) for px, py in polygon]
      ImageDraw.Draw(canvas).polygon(points, fill=COLOURS[item.colour])
  return np.asarray(canvas, np.float32).reshape(world.size, SCALE, world.size, SCALE, 3).mean((1, 3))


@pytest.mark.parametrize('world', WORLDS, ids=lambda world: f'{world.size}-{world.grid}')
def test_images_look_as_pillow_draws_them(world):
  sampled = [_scene(world, seed) for seed in range(30)]
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


def test_a_world_of_few_scenes_is_tested_on_few():
  assert shapes.sized_world(24, 6, 8000, 3) == World(seed=3)
  assert shapes.sized_world(24, 6, 700, 0) == World(num_train=700, num_test=700)


def test_worlds_without_room_are_refused():
  with pytest.raises(InputError, match='a grid of 4 has 3 positions a side: expected 4 or more'):
    World(grid=4)
  with pytest.raises(InputError, match='mixture'):
    World(mixture=(0, 0, 0))
