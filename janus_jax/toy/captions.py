"""Captions that are true of a scene, and the prompts that training makes of them."""

import dataclasses
import itertools

import numpy as np

from janus_jax.toy import scenes
from janus_jax.toy.shapes import Object, Scene, World

NUMBERS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
PROMPT_TEMPLATES = (
  '{}',
  'a picture of {}',
  'an image of {}',
  'draw {}',
  'a drawing of {}',
  'show {}',
  'please draw {}',
  'make an image of {}',
)
# Templates that training never uses for a phrase.
HELD_OUT_TEMPLATES = 2
# The last attribute that is said of each object.
DETAILS = ('shape', 'colour', 'size')


@dataclasses.dataclass(frozen=True)
class CaptionPart:
  """`count` objects of one shape. A colour or a size of None is not mentioned, and may be any."""

  count: int
  shape: str
  colour: str | None = None
  size: str | None = None

  @property
  def noun(self) -> str:
    """'large red circle'."""
    return ' '.join(filter(None, (self.size, self.colour, self.shape)))

  @property
  def text(self) -> str:
    """'a large red circle', 'three crosses'."""
    if self.count == 1:
      return ('an ' if self.noun[0] in 'aeiou' else 'a ') + self.noun
    return f'{NUMBERS[self.count]} {plural(self.noun)}'


@dataclasses.dataclass(frozen=True)
class Description:
  """A claim about a whole scene: these objects and no others, the first in `relation` to the second if there is one."""

  parts: tuple[CaptionPart, ...]
  relation: str | None = None

  @property
  def text(self) -> str:
    return f' {self.relation or "and"} '.join(part.text for part in self.parts)


def plural(noun: str) -> str:
  return noun + ('es' if noun.endswith('ss') else 's')


def scene_descriptions(scene: Scene) -> list[Description]:
  """Everything true that captions say about a scene; the last is the densest."""
  if scenes.layout(scene) != 'two':
    first = scene.objects[0]
    return [Description((_part(first, detail, len(scene.objects)),)) for detail in DETAILS]
  found = []
  for detail, (first, second) in itertools.product(DETAILS, itertools.permutations(scene.objects)):
    parts = (_part(first, detail), _part(second, detail))
    found += [Description(parts), Description(parts, scenes.relation(first, second))]
  return found


def dense_descriptions(scene: Scene, detail: str = DETAILS[-1]) -> list[Description]:
  """Captions that say all they can about a scene up to one of DETAILS: of two objects in both orders."""
  if scenes.layout(scene) != 'two':
    return [Description((_part(scene.objects[0], detail, len(scene.objects)),))]
  return [
    Description((_part(first, detail), _part(second, detail)), scenes.relation(first, second))
    for first, second in itertools.permutations(scene.objects)
  ]


def says_held_out(world: World, description: Description) -> bool:
  """True for what training never says."""
  parts = description.parts
  return scenes.combination_held_out(world, parts, parts[0].count, description.relation)


def near_misses(world: World, scene: Scene) -> list[str]:
  """Dense captions that are false of a scene in one thing: an attribute of all objects or, of two, one of each swapped;
  how many there are; where one is. None says what training never shows.
  """
  dense = dense_descriptions(scene)
  found = []
  for parts, relation in ((item.parts, item.relation) for item in dense if item.relation):
    found += [Description(parts, other) for other in scenes.RELATIONS if other != relation]
    for name in DETAILS:
      values = [getattr(part, name) for part in parts]
      swapped = tuple(dataclasses.replace(part, **{name: value}) for part, value in zip(parts, reversed(values)))
      found.append(Description(swapped, relation))
  if not found:
    (part,) = dense[0].parts
    values = {'shape': world.shapes, 'colour': world.colours, 'size': world.sizes, 'count': (1, *scenes.COUNTS)}
    found += [
      Description((dataclasses.replace(part, **{name: value}),))
      for name, choices in values.items()
      for value in choices
    ]
  return [item.text for item in found if item not in dense and not says_held_out(world, item)]


def _part(item: Object, detail: str, count: int = 1) -> CaptionPart:
  colour = None if detail == 'shape' else item.colour
  return CaptionPart(count, item.shape, colour, item.size if detail == 'size' else None)


def held_out_templates(phrase: str) -> tuple[str, ...]:
  """The templates that training never uses for `phrase`: never the plain one, so that every phrase is said."""
  _, *others = PROMPT_TEMPLATES
  first = scenes.stable_hash(phrase) % len(others)
  return tuple(others[(first + 3 * i) % len(others)] for i in range(HELD_OUT_TEMPLATES))


def sample_prompt(phrase: str, rng: np.random.Generator, held_out: bool = False) -> str:
  """`phrase` in a template that training may use, or in one that it never does."""
  never = held_out_templates(phrase)
  allowed = never if held_out else [template for template in PROMPT_TEMPLATES if template not in never]
  return allowed[rng.integers(len(allowed))].format(phrase)
