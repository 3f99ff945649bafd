"""The test of the toy world: questions about unseen images, and prompts for images, by what they ask for."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from janus_jax.toy import captions, digits, questions, scenes, shape_judge, shapes
from janus_jax.toy.captions import CaptionPart, Description
from janus_jax.toy.digit_judge import NONE, DigitJudge
from janus_jax.toy.shape_judge import Seen, Verdict
from janus_jax.toy.shapes import World

# GenEval's six, one object with all its attributes, and the digits.
SKILLS = ('single_object', 'attributes', 'colours', 'counting', 'two_objects', 'position', 'colour_binding', 'digit')
# 'seen': a phrase and a prompt template that training uses together. 'new_phrasing': both known, never together.
# 'new_combination': what the phrase says never occurs in training. For questions: 'new_scene' is a scene that training
# never shows, but nothing in it is of a new combination.
GENERATION_GROUPS = ('seen', 'new_phrasing', 'new_combination')
QUESTION_GROUPS = ('new_scene', 'new_combination')
# Size of the test where nothing else is asked for.
QUESTIONS_PER_KIND, IMAGES_PER_GROUP = 40, 20
# Counts the changes of what is asked and of what the judges accept: scores across one cannot be compared.
JUDGES = 3


@dataclasses.dataclass(frozen=True, eq=False)
class QuestionCase:
  """One question about one image. `content` is one of `scenes.LAYOUTS` or 'digit', `kind` one of `questions.KINDS`."""

  content: str
  kind: str
  group: str
  image: np.ndarray
  question: str
  expected: tuple[str, ...]

  @property
  def key(self) -> tuple[str, ...]:
    """Cases of one key are scored together."""
    return self.content, self.kind, self.group

  @property
  def unit(self) -> bytes:
    """Cases of one unit are not independent."""
    return self.image.tobytes()

  def is_right(self, answer: str) -> bool:
    return questions.is_right(answer, self.expected)


@dataclasses.dataclass(frozen=True)
class GenerationCase:
  """One prompt, and what an image of it must show: `expected` is a digit or a description of shapes."""

  skill: str
  group: str
  prompt: str
  expected: Description | int

  @property
  def key(self) -> tuple[str, ...]:
    return self.skill, self.group

  @property
  def unit(self) -> str:
    return self.prompt


def build_questions(world: World, per_kind: int, seed: int = 0) -> list[QuestionCase]:
  """Questions about images that training never shows.

  Args:
    world: the toy world.
    per_kind: questions of one kind about one content in one group, each about another scene.
    seed: of the choice.

  Raises:
    InputError: scikit-learn is not installed.
  """
  rng = np.random.default_rng(seed)
  cases = []
  groups = zip(QUESTION_GROUPS, ('test', 'held_out'), strict=True)
  for layout, (group, split) in itertools.product(scenes.LAYOUTS, groups):
    # There may be fewer different scenes in the whole world.
    found = dict.fromkeys(scenes.scene_at(world, split, index, layout) for index in range(2 * per_kind))
    chosen = list(found)[:per_kind]
    for image, scene in zip(shapes.render_scene(world, chosen), chosen, strict=True):
      asked = questions.ask(scene)
      one_of_each_kind = {asked[index].kind: asked[index] for index in rng.permutation(len(asked))}
      for item in one_of_each_kind.values():
        cases.append(QuestionCase(layout, item.kind, group, image, item.text, item.answers))
  images, labels = digits.load_digits(world.size, 'test')
  for index in rng.permutation(len(labels))[:per_kind]:
    for item in questions.ask_digit(int(labels[index])):
      cases.append(QuestionCase('digit', item.kind, 'new_scene', images[index], item.text, item.answers))
  return cases


def build_prompts(world: World, per_group: int, seed: int = 0) -> list[GenerationCase]:
  """Up to `per_group` prompts of each skill and group. Where there are fewer different ones, they repeat."""
  rng = np.random.default_rng(seed)
  cases = []
  for skill, group in itertools.product(SKILLS, GENERATION_GROUPS):
    pool = [item for item in _expectations(world, skill) if _is_new(world, item) == (group == 'new_combination')]
    order = rng.permutation(len(pool))
    for number in range(per_group if pool else 0):
      expected = pool[order[number % len(pool)]]
      phrase = expected.text if isinstance(expected, Description) else digits.phrase(expected)
      prompt = phrase if group == 'new_combination' else captions.sample_prompt(phrase, rng, group == 'new_phrasing')
      cases.append(GenerationCase(skill, group, prompt, expected))
  return cases


def _expectations(world: World, skill: str) -> Sequence[Description | int]:
  """Everything that a prompt of the skill may ask for."""
  shapes, colours, sizes = world.shapes, world.colours, world.sizes
  shape_pairs = list(itertools.permutations(shapes, 2))
  match skill:
    case 'single_object':
      return [Description((CaptionPart(1, shape),)) for shape in shapes]
    case 'attributes':
      return [Description((CaptionPart(1, *item),)) for item in itertools.product(shapes, colours, sizes)]
    case 'colours':
      return [Description((CaptionPart(1, *pair),)) for pair in itertools.product(shapes, colours)]
    case 'counting':
      return [Description((CaptionPart(n, s, c),)) for n, c, s in itertools.product(scenes.COUNTS, colours, shapes)]
    case 'two_objects' | 'position':
      relations = scenes.RELATIONS if skill == 'position' else (None,)
      both = itertools.product(shape_pairs, relations)
      return [Description((CaptionPart(1, a), CaptionPart(1, b)), relation) for (a, b), relation in both]
    case 'colour_binding':
      both = itertools.product(shape_pairs, itertools.permutations(colours, 2))
      return [Description((CaptionPart(1, a, c), CaptionPart(1, b, d))) for (a, b), (c, d) in both]
    case 'digit':
      return range(10)
  raise ValueError(f'skill {skill!r}: expected one of {SKILLS}')


def _is_new(world: World, expected: Description | int) -> bool:
  """True where training never says what is asked for."""
  if isinstance(expected, int):
    return False
  return captions.says_held_out(world, expected)


def judge_images(world: World, judge: DigitJudge, cases: Sequence[GenerationCase], images: np.ndarray) -> list[Verdict]:
  """One verdict per case and its image, uint8[n, size, size, 3]."""
  return [
    _judge_digit(case.expected, int(digit))
    if isinstance(case.expected, int)
    else shape_judge.judge_image(world, case.expected, image)
    for case, image, digit in zip(cases, images, judge.predict(images), strict=True)
  ]


def find_objects(world: World, cases: Sequence[GenerationCase], images: np.ndarray) -> list[list[Seen] | None]:
  """The objects in the images, uint8[n, size, size, 3], of prompts for shapes that are alike; None of others."""
  return [
    shape_judge.find_objects(world, image)
    if isinstance(case.expected, Description) and len(case.expected.parts) == 1
    else None
    for case, image in zip(cases, images, strict=True)
  ]


def _judge_digit(expected: int, read: int) -> Verdict:
  if read == expected:
    return Verdict(True)
  return Verdict(False, 'not a digit' if read == NONE else f'reads as {read}')
