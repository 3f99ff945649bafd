"""Counting and open attributes of generated images of the toy world, from images whose content is known."""

import collections
import dataclasses

import numpy as np
import pytest

from janus_jax.toy import image_statistics, scenes, shapes, test_set
from janus_jax.toy.captions import CaptionPart, Description
from janus_jax.toy.image_statistics import open_values, position_of, training_shares
from janus_jax.toy.shapes import Object, Scene, World
from janus_jax.toy.test_set import GenerationCase

WORLD = World()
OPEN = open_values(WORLD)


def test_training_shares_are_those_of_the_scenes_that_training_shows():
  counts = {shape: {name: collections.Counter() for name in OPEN} for shape in WORLD.shapes}
  total = collections.Counter()
  for index in range(3000):
    (item,) = scenes.scene_at(WORLD, scenes.DRAWN, index, 'one').objects
    total[item.shape] += 1
    for name, value in (('colour', item.colour), ('size', item.size), ('position', position_of(WORLD, item.x))):
      counts[item.shape][name][value] += 1
  for shape in WORLD.shapes:
    shares = training_shares(WORLD, shape)
    for name, values in OPEN.items():
      assert sum(shares[name].values()) == pytest.approx(1)
      assert set(counts[shape][name]) <= set(values)
      error = max(abs(counts[shape][name][value] / total[shape] - shares[name][value]) for value in values)
      assert error < 4 * np.sqrt(0.25 / total[shape]), (shape, name)
  # Small red circles are drawn, though nothing says so: no colour has much more than its share.
  colours = training_shares(WORLD, 'circle')['colour']
  assert max(colours.values()) < 1.5 * min(colours.values())


def image(*objects):
  return shapes.render_scene(WORLD, [Scene(objects)])[0]


def case(phrase, skill='single_object'):
  return GenerationCase(skill, 'seen', phrase.text, phrase)


def statistics(cases, images):
  return image_statistics.image_statistics(WORLD, cases, test_set.find_objects(WORLD, cases, np.stack(images)))


def test_objects_are_counted_by_the_number_that_the_prompt_asks_for():
  spots = [(1, 1), (4, 1), (1, 4), (4, 4)]
  objects = [Object('circle', 'red', 'small', *spot) for spot in spots]
  one = case(Description((CaptionPart(1, 'circle'),)))
  two, three = (case(Description((CaptionPart(count, 'circle', 'red'),)), 'counting') for count in (2, 3))
  square = dataclasses.replace(objects[1], shape='square')  # Another shape is still an object.
  pair = Description((CaptionPart(1, 'circle'), CaptionPart(1, 'square')))
  cases = [
    one,
    two,
    two,
    three,
    GenerationCase('two_objects', 'seen', pair.text, pair),
    GenerationCase('digit', 'seen', '', 3),
  ]
  images = [image(objects[0])] + [
    image(objects[0], square),
    image(*objects[:3]),
    image(*objects),
    image(objects[0]),
    image(objects[0]),
  ]
  by_number = statistics(cases, images)['counting']['metrics']['By number']
  assert by_number == {
    '1': {'Images': 1, 'Accuracy': 100, 'Bias': 0, 'Mean absolute error': 0},
    '2': {'Images': 2, 'Accuracy': 50, 'Bias': 0.5, 'Mean absolute error': 0.5},
    '3': {'Images': 1, 'Accuracy': 0, 'Bias': 1, 'Mean absolute error': 1},
  }


def test_what_a_prompt_leaves_open_is_read_of_images_that_show_its_shape_alone():
  circle = case(Description((CaptionPart(1, 'circle'),)))
  blue = [Object('circle', 'blue', 'large', x, 3) for x in (1, 2, 3, 5)]
  wrong = [image(Object('square', 'red', 'small', 1, 1)), image(*blue[::3]), image(blue[0])]
  wrong[2][:] = shapes.GROUND
  found = statistics([circle] * 7, [*(image(item) for item in blue), *wrong])['open_attributes']
  colour, size, position = (found['metrics']['Attributes'][name]['All prompts together'] for name in OPEN)
  assert (colour['Images'], colour['Read'], colour['Share']['blue'], size['Share']['large']) == (7, 4, 1, 1)
  assert position['Share'] == {'left': 0.5, 'middle': 0.25, 'right': 0.25}
  shares = training_shares(WORLD, 'circle')
  assert colour['Total variation'] == pytest.approx(1 - shares['colour']['blue'])
  assert found['metrics']['Unread'] == pytest.approx(3 / 7)


def sampled_images(choose, count=60, seed=0):
  """Images of single objects that training may show, those that `choose` takes, for the prompts of their shapes."""
  rng, cases, images = np.random.default_rng(seed), [], []
  while len(images) < count:
    scene = scenes.sample_scene(WORLD, rng, 'one')
    if scenes.split_of(WORLD, scene, triples=False) == 'train' and choose(scene.objects[0]):
      cases.append(case(Description((CaptionPart(1, scene.objects[0].shape),))))
      images.append(image(*scene.objects))
  return cases, images


def test_a_model_that_samples_from_training_is_as_far_from_it_as_chance_and_a_collapsed_one_is_not():
  found = statistics(*sampled_images(lambda item: True))['open_attributes']['metrics']['Attributes']
  for name in OPEN:
    together = found[name]['All prompts together']
    assert together['Total variation'] < 2 * together['Total variation by chance'], name
  shares = training_shares(WORLD, 'circle')['colour']
  favoured = [name for name, share in shares.items() if share > 1 / len(shares)]
  few = statistics(*sampled_images(lambda item: item.shape == 'circle' and item.colour in favoured[:2]))
  colour = few['open_attributes']['metrics']['Attributes']['colour']
  assert colour['All prompts together']['Total variation'] > 4 * colour['Total variation by chance']
  assert colour['Bias amplification'] == pytest.approx(1 - sum(shares[name] for name in favoured))


def test_tables_name_every_number_value_and_attribute():
  cases, images = sampled_images(lambda item: True, 20)
  counting, shares, distances = image_statistics.statistics_tables(statistics(cases, images))
  assert [line[0] for line in counting] == ['counting', '1 object', 'all']
  assert [line[0] for line in shares[1:]] == [f'{name}: {value}' for name, values in OPEN.items() for value in values]
  assert [line[:2] for line in distances[1:]] == [(name, '20/20') for name in OPEN]
  assert all(len({len(line) for line in table}) == 1 for table in (counting, shares, distances))


def test_where_nothing_can_be_read_there_is_no_line():
  circle = case(Description((CaptionPart(1, 'circle'),)))
  found = statistics([circle], [np.full((24, 24, 3), shapes.GROUND, np.uint8)])
  counting, shares, distances = image_statistics.statistics_tables(found)
  assert counting[1] == ('1 object', '1', '0.0 %', '', '-1.00', '', '1.00')
  assert (len(shares), len(distances)) == (1, 1)
