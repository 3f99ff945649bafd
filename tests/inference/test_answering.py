"""Answers to questions: one does not depend on its batch or neighbours, beginnings are shared, ends are exact."""

import dataclasses
import itertools

import numpy as np
import pytest
from PIL import Image

import janus_jax
from janus_jax.errors import InputError
from janus_jax.inference import answering
from janus_jax.inference.requests import AnswerSettings, decoder_for
from janus_jax.sharding.mesh import parse_mesh

SHORT, LONG = 'three red circles', 'There are three, and a blue square. ' * 3


def noise(seed: int) -> Image.Image:
  return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def test_answers_do_not_depend_on_their_batch(model):
  """Sampled; none, one and two images; an earlier turn."""
  images = [[], [noise(0)], [noise(1), noise(2)], [noise(3)], [noise(4)]]
  questions = ['How many?', 'Describe this image in detail.', 'Are they equal?', ['What?', 'A square.', 'Blue?'], SHORT]
  options = {'max_new_tokens': 20, 'temperature': 1.0, 'top_p': 0.9, 'seed': 3}
  together = janus_jax.answer(model, images, questions, batch_size=5, **options)
  assert together == janus_jax.answer(model, images, questions, batch_size=1, **options)
  assert len({tuple(answer.token_ids) for answer in together}) == 5
  for answer in together:
    assert answer.text == model.tokenizer.decode(answer.token_ids)
  swapped = janus_jax.answer(model, [images[0], [noise(9)]], questions[:2], **options)
  assert swapped[0] == together[0]
  assert swapped[1] != together[1]


def test_a_mesh_answers_the_same(checkpoint, model):
  """Eight questions about one image, eight about their own, over axes that split rows, weights and heads."""
  spread = janus_jax.load(checkpoint, mesh=parse_mesh('tensor=2,fsdp=2,data=-1'))
  images = [[noise(0)]] * 8 + [[noise(number)] for number in range(8)]
  questions = [f'How many {number}?' for number in range(16)]
  options = {'max_new_tokens': 20, 'temperature': 1.0, 'seed': 3, 'batch_size': 8}
  assert janus_jax.answer(spread, images, questions, **options) == janus_jax.answer(model, images, questions, **options)


def test_questions_about_one_image_share_it_and_are_answered_as_alone(model, recorded):
  """Among others: about another image, about none, about the same with words before it, about two."""
  first, other = noise(0), noise(1)
  asked = [
    ([first], 'How many?'),
    ([other], LONG),
    ([first], ['What?', 'A square.', 'Blue?']),
    ([], 'How many?'),
    ([first], 'Look: <image_placeholder> How many?'),
    ([first, other], 'Are they equal?'),
    ([first], LONG),
    ([other], 'How many?'),
    ([first, other], 'How many?'),
    ([], 'How many?'),
  ]
  images, questions = zip(*asked)
  options = {'max_new_tokens': 20, 'temperature': 1.0, 'seed': 3}
  alone = janus_jax.answer(model, images, questions, batch_size=1, **options)
  calls = recorded(answering, 'generate_text')
  together = janus_jax.answer(model, images, questions, batch_size=8, **options)
  assert together == alone
  prefilled = [
    (len(prompts.tokens), len(keys), len(prompts.pixels), prompts.rest is not None)
    for (_, prompts, keys), _ in calls
    if prompts.pixels is not None
  ]
  # Prompts, rows, images, whether there are two passes. First and other (of which a row is repeated), alone, both.
  assert sorted(prefilled) == sorted([(2, 6, 2, True), (1, 1, 1, False), (1, 2, 2, True)])


def test_what_questions_must_have_in_common_to_share(model):
  near = np.array(noise(0))
  near[5, 5, 2] ^= 1
  asked = [
    ([noise(0)], 'How many?'),
    ([Image.fromarray(near)], 'How many?'),
    ([noise(0)], 'Blue?'),
    ([noise(0), noise(1)], 'How many?'),
    ([noise(1), noise(0)], 'How many?'),
    ([noise(0)], 'Look: <image_placeholder> How many?'),
    ([], 'How many?'),
    ([], 'How many?'),
    ([noise(0)], 'How many?'),
  ]
  prepared = answering.prepare_questions(model.config, *zip(*asked), *model.tokenizer_and_template())
  groups = [group.members for group in answering.group_questions(prepared)]
  assert groups == [(0, 2, 8), (1,), (3,), (4,), (5,), (6,), (7,)]


def test_a_shared_encoder_is_asked_at_the_size_and_length_of_generated_images(model):
  vq = dataclasses.replace(model.config.vq, image_size=2 * model.config.vq.image_size)
  shared = dataclasses.replace(model.config, vq=vq, shared_encoder=True)
  question = answering.prepare_question(shared, [noise(9)], SHORT, *model.tokenizer_and_template())
  assert question.pixels.shape == (1, vq.image_size, vq.image_size, 3)
  assert question.ids.count(shared.image_token_id) == vq.num_tokens
  assert vq.num_tokens != shared.vision_encoder.num_tokens


def test_an_answer_ends_before_the_end_token(model):
  special = model.tokenizer.special
  decoder = decoder_for(model)
  asked = [[], []], ['How many?', SHORT]
  questions = answering.prepare_questions(model.config, *asked, *model.tokenizer_and_template())

  def answers(eos_id: int) -> list[list[int]]:
    ids, settings = dataclasses.replace(special, eos=eos_id), AnswerSettings(max_new_tokens=50)
    parts = zip(*answering.stream_tokens(decoder, questions, [0, 1], ids, settings))
    return [list(itertools.chain(*row)) for row in parts]

  free = answers(special.eos)
  assert [len(ids) for ids in free] == [50, 50]
  # Past the first chunk of steps, and in one row only.
  end = next(token for token in free[0][36:] if token not in free[0][:36] and token not in free[1])
  assert answers(end) == [free[0][: free[0].index(end)], free[1]]


def test_an_answer_ends_with_the_positions(model):
  config = model.config
  limit = config.language_model.max_positions

  def length(question: str) -> int:
    return len(answering.prepare_question(config, [], question, *model.tokenizer_and_template()).ids)

  long = SHORT + ' ' * (limit - 20 - length(SHORT)) + '.'
  room = limit - length(long) + 1
  assert 10 < room < 40
  alone, beside = (
    janus_jax.answer(model, [[]] * len(questions), questions, max_new_tokens=512)
    for questions in ([long], [long, long + '!!'])
  )
  assert len(alone[0].token_ids) == room
  assert beside[0] == alone[0]
  assert len(beside[1].token_ids) < room


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'questions': [' ']}, 'question 1 of 1: question 1 of 1 is empty: expected text'),
    ({'images': [Image.new('RGB', (8, 8))]}, r'images of question 1 are .*: expected a list of PIL images'),
    ({'images': [['cat.png']]}, r'images of question 1 are .*: expected a list of PIL images'),
    ({'questions': 'What?'}, r"questions is the string 'What\?': expected a list"),
    ({'images': []}, '0 lists of images for 1 questions: expected one for each'),
    ({'questions': ['red ' * 600]}, r'question 1 of 1: the prompt has \d+ tokens: expected at most 512'),
    ({'max_new_tokens': 0}, 'max_new_tokens is 0: expected 1 or more'),
    ({'seed': -1}, r'seed is -1: expected 0 to 2\^32 - 1'),
    ({'top_k': -1}, r'top_k is -1: expected 0 \(all\) or more'),
  ],
)
def test_bad_questions(model, options, message):
  with pytest.raises(InputError, match=f'^{message}$'):
    janus_jax.answer(model, **{'images': [[]], 'questions': ['What?'], **options})
