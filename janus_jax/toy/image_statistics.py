"""Statistics of generated images of the toy world: numbers of objects beside the number asked for, and the colours,
sizes and positions where the prompt leaves these open.
"""

import collections
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from janus_jax.evaluation.bias import MEASURES
from janus_jax.evaluation.headline import value_at
from janus_jax.evaluation.scores import score_rows
from janus_jax.toy import scenes
from janus_jax.toy.scores import interval_text
from janus_jax.toy.shape_judge import Seen
from janus_jax.toy.shapes import Object, Scene, World
from janus_jax.toy.test_set import GenerationCase

# Skill of the prompts that name a shape and nothing else.
OPEN_SKILL = 'single_object'
POSITIONS = ('left', 'middle', 'right')


def open_values(world: World) -> dict[str, tuple[str, ...]]:
  """Attributes that prompts of OPEN_SKILL leave open, and their values."""
  return {'colour': world.colours, 'size': world.sizes, 'position': POSITIONS}


def position_of(world: World, x: float) -> str:
  """The one of POSITIONS that lies `x` grid steps from the left edge: the middle is the column there, or both."""
  columns = world.positions
  middle = (columns[0] + columns[-1]) / 2
  width = 0.5 if len(columns) % 2 else 1
  return 'middle' if abs(x - middle) < width else 'left' if x < middle else 'right'


@functools.lru_cache(maxsize=4)
def training_shares(world: World, shape: str) -> dict[str, dict[str, float]]:
  """Attribute -> value -> its share in all training scenes of one object of a shape, exactly: they are enumerated."""
  everything = itertools.product(world.colours, world.sizes, world.positions, world.positions)
  found = [Object(shape, *item) for item in everything]
  found = [item for item in found if scenes.split_of(world, Scene((item,)), triples=False) == 'train']
  counts = {
    'colour': collections.Counter(item.colour for item in found),
    'size': collections.Counter(item.size for item in found),
    'position': collections.Counter(position_of(world, item.x) for item in found),
  }
  return {
    name: {value: counts[name][value] / len(found) for value in values} for name, values in open_values(world).items()
  }


def counting_rows(cases: Sequence[GenerationCase], objects: Sequence[Sequence[Seen] | None]) -> list[dict[str, Any]]:
  """Rows of `counting` for prompts of objects that are alike; an image has as many as it has blobs, of whatever shape.

  Args:
    cases: prompts.
    objects: those in the image of each (`test_set.find_objects`).
  """
  rows = []
  for case, seen in zip(cases, objects, strict=True):
    if seen is not None:
      rows.append({'prompt': case.expected.text, 'asked': case.expected.parts[0].count, 'seen': len(seen)})
  return rows


def open_attribute_rows(
  world: World, cases: Sequence[GenerationCase], objects: Sequence[Sequence[Seen] | None]
) -> list[dict[str, Any]]:
  """Rows of `bias` for the prompts of OPEN_SKILL. Nothing is read of an image without exactly the shape asked for."""
  rows, names = [], open_values(world)
  for number, (case, seen) in enumerate(zip(cases, objects, strict=True)):
    if case.skill == OPEN_SKILL:
      (part,) = case.expected.parts
      item = seen[0] if [item.shape for item in seen] == [part.shape] else None
      step = world.size / world.grid
      values = (item.colour, item.size, position_of(world, item.x / step)) if item else (None,) * len(names)
      shares = training_shares(world, part.shape)
      row = {'prompt': part.text, 'filename': number, 'index': number}
      rows += [{**row, 'attribute': n, 'value': v, 'reference': shares[n]} for n, v in zip(names, values)]
  return rows


def image_statistics(
  world: World, cases: Sequence[GenerationCase], objects: Sequence[Sequence[Seen] | None]
) -> dict[str, dict[str, Any]]:
  """Scores of the benchmarks `counting` and `bias` (`evaluation.scores`): {'counting', 'open_attributes'}."""
  rows = {'counting': counting_rows(cases, objects), 'bias': open_attribute_rows(world, cases, objects)}
  (counting,), (bias,) = (score_rows(name, found)[1] for name, found in rows.items())
  return {'counting': counting, 'open_attributes': bias}


def statistics_tables(statistics: Mapping[str, Mapping[str, Any]]) -> list[list[tuple[str, ...]]]:
  """Tables of `image_statistics`, each a head and lines: counting by number; of what prompts leave open, the shares of
  values, and how far they are from training. Intervals are of 95 %.
  """
  counting, bias = statistics['counting'], statistics['open_attributes']
  return [_counting_table(counting), _share_table(bias), _distance_table(bias)]


def _counting_table(score: Mapping[str, Any]) -> list[tuple[str, ...]]:
  numbers = {
    f'{number} object{"s" * (number != "1")}': ('By number', number) for number in score['metrics']['By number']
  }
  lines = [('counting', 'images', 'exact', '[95 %]', 'bias', '[95 %]', 'mean absolute error')]
  for name, path in {**numbers, 'all': ()}.items():
    found, ends = value_at(score['metrics'], path), value_at(score['intervals'], path) or {}
    exact = f'{found["Accuracy"]:.1f} %', interval_text(_clipped(ends.get('Accuracy'), 1))
    bias = f'{found["Bias"]:+.2f}', _decimals(ends.get('Bias'), '+.2f')
    lines.append((name, str(found['Images']), *exact, *bias, f'{found["Mean absolute error"]:.2f}'))
  return lines


def _distributions(score: Mapping[str, Any]) -> dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]]:
  """Attribute -> its distribution over the images of all prompts, and the intervals."""
  paths = {name: ('Attributes', name, 'All prompts together') for name in score['metrics']['Attributes']}
  return {name: (value_at(score['metrics'], at), value_at(score['intervals'], at) or {}) for name, at in paths.items()}


def _share_table(score: Mapping[str, Any]) -> list[tuple[str, ...]]:
  lines = [('left open by the prompt', 'generated', '[95 %]', 'in training')]
  for name, (found, ends) in _distributions(score).items():
    for value, share in found.get('Share', {}).items():
      interval = interval_text(_clipped(value_at(ends, ('Share', value)), 100))
      lines.append((f'{name}: {value}', f'{100 * share:.1f} %', interval, f'{100 * found["Reference"][value]:.1f} %'))
  return lines


def _distance_table(score: Mapping[str, Any]) -> list[tuple[str, ...]]:
  """Total variation over the images of all prompts, and the mean amplification of prompts; without a line for an
  attribute of which no image was read.
  """
  head = ('distance from training', 'images read', 'total variation', '[95 %]', 'by chance', 'amplification', '[95 %]')
  lines = [head]
  for name, (found, ends) in _distributions(score).items():
    if found['Read']:
      amplified, growth = (value_at(score[of], ('Attributes', name, MEASURES[2])) for of in ('metrics', 'intervals'))
      interval = [max(end, 0) for end in ends.get(MEASURES[0], ())]
      distance = f'{found[MEASURES[0]]:.2f}', _decimals(interval, '.2f'), f'{found[MEASURES[1]]:.2f}'
      amplification = ('-' if amplified is None else f'{amplified:+.2f}'), _decimals(growth, '+.2f')
      lines.append((name, f'{found["Read"]}/{found["Images"]}', *distance, *amplification))
  return lines


def _clipped(ends: Sequence[float] | None, scale: float) -> tuple[float, float] | None:
  """An interval times `scale`, within the percentages that there are."""
  return ends and (max(scale * ends[0], 0), min(scale * ends[1], 100))


def _decimals(ends: Sequence[float] | None, form: str) -> str:
  return f'[{ends[0]:{form}}, {ends[1]:{form}}]' if ends else ''
