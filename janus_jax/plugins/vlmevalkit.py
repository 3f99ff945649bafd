"""Runs VLMEvalKit with a checkpoint of ours.

    python -m janus_jax.plugins.vlmevalkit --root=CHECKOUT --checkpoint=PATH [--prompt=trained|vlmevalkit] [--name=NAME]
        [--dtype=bfloat16 --mesh=... --max_new_tokens=512 --batch_size=N --weights=int8 --cache_dtype=int8]
        -- --data POPE MMBench_DEV_EN --judge exact_matching --work-dir DIR

registers the model from outside, and runs CHECKOUT/run.py (e8e78f0) with what follows `--` and `--model NAME`.

VLMEvalKit asks one question at a time. The model looks ahead in the dataset, answers a few hundred questions in batches
in which those about one image share it, and hands the answers out as they are asked for.
"""

import functools
import itertools
import logging
import os
import runpy
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from janus_jax import cli
from janus_jax.conversion.buckets import absolute
from janus_jax.data.images import load_image
from janus_jax.data.prompts import SYSTEM_PROMPT
from janus_jax.data.tokenizer import IMAGE_PLACEHOLDER
from janus_jax.errors import InputError, one_line
from janus_jax.evaluation.prompt_styles import THINK, vlmevalkit_prompt
from janus_jax.inference.requests import AnswerSettings
from janus_jax.plugins.model import PROMPTS, WINDOW, Conversation, open_model

Message = Sequence[Mapping[str, str]]  # {'type': 'image', 'value': path} and {'type': 'text', 'value': text}.


class JanusMixin:
  """The methods that VLMEvalKit's `BaseModel` leaves open; `model_class` joins the two.

  Args:
    dataset_type: VLMEvalKit's DATASET_TYPE, from the name of a dataset to 'Y/N', 'MCQ' ...
    options: of `plugins.model.open_model`.
  """

  INSTALL_REQ, INTERLEAVE = False, True
  allowed_types = ('text', 'image')

  def __init__(self, dataset_type: Any, options: Mapping[str, Any]):
    super().__init__()
    self._dataset_type, self._prompt = dataset_type, options['prompt']
    self._model = open_model(dict(options))
    self._answers: dict[Any, str] = {}
    self._source, self._ahead = None, iter(())

  def _kind(self, dataset: str) -> str | None:
    """The benchmark whose prompt questions of a dataset get; None where the dataset makes its own."""
    if dataset in ('POPE', 'MMVet'):
      return dataset.lower()
    return {'Y/N': 'mme', 'MCQ': 'mmbench'}.get(self._dataset_type(dataset))

  def use_custom_prompt(self, dataset: str) -> bool:
    return self._kind(dataset) is not None

  def build_prompt(self, line: Any, dataset: str) -> list[dict[str, str]]:
    """The message of VLMEvalKit's own adapter for Janus: images, then text."""
    paths = self.dump_image(line, dataset)
    text = vlmevalkit_prompt(self._kind(dataset), line, len(paths)).text.removeprefix(IMAGE_PLACEHOLDER * len(paths))
    return [*({'type': 'image', 'value': path} for path in paths), {'type': 'text', 'value': text}]

  def generate_inner(self, message: Message, dataset: str | None = None) -> str:
    """The answer to one message; those that will be asked for next are answered with it."""
    key = _key(message, dataset)
    if key not in self._answers:
      asked = [message, *self._following(key, dataset)]
      texts = self._model.answer([self._conversation([each], dataset) for each in asked])
      self._answers = {_key(each, dataset): text.strip() for each, text in zip(asked, texts)}
    return self._answers[key]

  def chat_inner(self, message: Sequence[Mapping[str, Any]], dataset: str | None = None) -> str:
    """The answer to the last of turns with 'role' and 'content'."""
    return self._model.answer([self._conversation([turn['content'] for turn in message], dataset)])[0].strip()

  def _conversation(self, turns: Sequence[Message], dataset: str | None) -> Conversation:
    texts = [
      ''.join(IMAGE_PLACEHOLDER if part['type'] == 'image' else part['value'] for part in turn) for turn in turns
    ]
    images = [load_image(part['value']) for turn in turns for part in turn if part['type'] == 'image']
    if self._prompt == 'vlmevalkit':
      return Conversation(texts, images, THINK if dataset and 'MMVet' in dataset else '')
    return Conversation(texts, images, SYSTEM_PROMPT)

  def _following(self, key: Any, dataset: str | None) -> list[Message]:
    """Messages after one of a dataset in the order in which run.py asks for them; none where its dataset is unknown."""
    source = getattr(self.dump_image_func, '__self__', None)  # run.py hands over a method of the dataset.
    if dataset is None or getattr(source, 'dataset_name', None) != dataset:
      return []
    if source is not self._source:
      self._source, self._ahead = source, self._messages(source)
    for message in self._ahead:
      if _key(message, dataset) == key:
        return list(itertools.islice(self._ahead, WINDOW - 1))
    return []

  def _messages(self, source: Any) -> Iterator[Message]:
    """Messages of the rows of a dataset that this process answers."""
    name = source.dataset_name
    ours = self.use_custom_prompt(name) and not getattr(source, 'force_use_dataset_prompt', False)
    rank, count = (int(os.environ.get(*pair)) for pair in (('RANK', 0), ('WORLD_SIZE', 1)))
    for number in range(rank, len(source.data), count):
      row = source.data.iloc[number]
      yield self.preproc_content(self.build_prompt(row, name) if ours else source.build_prompt(row))


def _key(message: Message, dataset: str | None) -> tuple:
  return dataset, *((part['type'], part['value']) for part in message)


def model_class(base: type) -> type:
  """`JanusMixin` over VLMEvalKit's BaseModel."""
  return type('JanusJax', (JanusMixin, base), {})


def register(root: str, name: str, options: Mapping[str, Any]) -> None:
  """Makes a checkpoint known to the VLMEvalKit of a checkout, under a name; it is opened when it is first asked.

  Raises:
    InputError: no checkout there, or it cannot be imported.
  """
  if not os.path.exists(os.path.join(root, 'run.py')) or not os.path.isdir(os.path.join(root, 'vlmeval')):
    raise InputError(f'{root}: no run.py and vlmeval: expected a checkout of VLMEvalKit')
  sys.path.insert(0, root)
  try:
    from vlmeval.config import supported_VLM
    from vlmeval.dataset import DATASET_TYPE
    from vlmeval.vlm.base import BaseModel
  except ImportError as error:
    raise InputError(f'{root}: {one_line(error)}: expected what its requirements.txt lists to be installed') from None
  supported_VLM[name] = functools.partial(model_class(BaseModel), dataset_type=DATASET_TYPE, options=options)


def main(arguments: Sequence[str]) -> None:
  """Registers the checkpoint and runs run.py with arguments."""
  if not arguments:
    raise flags.Error('expected -- and the arguments of run.py, e.g. -- --data POPE --judge exact_matching')
  root, name = os.path.abspath(_ROOT.value), _NAME.value or os.path.basename(absolute(_CHECKPOINT.value))
  options = cli.values(_CHECKPOINT, _DTYPE, _MESH, _PROMPT, *_SETTINGS)
  register(root, name, options)
  logging.info('VLMEvalKit in %s, model %s', root, name)
  sys.argv = [os.path.join(root, 'run.py'), *arguments, '--model', name]
  runpy.run_path(sys.argv[0], run_name='__main__')


if __name__ == '__main__':
  _CHECKPOINT, _DTYPE, _MESH = cli.define_model()
  _ROOT = cli.define_path('root', None, 'Checkout of VLMEvalKit.', required=True)
  _PROMPT = flags.DEFINE_enum('prompt', PROMPTS[0], list(PROMPTS), 'Whose system prompt and names of the speakers.')
  _NAME = flags.DEFINE_string('name', None, 'Name of the model and its files. Default: that of the checkpoint.')
  _SETTINGS = cli.define_settings(AnswerSettings, 'max_new_tokens', 'batch_size', 'weights', 'cache_dtype')
  given = [*sys.argv, '--']
  end = given.index('--')
  sys.argv, rest = given[:end], given[end + 1 : -1]
  cli.run(functools.partial(main, rest))
