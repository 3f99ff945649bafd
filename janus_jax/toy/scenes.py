"""Which scenes there are, and which of them training may see.

Every scene belongs to exactly one split, whatever is sampled and however often: 'held_out' if it shows a combination
that training must never see, else 'test' or 'train' by a hash of the scene itself.
"""

import itertools
import zlib

import numpy as np

from janus_jax.toy.shapes import COLOURS, SHAPES, SIZES, Object, Scene, World

SPLITS = ('train', 'test', 'held_out')
TASKS = ('one', 'alike', 'two')
COUNTS = (2, 3, 4)
RELATIONS = ('left of', 'right of', 'above', 'below')
OPPOSITE = {'left of': 'right of', 'right of': 'left of', 'above': 'below', 'below': 'above'}
# One scene in TEST_SHARE is a test scene; one pair of coloured shapes in PAIR_SHARE is held out.
TEST_SHARE, PAIR_SHARE = 5, 10
# (colour, shape, size) that training never sees, in any image, caption or question. Each colour, each shape and each
# size is among them, yet every pair of the three still occurs in training.
HELD_OUT_TRIPLES = frozenset(
  {
    ('red', 'circle', 'small'),
    ('orange', 'square', 'large'),
    ('green', 'triangle', 'small'),
    ('blue', 'cross', 'large'),
    ('purple', 'square', 'small'),
    ('black', 'circle', 'large'),
  }
)
# (count, colour, shape) likewise.
HELD_OUT_COUNTS = frozenset(
  {
    (2, 'red', 'triangle'),
    (3, 'orange', 'cross'),
    (4, 'green', 'circle'),
    (2, 'blue', 'square'),
    (3, 'purple', 'circle'),
    (4, 'black', 'cross'),
  }
)
# (shape, relation, other shape) likewise; the mirrored form, 'a square right of a circle', is the same scene.
HELD_OUT_RELATIONS = frozenset(
  {('circle', 'left of', 'square'), ('triangle', 'above', 'circle'), ('cross', 'left of', 'triangle')}
)


def stable_hash(text: str) -> int:
  """The same number in every process and on every machine."""
  return zlib.crc32(text.encode())


def kind(scene: Scene) -> str:
  """One of TASKS."""
  if len(scene.objects) == 1:
    return 'one'
  return 'alike' if scene.objects[0].shape == scene.objects[1].shape else 'two'


def relation(first: Object, second: Object) -> str:
  """Where `first` lies as seen from `second`, along the axis on which they are further apart.

  Raises:
    ValueError: neither axis wins.
  """
  dx, dy = first.x - second.x, first.y - second.y
  if abs(dx) == abs(dy):
    raise ValueError(f'{first} and {second}: no axis on which they are further apart')
  if abs(dx) > abs(dy):
    return 'left of' if dx < 0 else 'right of'
  return 'above' if dy < 0 else 'below'


def pair_held_out(first: tuple[str, str], second: tuple[str, str]) -> bool:
  """Whether training never sees these two (colour, shape) together."""
  return stable_hash(str(sorted([first, second]))) % PAIR_SHARE == 0


def relation_held_out(shape: str, name: str, other: str) -> bool:
  """Whether training never sees `shape` in this relation to `other`."""
  return not HELD_OUT_RELATIONS.isdisjoint({(shape, name, other), (other, OPPOSITE[name], shape)})


def split_of(scene: Scene) -> str:
  """The one split that a scene belongs to."""
  if _held_out(scene):
    return 'held_out'
  return 'test' if stable_hash(repr(scene)) % TEST_SHARE == 0 else 'train'


def _held_out(scene: Scene) -> bool:
  first, *others = scene.objects
  if any((item.colour, item.shape, item.size) in HELD_OUT_TRIPLES for item in scene.objects):
    return True
  match kind(scene):
    case 'alike':
      return (len(scene.objects), first.colour, first.shape) in HELD_OUT_COUNTS
    case 'two':
      (second,) = others
      pair = pair_held_out((first.colour, first.shape), (second.colour, second.shape))
      return pair or relation_held_out(first.shape, relation(first, second), second.shape)
  return False


def sample_scene(world: World, rng: np.random.Generator, scene_kind: str | None = None) -> Scene:
  """A scene of any split.

  Args:
    world: of the scene.
    rng: what decides.
    scene_kind: one of TASKS; drawn by `world.mixture` if None.
  """
  match scene_kind or TASKS[rng.choice(3, p=np.array(world.mixture) / sum(world.mixture))]:
    case 'one':
      (place,) = _places(world, rng, 1)
      return Scene((Object(*_triple(rng), *place),))
    case 'alike':
      triple = _triple(rng)
      places = _places(world, rng, COUNTS[rng.integers(len(COUNTS))])
      return Scene(tuple(Object(*triple, *place) for place in places))
    case 'two':
      return _sample_two(world, rng)
  raise ValueError(f'kind {scene_kind!r}: expected one of {TASKS}')


def _triple(rng: np.random.Generator) -> tuple[str, str, str]:
  shape, colour, size = rng.integers((len(SHAPES), len(COLOURS), len(SIZES)))
  return SHAPES[shape], list(COLOURS)[colour], SIZES[size]


def _places(world: World, rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
  free = list(itertools.product(world.positions, repeat=2))
  places = []
  for _ in range(count):
    x, y = free[rng.integers(len(free))]
    places.append((x, y))
    free = [place for place in free if max(abs(place[0] - x), abs(place[1] - y)) >= world.min_distance]
  return places


def _sample_two(world: World, rng: np.random.Generator) -> Scene:
  """Two objects of different shapes and colours, one clearly beside or above the other."""
  while True:
    (x, y), (other_x, other_y) = _places(world, rng, 2)
    if abs(x - other_x) != abs(y - other_y):
      break
  shapes = rng.choice(len(SHAPES), 2, replace=False)
  colours = rng.choice(len(COLOURS), 2, replace=False)
  sizes = rng.integers(len(SIZES), size=2)
  places = ((x, y), (other_x, other_y))
  parts = zip(shapes, colours, sizes, places, strict=True)
  return Scene(tuple(Object(SHAPES[s], list(COLOURS)[c], SIZES[z], *place) for s, c, z, place in parts))


def draw(world: World, split: str, index: int, scene_kind: str | None = None) -> Scene:
  """Scene number `index` of a split: the same whenever it is asked for. A scene may have several numbers."""
  rng = np.random.default_rng((world.seed, SPLITS.index(split), index))
  while True:
    scene = sample_scene(world, rng, scene_kind)
    if split_of(scene) == split:
      return scene
