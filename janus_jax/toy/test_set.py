"""The test of the toy world: questions about unseen images, and prompts to draw, by what they ask for."""

import dataclasses
import itertools
from collections.abc import Hashable, Iterator, Sequence

import numpy as np

from janus_jax.toy import answers, captions, digits, questions, scenes, shape_judge, shapes
from janus_jax.toy.captions import CaptionPart, Description
from janus_jax.toy.digit_judge import NONE, DigitJudge
from janus_jax.toy.shape_judge import Verdict
from janus_jax.toy.shapes import COLOURS, SHAPES, SIZES, World

# GenEval's six, one object with all its attributes, and the digits.
SKILLS = (
  'single_object',
  'attributes',
  'colours',
  'counting',
  'two_objects',
  'position',
  'colour_binding',
  'digit',
)
# 'seen': a phrase and a wording that training uses together. 'new_wording': both known, never together.
# 'new_combination': what the phrase says never occurs in training. For questions: 'new_scene' is a scene that training
# never shows, but nothing in it is of a new combination.
DRAWING_GROUPS = ('seen', 'new_wording', 'new_combination')
QUESTION_GROUPS = ('new_scene', 'new_combination')
# Counts the changes of what the judges accept: scores of different judges cannot be compared.
JUDGES = 2


@dataclasses.dataclass(frozen=True, eq=False)
class QuestionCase:
  """One question about one image. `subject` is a kind of scene ('one', 'alike', 'two') or 'digit'."""

  subject: str
  kind: str
  group: str
  image: np.ndarray
  text: str
  answers: tuple[str, ...]

  def is_right(self, answer: str) -> bool:
    return answers.is_right(answer, self.answers)


@dataclasses.dataclass(frozen=True)
class DrawingCase:
  """One prompt, and what a drawing of it must show: `expected` is a digit or a description of shapes."""

  skill: str
  group: str
  prompt: str
  expected: Description | int


def build_questions(world: World, per_kind: int, seed: int = 0) -> list[QuestionCase]:
  """Questions about images that training never shows.

  Args:
    world: of the images.
    per_kind: questions of one kind about one subject in one group, each about another scene.
    seed: of the choice.

  Raises:
    InputError: scikit-learn is not installed.
  """
  rng = np.random.default_rng(seed)
  cases = []
  for subject, (group, split) in itertools.product(
    scenes.TASKS, zip(QUESTION_GROUPS, ('test', 'held_out'), strict=True)
  ):
    chosen = _different_scenes(world, split, subject, per_kind)
    for image, scene in zip(shapes.render_scene(world, chosen), chosen, strict=True):
      for question in _one_of_each_kind(questions.ask(scene), rng):
        cases.append(QuestionCase(subject, question.kind, group, image, question.text, question.answers))
  images, labels = digits.load_digits(world.size, 'test')
  for index in rng.permutation(len(labels))[:per_kind]:
    for question in questions.ask_digit(int(labels[index])):
      cases.append(QuestionCase('digit', question.kind, 'new_scene', images[index], question.text, question.answers))
  return cases


def _different_scenes(world: World, split: str, kind: str, count: int) -> list[scenes.Scene]:
  """Up to `count` scenes, none twice: there may be fewer of them in the whole world."""
  found = dict.fromkeys(scenes.draw(world, split, index, kind) for index in range(2 * count))
  return list(found)[:count]


def _one_of_each_kind(
  asked: list[questions.SceneQuestion], rng: np.random.Generator
) -> Iterator[questions.SceneQuestion]:
  by_kind = {}
  for index in rng.permutation(len(asked)):
    by_kind[asked[index].kind] = asked[index]
  return iter(by_kind.values())


def build_drawings(per_group: int, seed: int = 0) -> list[DrawingCase]:
  """Prompts to draw: up to `per_group` of each skill and group. Where there are fewer different ones, they repeat."""
  rng = np.random.default_rng(seed)
  cases = []
  for skill, group in itertools.product(SKILLS, DRAWING_GROUPS):
    pool = [item for item in _expectations(skill) if _is_new(item) == (group == 'new_combination')]
    order = rng.permutation(len(pool))
    for number in range(per_group if pool else 0):
      expected = pool[order[number % len(pool)]]
      cases.append(DrawingCase(skill, group, _prompt(_phrase(expected), group, rng), expected))
  return cases


def _prompt(phrase: str, group: str, rng: np.random.Generator) -> str:
  match group:
    case 'seen':
      return captions.draw_prompt(phrase, rng)
    case 'new_wording':
      return captions.WORDINGS[captions.held_out_wording(phrase)].format(phrase)
  return phrase


def _phrase(expected: Description | int) -> str:
  return expected.text if isinstance(expected, Description) else digits.phrase(expected)


def _expectations(skill: str) -> Sequence[Description | int]:
  """Everything that a prompt of the skill may ask for."""
  shape_pairs = list(itertools.permutations(SHAPES, 2))
  match skill:
    case 'single_object':
      return [Description((CaptionPart(1, shape),)) for shape in SHAPES]
    case 'attributes':
      return [Description((CaptionPart(1, *triple),)) for triple in itertools.product(SHAPES, COLOURS, SIZES)]
    case 'colours':
      return [Description((CaptionPart(1, *pair),)) for pair in itertools.product(SHAPES, COLOURS)]
    case 'counting':
      return [Description((CaptionPart(*item),)) for item in itertools.product(scenes.COUNTS, SHAPES, COLOURS)]
    case 'two_objects':
      return [Description((CaptionPart(1, a), CaptionPart(1, b))) for a, b in shape_pairs]
    case 'position':
      return [
        Description((CaptionPart(1, a), CaptionPart(1, b)), name) for a, b in shape_pairs for name in scenes.RELATIONS
      ]
    case 'colour_binding':
      colour_pairs = itertools.permutations(COLOURS, 2)
      both = itertools.product(shape_pairs, colour_pairs)
      return [Description((CaptionPart(1, a, c), CaptionPart(1, b, d))) for (a, b), (c, d) in both]
    case 'digit':
      return range(10)
  raise ValueError(f'skill {skill!r}: expected one of {SKILLS}')


def _is_new(expected: Description | int) -> bool:
  """Whether training never shows what is asked for."""
  if isinstance(expected, int):
    return False
  first, *others = expected.parts
  if others:
    (second,) = others
    if expected.relation:
      return scenes.relation_held_out(first.shape, expected.relation, second.shape)
    if first.colour is None:
      return False
    return scenes.pair_held_out((first.colour, first.shape), (second.colour, second.shape))
  triple = (first.colour, first.shape, first.size)
  return triple in scenes.HELD_OUT_TRIPLES or (first.count, first.colour, first.shape) in scenes.HELD_OUT_COUNTS


def judge_drawings(world: World, judge: DigitJudge, cases: Sequence[DrawingCase], images: np.ndarray) -> list[Verdict]:
  """One verdict per case and drawing.

  Args:
    world: of the cases.
    judge: of the digits.
    cases: n of them.
    images: uint8[n, size, size, 3], what was drawn for them.
  """
  digits_read = judge.predict(images)
  return [
    _judge_digit(case.expected, int(digit))
    if isinstance(case.expected, int)
    else shape_judge.judge_image(world, case.expected, image)
    for case, image, digit in zip(cases, images, digits_read, strict=True)
  ]


def _judge_digit(expected: int, read: int) -> Verdict:
  if read == expected:
    return Verdict(True)
  return Verdict(False, 'not a digit' if read == NONE else f'reads as {read}')


def tally(keys: Sequence[Hashable], passed: Sequence[bool]) -> dict[Hashable, tuple[int, int]]:
  """How many of each key passed: {key: (passed, all)}, in the order in which the keys first occur."""
  counts = {}
  for key, result in zip(keys, passed, strict=True):
    right, total = counts.get(key, (0, 0))
    counts[key] = right + bool(result), total + 1
  return counts
