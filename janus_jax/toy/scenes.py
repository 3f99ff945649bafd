"""Sampling of scenes, and their splits.

Every scene belongs to exactly one split, whatever is sampled and however often: 'held_out' if it shows a combination
that training must never see, else 'test' or 'train' by a hash of the scene itself.

Images to generate come from 'drawn', which has what is in 'train' and in addition the triples that are held out: an
image tokenizer has codes of their own for many of them, and what was never a target is never generated. Their prompts
leave the size out, so that no prompt says such a triple.
"""

import collections
import dataclasses
import functools
import itertools
import zlib
from collections.abc import Sequence, Set
from typing import Any

import numpy as np

from janus_jax.toy.shapes import SHAPES, SIZES, Object, Scene, World, render_encoded

SPLITS = ('train', 'test', 'held_out')
DRAWN = 'drawn'
LAYOUTS = ('one', 'alike', 'two')
COUNTS = (2, 3, 4)
RELATIONS = ('left of', 'right of', 'above', 'below')
OPPOSITE = {'left of': 'right of', 'right of': 'left of', 'above': 'below', 'below': 'above'}
# One scene in TEST_ONE_IN is a test scene; one pair of coloured shapes in PAIR_ONE_IN is held out.
TEST_ONE_IN, PAIR_ONE_IN = 5, 10
CROWDED = 0.7  # Fraction of the positions in a crowd that hold an object.


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """Combinations that training never sees, in any image (but for `DRAWN`), caption or question.

  Every pair of the three still occurs in training, and each shape in each relation to some other. Where there are as
  many triples, each colour and each shape is among them, and of three colours or more each size.

  Attributes:
    triples: (colour, shape, size).
    counts: (number, colour, shape).
    relations: (shape, relation, other shape); the mirrored form, 'a square right of a circle', is the same scene.
  """

  triples: frozenset[tuple[str, str, str]]
  counts: frozenset[tuple[int, str, str]]
  relations: frozenset[tuple[str, str, str]]


@functools.lru_cache(maxsize=16)
def held_out(world: World) -> HeldOut:
  """The combinations that a world holds out. No colour and shape are held out twice: one size or number is missing."""
  shapes, colours, sizes = world.shapes, world.colours, world.sizes
  triples, counts, relations = set(), set(), set()
  many, few = (colours, shapes) if len(colours) >= len(shapes) else (shapes, colours)
  for i in range(world.combinations):
    turn, m = divmod(i, len(many))
    third = m + m // len(few) + turn
    pairs = ((many[m], few[(m + turn + shift) % len(few)]) for shift in (0, len(few) // 2))
    # Other pairs of colour and shape are counted than those of the triples.
    pair, counted = (found if many is colours else found[::-1] for found in pairs)
    triples.add((*pair, sizes[third % len(sizes)]))
    counts.add((COUNTS[third % len(COUNTS)], *counted))
  for i in range(world.combinations // 2):
    turn, s = divmod(i, len(shapes))
    names = (RELATIONS[(s + turn + k) % len(RELATIONS)] for k in range(len(RELATIONS)))
    found = ((shapes[s], name, shapes[(s + 1 + turn) % len(shapes)]) for name in names)
    relations.add(next(item for item in found if _in_each_relation(shapes, {*relations, item})))
  return HeldOut(frozenset(triples), frozenset(counts), frozenset(relations))


def _in_each_relation(shapes: Sequence[str], held: Set[tuple[str, str, str]]) -> bool:
  """True if each shape still stands in each relation to some other."""
  both_ways = held | {(other, OPPOSITE[name], shape) for shape, name, other in held}
  return max(collections.Counter(item[:2] for item in both_ways).values()) < len(shapes) - 1


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


def combination_held_out(
  world: World, items: Sequence[Any], count: int, relation_name: str | None, *, triples: bool = True
) -> bool:
  """True for a combination that training never sees.

  Args:
    world: the toy world.
    items: one or two things with shape, colour and size, the last two of which may be None: not said.
    count: objects of the first sort.
    relation_name: of the first item to the second; None: there is no second, or it is not said.
    triples: whether colour, shape and size of one thing are looked at.
  """
  first, *others = items
  never = held_out(world)
  if triples and any((item.colour, item.shape, item.size) in never.triples for item in items):
    return True
  if not others:
    return (count, first.colour, first.shape) in never.counts
  (second,) = others
  if first.colour and pair_held_out((first.colour, first.shape), (second.colour, second.shape)):
    return True
  if not relation_name:
    return False
  mirrored = second.shape, OPPOSITE[relation_name], first.shape
  return not never.relations.isdisjoint({(first.shape, relation_name, second.shape), mirrored})


def split_of(world: World, scene: Scene, *, triples: bool = True) -> str:
  """The one split that a scene belongs to; with triples=False as if none of them were held out."""
  items = scene.objects if layout(scene) == 'two' else scene.objects[:1]
  related = relation(*items) if items[1:] else None
  if combination_held_out(world, items, len(scene.objects), related, triples=triples):
    return 'held_out'
  return 'test' if stable_hash(repr(scene)) % TEST_ONE_IN == 0 else 'train'


def sample_scene(world: World, rng: np.random.Generator, scene_layout: str | None = None) -> Scene:
  """A scene of any split, of one of LAYOUTS; None: sampled by `world.mixture`."""
  match scene_layout or LAYOUTS[rng.choice(3, p=np.array(world.mixture) / sum(world.mixture))]:
    case 'one':
      (position,) = _positions(world, rng, 1)
      return Scene((Object(*_triple(world, rng), *position),))
    case 'alike':
      triple = _triple(world, rng)
      positions = _positions(world, rng, COUNTS[rng.integers(len(COUNTS))])
      return Scene(tuple(Object(*triple, *position) for position in positions))
    case 'two':
      return _sample_two(world, rng)
  raise ValueError(f'layout {scene_layout!r}: expected one of {LAYOUTS}')


def _triple(world: World, rng: np.random.Generator) -> tuple[str, str, str]:
  shape, colour, size = rng.integers((world.num_shapes, world.num_colours, world.num_sizes))
  return world.shapes[shape], world.colours[colour], world.sizes[size]


def _positions(world: World, rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
  free, least = list(itertools.product(world.positions, repeat=2)), world.min_distance
  chosen = []
  for _ in range(count):
    x, y = free[rng.integers(len(free))]
    chosen.append((x, y))
    free = [(i, j) for i, j in free if abs(i - x) >= least or abs(j - y) >= least]
  return chosen


def _sample_two(world: World, rng: np.random.Generator) -> Scene:
  """Two objects of different shapes and colours, one clearly beside or above the other."""
  while True:
    (x, y), (other_x, other_y) = positions = _positions(world, rng, 2)
    if abs(x - other_x) != abs(y - other_y):
      break
  shapes = rng.choice(world.num_shapes, 2, replace=False)
  colours = rng.choice(world.num_colours, 2, replace=False)
  sizes = rng.integers(world.num_sizes, size=2)
  parts = zip(shapes, colours, sizes, positions, strict=True)
  named = ((world.shapes[s], world.colours[c], world.sizes[z], *position) for s, c, z, position in parts)
  return Scene(tuple(Object(*item) for item in named))


def scene_at(world: World, split: str, index: int, scene_layout: str | None = None) -> Scene:
  """Scene number `index` of a split or of DRAWN: the same whenever it is asked for. Scenes may have several numbers."""
  rng = np.random.default_rng((world.seed, (*SPLITS, DRAWN).index(split), index))
  wanted = 'train' if split == DRAWN else split
  while True:
    scene = sample_scene(world, rng, scene_layout)
    if split_of(world, scene, triples=split != DRAWN) == wanted:
      return scene


def render_crowds(world: World, count: int, rng: np.random.Generator) -> np.ndarray:
  """Images of objects side by side: uint8[count, size, size, 3].

  For the image tokenizer alone: on scenes of one object colour is so small a part of the reconstruction error that a
  short training never learns it; on crowds it does. Every triple is shown, as a tokenizer that others have trained has
  seen it: what is held out is to be said and to be understood, not to be encoded.
  """
  triples = np.array(
    [
      (SHAPES.index(shape), world.colours.index(colour), SIZES.index(size))
      for shape, colour, size in itertools.product(world.shapes, world.colours, world.sizes)
    ]
  )
  positions = [(x, y) for y in world.positions[::2] for x in world.positions[::2]]
  chosen = triples[rng.integers(len(triples), size=(count, len(positions)))]
  rows = np.concatenate([chosen, np.broadcast_to(positions, (*chosen.shape[:2], 2))], axis=-1).astype(np.int8)
  rows[rng.random(rows.shape[:2]) >= CROWDED] = -1
  return render_encoded(world, rows)
