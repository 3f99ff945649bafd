"""lmms-eval's model `janus_jax`, of its chat interface (0.7.3).

lmms-eval --model janus_jax --model_args checkpoint=PATH[,dtype=bfloat16,weights=int8,...] --batch_size auto --tasks ...

`--model_args` are the options of `plugins.model.open_model`. Tasks that have messages of their own (MMMU's, with images
amid the text) and those of an image and a text come the same way; tasks by log-likelihood and of several rounds do not.
"""

import collections
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import tqdm
from lmms_eval.api.model import lmms
from PIL import Image

from janus_jax.data.images import load_image
from janus_jax.data.prompts import SYSTEM_PROMPT
from janus_jax.errors import InputError, shown
from janus_jax.evaluation.prompt_styles import turn_of_parts
from janus_jax.inference.requests import AnswerSettings
from janus_jax.plugins.model import Conversation, open_model, windows

SAMPLING = ('max_new_tokens', 'temperature', 'top_k', 'top_p', 'seed')
# Settings of generation that change nothing for Janus, and the values with which they do not.
NEUTRAL = {
  'num_beams': (1,),
  'repetition_penalty': (1,),
  'use_cache': (True, False),
  'image_aspect_ratio': ('original', 'pad'),  # LLaVA's own; Janus always pads.
}
DEFAULT_UNTIL = ['\n\n']


class JanusJax(lmms):
  """A checkpoint that answers lmms-eval's requests."""

  is_simple = False
  device = 'cpu'  # Where the harness's own counters are gathered; JAX knows its devices.

  def __init__(self, batch_size: int | str = 'auto', device: Any = None, max_batch_size: Any = None, **options: Any):
    """Opens the checkpoint. `batch_size` is a number, or auto: what fits the device. The others are not used."""
    super().__init__()
    del device, max_batch_size
    if int(os.environ.get('WORLD_SIZE', 1)) > 1:  # A process for each GPU: JAX would take all of the host.
      jax.config.update('jax_cuda_visible_devices', os.environ['LOCAL_RANK'])
    automatic = str(batch_size).startswith('auto')
    options['batch_size'] = None if automatic else _number('batch_size', batch_size)
    self._model = open_model(options)

  def generate_until(self, requests: Sequence[Any]) -> list[str]:
    """Answers in the order of requests. Raises InputError for settings of generation that are not honoured here,
    before anything is answered, and for content that is neither text nor image."""
    settings = [answer_settings(self._model.settings, request.args[2]) for request in requests]
    groups = collections.defaultdict(list)
    for index, (sampling, _) in enumerate(settings):
      groups[sampling].append(index)
    answers = [''] * len(requests)
    with tqdm.tqdm(total=len(requests), unit='question', disable=self.rank != 0) as bar:
      for sampling, indices in groups.items():
        for window in windows(indices):
          texts = self._model.answer([self._conversation(requests[i]) for i in window], sampling)
          for index, text in zip(window, texts):
            answers[index] = cut(text, settings[index][1]).strip()
          bar.update(len(window))
    return answers

  def _conversation(self, request: Any) -> Conversation:
    _, doc_to_messages, _, doc_id, task, split = request.args
    try:
      return conversation_of(doc_to_messages(self.task_dict[task][split][doc_id]))
    except InputError as error:
      raise InputError(f'{task}, {split} {doc_id}: {error}') from None

  def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
    raise NotImplementedError('janus_jax answers by generating: tasks by log-likelihood (seedbench_ppl ...) are not')

  def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
    raise NotImplementedError('janus_jax answers single questions: tasks of several rounds are not supported')


def _number(name: str, value: Any) -> int:
  if not str(value).isdecimal():
    raise InputError(f'{name} is {value!r}: expected a number, or auto')
  return int(value)


def answer_settings(settings: AnswerSettings, given: Mapping[str, Any]) -> tuple[AnswerSettings, tuple[str, ...]]:
  """Settings of one request, and the strings that end its answer.

  Greedy unless `do_sample` or, where the task does not say, a temperature above 0. The blank line that lmms-eval adds
  where a task names no `until` ends nothing: answers that are thought out step by step (MM-Vet) would lose all but
  their first paragraph. lmms-eval's newer models leave it out as well.

  Args:
    settings: for what the task does not say.
    given: the task's generation_kwargs.

  Raises:
    InputError: a setting is not known here, or has a value that is not honoured.
  """
  given = {name: value for name, value in given.items() if value is not None}
  until = given.pop('until', [])
  until = [until] if isinstance(until, str) else list(until)
  temperature = given.pop('temperature', None)
  samples = given.pop('do_sample', (temperature or 0) > 0)
  for name, value in given.items():
    if name not in (*SAMPLING, *NEUTRAL):
      known = ', '.join((*SAMPLING, 'do_sample', 'until'))
      raise InputError(f'generation_kwargs: {name} is not supported by janus_jax: expected any of {known}')
    if name in NEUTRAL and value not in NEUTRAL[name]:
      raise InputError(f'generation_kwargs: {name} is {shown(value)}: expected {" or ".join(map(str, NEUTRAL[name]))}')
  wanted = {name: value for name, value in given.items() if name in SAMPLING}
  if not samples:  # What else is said of sampling means nothing then: pope_adv has top_p: 0.
    wanted = {name: value for name, value in wanted.items() if name == 'max_new_tokens'}
  wanted['temperature'] = (1.0 if temperature is None else temperature) if samples else 0.0
  fields = {**vars(settings), **wanted}
  return AnswerSettings(**fields), tuple(filter(None, [] if until == DEFAULT_UNTIL else until))


def cut(text: str, until: Sequence[str]) -> str:
  """Text up to the first of the strings."""
  return text[: min((place for place in map(text.find, until) if place >= 0), default=None)]


def conversation_of(messages: Sequence[Mapping[str, Any]]) -> Conversation:
  """Messages of roles system, user, assistant, user ... Raises InputError for other roles and other content."""
  system, turns, images = SYSTEM_PROMPT, [], []
  for message in messages:
    content = message['content']
    parts = [{'type': 'text', 'text': content}] if isinstance(content, str) else content
    found = [_image(part) if part['type'] != 'text' else part['text'] for part in parts]
    images += [part for part in found if not isinstance(part, str)]
    turn = turn_of_parts([part if isinstance(part, str) else None for part in found])
    if message['role'] == 'system' and not turns:
      system = turn
    elif message['role'] == ('user', 'assistant')[len(turns) % 2]:
      turns.append(turn)
    else:
      raise InputError(f'message {len(turns) + 1} is of the role {message["role"]}: expected user, assistant, user ...')
  return Conversation(turns, images, system)


def _image(part: Mapping[str, Any]) -> Image.Image:
  image = part.get('url')
  if part['type'] == 'image' and isinstance(image, Image.Image):
    return image.convert('RGB')
  if part['type'] == 'image' and isinstance(image, str):
    return load_image(image)
  raise InputError(f'the question has a part of type {part["type"]} ({shown(image)}): expected text and images')
