"""Sampling of scenes, and their splits.

Every scene belongs to exactly one split, whatever is sampled and however often: 'held_out' if it shows a combination
that training must never see, else 'test' or 'train' by a hash of the scene itself.
"""

import itertools
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from janus_jax.toy.shapes import COLOURS, SHAPES, SIZES, Object, Scene, World, render_encoded

SPLITS = ('train', 'test', 'held_out')
LAYOUTS = ('one', 'alike', 'two')
COUNTS = (2, 3, 4)
RELATIONS = ('left of', 'right of', 'above', 'below')
OPPOSITE = {'left of': 'right of', 'right of': 'left of', 'above': 'below', 'below': 'above'}
# One scene in TEST_ONE_IN is a test scene; one pair of coloured shapes in PAIR_ONE_IN is held out.
TEST_ONE_IN, PAIR_ONE_IN = 5, 10
CROWDED = 0.7  # Fraction of the positions in a crowd that hold an object.
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


def layout(scene: Scene) -> str:
  """One of LAYOUTS."""
  if len(scene.objects) == 1:
    return 'one'
  return 'alike' if scene.objects[0].shape == scene.objects[1].shape else 'two'


def relation(first: Object, second: Object) -> str:
  """Direction of `first` as seen from `second`, along the axis on which they are further apart.

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
  """True where training never sees these two (colour, shape) together."""
  return stable_hash(str(sorted([first, second]))) % PAIR_ONE_IN == 0


def relation_held_out(shape: str, name: str, other: str) -> bool:
  """True where training never sees `shape` in this relation to `other`."""
  return not HELD_OUT_RELATIONS.isdisjoint({(shape, name, other), (other, OPPOSITE[name], shape)})


def combination_held_out(items: Sequence[Any], count: int, relation_name: str | None) -> bool:
  """True for a combination that training never sees.

  Args:
    items: one or two things with shape, colour and size, the last two of which may be None: not said.
    count: objects of the first sort.
    relation_name: of the first item to the second; None: there is no second, or it is not said.
  """
  first, *others = items
  if any((item.colour, item.shape, item.size) in HELD_OUT_TRIPLES for item in items):
    return True
  if not others:
    return (count, first.colour, first.shape) in HELD_OUT_COUNTS
  (second,) = others
  pair = first.colour and pair_held_out((first.colour, first.shape), (second.colour, second.shape))
  return bool(pair or (relation_name and relation_held_out(first.shape, relation_name, second.shape)))


def split_of(scene: Scene) -> str:
  """The one split that a scene belongs to."""
  items = scene.objects if layout(scene) == 'two' else scene.objects[:1]
  if combination_held_out(items, len(scene.objects), relation(*items) if items[1:] else None):
    return 'held_out'
  return 'test' if stable_hash(repr(scene)) % TEST_ONE_IN == 0 else 'train'


def sample_scene(world: World, rng: np.random.Generator, scene_layout: str | None = None) -> Scene:
  """A scene of any split, of one of LAYOUTS; None: sampled by `world.mixture`."""
  match scene_layout or LAYOUTS[rng.choice(3, p=np.array(world.mixture) / sum(world.mixture))]:
    case 'one':
      (position,) = _positions(world, rng, 1)
      return Scene((Object(*_triple(rng), *position),))
    case 'alike':
      triple = _triple(rng)
      positions = _positions(world, rng, COUNTS[rng.integers(len(COUNTS))])
      return Scene(tuple(Object(*triple, *position) for position in positions))
    case 'two':
      return _sample_two(world, rng)
  raise ValueError(f'layout {scene_layout!r}: expected one of {LAYOUTS}')


def _triple(rng: np.random.Generator) -> tuple[str, str, str]:
  shape, colour, size = rng.integers((len(SHAPES), len(COLOURS), len(SIZES)))
  return SHAPES[shape], list(COLOURS)[colour], SIZES[size]


def _positions(world: World, rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
  free = list(itertools.product(world.positions, repeat=2))
  chosen = []
  for _ in range(count):
    x, y = free[rng.integers(len(free))]
    chosen.append((x, y))
    free = [other for other in free if max(abs(other[0] - x), abs(other[1] - y)) >= world.min_distance]
  return chosen


def _sample_two(world: World, rng: np.random.Generator) -> Scene:
  """Two objects of different shapes and colours, one clearly beside or above the other."""
  while True:
    (x, y), (other_x, other_y) = positions = _positions(world, rng, 2)
    if abs(x - other_x) != abs(y - other_y):
      break
  shapes = rng.choice(len(SHAPES), 2, replace=False)
  colours = rng.choice(len(COLOURS), 2, replace=False)
  sizes = rng.integers(len(SIZES), size=2)
  parts = zip(shapes, colours, sizes, positions, strict=True)
  return Scene(tuple(Object(SHAPES[s], list(COLOURS)[c], SIZES[z], *position) for s, c, z, position in parts))


def scene_at(world: World, split: str, index: int, scene_layout: str | None = None) -> Scene:
  """Scene number `index` of a split: the same whenever it is asked for. A scene may have several numbers."""
  rng = np.random.default_rng((world.seed, SPLITS.index(split), index))
  while True:
    scene = sample_scene(world, rng, scene_layout)
    if split_of(scene) == split:
      return scene


def render_crowds(world: World, count: int, rng: np.random.Generator) -> np.ndarray:
  """Images of objects side by side, of any triple that training may show: uint8[count, size, size, 3].

  For the image tokenizer alone: on scenes of one object colour is so small a part of the reconstruction error that a
  short training never learns it; on crowds it does.
  """
  names = itertools.product(enumerate(SHAPES), enumerate(COLOURS), enumerate(SIZES))
  triples = [(s, c, z) for (s, shape), (c, colour), (z, size) in names if (colour, shape, size) not in HELD_OUT_TRIPLES]
  positions = [(x, y) for y in world.positions[::2] for x in world.positions[::2]]
  chosen = np.array(triples)[rng.integers(len(triples), size=(count, len(positions)))]
  rows = np.concatenate([chosen, np.broadcast_to(positions, (*chosen.shape[:2], 2))], axis=-1).astype(np.int8)
  rows[rng.random(rows.shape[:2]) >= CROWDED] = -1
  return render_encoded(world, rows)
