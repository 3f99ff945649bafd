import itertools

import numpy as np

from janus_jax.toy import captions, digits, scenes
from janus_jax.toy.captions import CaptionPart, Description
from janus_jax.toy.shapes import COLOURS, SHAPES, Object, Scene, World

WORLD = World()


def _texts(scene):
  return [description.text for description in captions.scene_descriptions(scene)]


def test_words():
  assert CaptionPart(1, 'circle', 'orange').text == 'an orange circle'
  assert CaptionPart(1, 'circle', 'orange', 'large').text == 'a large orange circle'
  assert CaptionPart(3, 'cross', 'red').text == 'three red crosses'
  assert CaptionPart(4, 'square').text == 'four squares'
  parts = CaptionPart(1, 'cross'), CaptionPart(1, 'circle', 'orange')
  assert Description(parts).text == 'a cross and an orange circle'
  assert Description(parts, 'left of').text == 'a cross left of an orange circle'


def test_everything_said_of_two_objects():
  scene = Scene((Object('circle', 'red', 'small', 1, 1), Object('cross', 'blue', 'large', 4, 2)))
  expected = []
  for a, b in (('circle', 'cross'), ('red circle', 'blue cross'), ('small red circle', 'large blue cross')):
    expected += [f'a {a} and a {b}', f'a {b} and a {a}', f'a {a} left of a {b}', f'a {b} right of a {a}']
  assert sorted(_texts(scene)) == sorted(expected)


def test_everything_said_of_objects_alike():
  positions = ((1, 1), (3, 3), (5, 5))
  scene = Scene(tuple(Object('cross', 'red', 'small', x, y) for x, y in positions))
  assert _texts(scene) == ['three crosses', 'three red crosses', 'three small red crosses']


def test_every_phrase_loses_one_template_and_keeps_the_plain_one():
  rng = np.random.default_rng(0)
  missing = set()
  for phrase in [digits.phrase(digit) for digit in range(10)] + [f'a {c} {s}' for c in COLOURS for s in SHAPES]:
    said = {captions.sample_prompt(phrase, rng) for _ in range(60)}
    everything = {template.format(phrase) for template in captions.PROMPT_TEMPLATES}
    assert phrase in said
    (lost,) = everything - said
    assert lost == captions.PROMPT_TEMPLATES[captions.held_out_template(phrase)].format(phrase)
    missing.add(captions.held_out_template(phrase))
  assert missing == {1, 2, 3}


def test_digits_use_every_template():
  allowed = {
    index for digit in range(10) for index in range(4) if index != captions.held_out_template(digits.phrase(digit))
  }
  assert allowed == {0, 1, 2, 3}
  assert {captions.held_out_template(digits.phrase(digit)) for digit in range(10)} == {1, 2, 3}


def test_training_never_says_what_is_held_out():
  texts = {text for index in range(3000) for text in _texts(scenes.scene_at(WORLD, 'train', index))}
  said = ' | '.join(sorted(texts))
  for colour, shape, size in scenes.HELD_OUT_TRIPLES:
    assert f'{size} {colour} {shape}' not in said
    other = 'large' if size == 'small' else 'small'
    assert f'a {other} {colour} {shape}' in texts
  for count, colour, shape in scenes.HELD_OUT_COUNTS:
    assert CaptionPart(count, shape, colour).text not in texts
    assert CaptionPart(count, shape).text in texts
  for a, b in itertools.permutations(itertools.product(COLOURS, SHAPES), 2):
    if scenes.pair_held_out(a, b):
      assert f'{CaptionPart(1, a[1], a[0]).text} and {CaptionPart(1, b[1], b[0]).text}' not in texts
  for shape, name, other in scenes.HELD_OUT_RELATIONS:
    assert f'a {shape} {name} a {other}' not in texts
    assert f'a {other} {scenes.OPPOSITE[name]} a {shape}' not in texts
    assert f'a {shape} {scenes.OPPOSITE[name]} a {other}' in texts
