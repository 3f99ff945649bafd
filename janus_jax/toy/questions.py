"""Questions about a scene that have exactly one right answer, of one or a few words, and their marking."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from janus_jax.toy import captions, scenes
from janus_jax.toy.shapes import Object, Scene

DESCRIBE = 'Describe the image.'
DIGIT = 'What digit is this?'
# 'describe' has many right answers: any true description.
KINDS = ('colour', 'shape', 'size', 'count', 'where', 'beside', 'digit', 'describe')


@dataclasses.dataclass(frozen=True)
class SceneQuestion:
  """A question with its right answers (one, but for 'describe'). `kind` is one of KINDS."""

  kind: str
  text: str
  answers: tuple[str, ...]


def ask(scene: Scene) -> list[SceneQuestion]:
  """Every question that the scene answers in one way."""
  count = SceneQuestion('count', 'How many objects are there?', (captions.NUMBERS[len(scene.objects)],))
  describe = SceneQuestion('describe', DESCRIBE, tuple(item.text for item in captions.scene_descriptions(scene)))
  if name := {'one': 'the object', 'alike': 'each object'}.get(scenes.layout(scene)):
    return [*(_attribute(kind, name, scene.objects[0]) for kind in ('colour', 'shape', 'size')), count, describe]
  a, b = scene.objects
  return [*_ask_about(a, b), *_ask_about(b, a), count, describe]


def _attribute(kind: str, name: str, item: Object) -> SceneQuestion:
  return SceneQuestion(kind, f'What {kind} is {name}?', (getattr(item, kind),))


def _ask_about(item: Object, other: Object) -> list[SceneQuestion]:
  """Questions about one of two objects. Their shapes and their colours differ, so that each word finds one of them."""
  relation = scenes.relation(item, other)
  return [
    _attribute('colour', f'the {item.shape}', item),
    _attribute('shape', f'the {item.colour} object', item),
    _attribute('size', f'the {item.shape}', item),
    SceneQuestion('where', f'Where is the {item.shape}?', (relation.removesuffix(' of'),)),
    SceneQuestion('beside', f'What is {relation} the {other.shape}?', (f'{item.colour} {item.shape}',)),
  ]


def ask_digit(digit: int) -> list[SceneQuestion]:
  """The questions about an image of a digit."""
  name = captions.NUMBERS[digit]
  return [SceneQuestion('digit', DIGIT, (name,)), SceneQuestion('describe', DESCRIBE, (f'the digit {name}',))]


def sample_turns(questions: list[SceneQuestion], rng: np.random.Generator, count: int) -> list[str]:
  """Question, answer, question, answer, ...: up to `count` of them in random order, none twice."""
  turns = []
  for index in rng.permutation(len(questions))[:count]:
    question = questions[index]
    turns += [question.text, question.answers[rng.integers(len(question.answers))]]
  return turns


def is_right(answer: str, expected: Sequence[str]) -> bool:
  """True where `answer` is one of the `expected`, but for case, spaces and the full stop; there are no synonyms."""
  return _normalise(answer) in map(_normalise, expected)


def _normalise(text: str) -> str:
  return ' '.join(text.lower().split()).rstrip('. ')
