"""lmms-eval's model: requests as the harness makes them, answers as `understand` gives them."""

import dataclasses
import sys

import numpy as np
import pytest
from PIL import Image
from plugins.harnesses import load_lmms_eval

import janus_jax
from janus_jax import plugins
from janus_jax.data.prompts import SYSTEM_PROMPT
from janus_jax.errors import InputError
from janus_jax.inference import answering
from janus_jax.inference.requests import AnswerSettings
from janus_jax.plugins import model as plugin_model


@pytest.fixture
def module(monkeypatch):
  return load_lmms_eval(monkeypatch)


@pytest.fixture
def model(module, checkpoint):
  return module.JanusJax(checkpoint=checkpoint, dtype='float32', max_new_tokens=6, batch_size='auto')


def image(seed):
  return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8))


def text(words):
  return {'type': 'text', 'text': words}


def picture(seed):
  return {'type': 'image', 'url': image(seed)}


@dataclasses.dataclass
class Request:
  args: tuple


def requests(model, documents, **settings):
  """As evaluator.py hands them over, of documents that are contents of a user's turn."""
  model.task_dict = {'task': {'test': documents}}

  def messages(document):
    return [{'role': 'user', 'content': document}]

  given = {'until': ['\n\n'], **settings}
  return [Request(('context', messages, dict(given), number, 'task', 'test')) for number in range(len(documents))]


def test_answers_come_in_the_order_of_requests_and_are_those_of_understand(model, checkpoint, recorded):
  asked = [(2, 'How many dogs are there in this image, and how many cats beside them?'), (1, 'A?'), (2, 'Red?')]
  asked += [(1, 'Is it a dog or a very large and old cat that sleeps?'), (2, 'Who?'), (None, 'What is a dog?')]
  documents = [[*([picture(seed)] if seed else []), text(words)] for seed, words in asked]
  batches = recorded(answering, 'prefill')
  found = model.generate_until(requests(model, documents, do_sample=False, temperature=0, top_p=0, num_beams=1))
  assert len(batches) < len(asked)
  # Five questions about two images, which are run once.
  assert sum(0 if args[1].pixels is None else len(args[1].pixels) for args, _ in batches) == 2
  images = [[image(seed)] if seed else [] for seed, _ in asked]
  janus = janus_jax.load(checkpoint, 'float32')
  expected = janus_jax.answer(janus, images, [words for _, words in asked], max_new_tokens=6)
  assert found == [answer.text.strip() for answer in expected]
  assert len(set(found)) == len(found)


def test_a_long_run_is_answered_in_parts(model, module, monkeypatch):
  documents = [[picture(seed), text(f'{seed}?')] for seed in (1, 2, 1)]
  whole = model.generate_until(requests(model, documents))
  monkeypatch.setattr(module, 'windows', lambda indices: plugin_model.windows(indices, 2))
  assert model.generate_until(requests(model, documents)) == whole


def test_images_stand_where_the_message_has_them(module):
  parts = [text('See '), picture(1), text(' and'), picture(2), text('. Which?')]
  found = module.conversation_of([{'role': 'user', 'content': parts}])
  assert found.turns == ['See\n<image_placeholder>\nand\n<image_placeholder>\n. Which?']
  assert [np.asarray(each).tolist() for each in found.images] == [np.asarray(image(seed)).tolist() for seed in (1, 2)]
  assert found.system == SYSTEM_PROMPT


def test_roles_are_turns(module):
  messages = [('system', 'Be brief.'), ('user', 'One?'), ('assistant', 'Yes.'), ('user', 'Two?')]
  found = module.conversation_of([{'role': role, 'content': words} for role, words in messages])
  assert (found.system, found.turns, found.images) == ('Be brief.', ['One?', 'Yes.', 'Two?'], [])
  with pytest.raises(InputError, match='message 2 is of the role user: expected user, assistant'):
    module.conversation_of([{'role': 'user', 'content': 'One?'}] * 2)


def test_answers_end_before_what_ends_them(model, module):
  assert module.cut('a dog. Q: b\nASSISTANT: c', ('ASSISTANT:', 'Q:')) == 'a dog. '
  assert module.cut('a dog', ('Q:',)) == module.cut('a dog', ()) == 'a dog'
  (whole,) = model.generate_until(requests(model, [[picture(1), text('What?')]]))
  start, end = whole[:2], whole[2:4]
  assert len(end) == 2
  assert model.generate_until(requests(model, [[picture(1), text('What?')]], until=[end])) == [start.strip()]


@pytest.mark.parametrize(
  ('given', 'changes', 'until'),
  [
    ({}, {}, ()),
    ({'until': ['\n\n'], 'max_new_tokens': 16}, {'max_new_tokens': 16}, ()),
    ({'until': ['Q:', '\n\n', '']}, {}, ('Q:', '\n\n')),
    ({'do_sample': False, 'temperature': 0.2, 'top_p': 0, 'num_beams': 1, 'image_aspect_ratio': 'pad'}, {}, ()),
    ({'temperature': 0.7, 'top_p': 0.9}, {'temperature': 0.7, 'top_p': 0.9}, ()),
    ({'do_sample': True, 'seed': 3, 'top_k': 5}, {'temperature': 1.0, 'seed': 3, 'top_k': 5}, ()),
  ],
)
def test_settings_of_generation(module, given, changes, until):
  base = AnswerSettings(max_new_tokens=7, weights='int8')
  assert module.answer_settings(base, given) == (dataclasses.replace(base, **changes), until)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'stop_sequences': ['x']}, 'stop_sequences is not supported by janus_jax: expected any of max_new_tokens'),
    ({'num_beams': 4}, 'num_beams is 4: expected 1'),
    ({'repetition_penalty': 1.2}, 'repetition_penalty is 1.2: expected 1'),
    ({'do_sample': True, 'top_p': 0}, 'top_p is 0: expected more than 0'),
  ],
)
def test_what_cannot_be_done_is_named_before_anything_is_answered(model, monkeypatch, settings, message):
  monkeypatch.setattr(plugin_model, 'answer_questions', lambda *_: pytest.fail('answered'))
  with pytest.raises(InputError, match=message):
    model.generate_until(requests(model, [[text('What?')]], **settings))


def test_content_that_is_no_image_is_named(model):
  with pytest.raises(InputError, match=r"task, test 0: .* type video \('a.mp4'\): expected text and images"):
    model.generate_until(requests(model, [[{'type': 'video', 'url': 'a.mp4'}, text('What?')]]))
  for method in (model.loglikelihood, model.generate_until_multi_round):
    with pytest.raises(NotImplementedError, match='janus_jax answers'):
      method([])


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({}, 'checkpoint is missing: expected checkpoint=PATH'),
    ({'checkpoint': 'x', 'dtyp': 'bfloat16'}, 'dtyp is unknown: did you mean dtype'),
    ({'checkpoint': 'x', 'weights': 'int4'}, "weights is 'int4': expected one of full, int8"),
    ({'checkpoint': 'x', 'batch_size': 'many'}, "batch_size is 'many': expected a number, or auto"),
  ],
)
def test_wrong_model_args_are_named(module, options, message):
  with pytest.raises(InputError, match=message):
    module.JanusJax(**options)


def test_the_entry_point_names_the_class(module):
  manifest = plugins.lmms_eval_manifest()
  name, _, attribute = manifest.chat_class_path.rpartition('.')
  found = getattr(sys.modules[name], attribute)
  assert (manifest.model_id, found, found.is_simple) == ('janus_jax', module.JanusJax, False)
