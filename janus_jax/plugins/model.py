"""A checkpoint as other harnesses ask it: conversations of texts and images in, answers in their order out."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

from janus_jax.conversion.export import DTYPES
from janus_jax.data.prompts import SYSTEM_PROMPT, Template
from janus_jax.errors import InputError
from janus_jax.evaluation.runner import OLD_ROLES
from janus_jax.inference.answering import answer_questions, prepare_question
from janus_jax.inference.cache import CACHE_DTYPES
from janus_jax.inference.decoder import WEIGHTS, Decoder
from janus_jax.inference.requests import AnswerSettings, LoadedJanus, decoder_for
from janus_jax.runs import loading
from janus_jax.runs.value_checks import SEED, TEXT, Integer, check_fields, one_of
from janus_jax.sharding.mesh import parse_mesh

# Questions that are prepared and batched together: 113 MB of pixels at 384 x 384, and few shapes to compile.
WINDOW = 256
PROMPTS = ('trained', 'vlmevalkit')
CHECKS = {
  'checkpoint': TEXT,
  'dtype': one_of(tuple(DTYPES)),
  'mesh': TEXT,
  'prompt': one_of(PROMPTS),
  'max_new_tokens': Integer(1),
  'batch_size': Integer(1),
  'weights': one_of(WEIGHTS),
  'cache_dtype': one_of(CACHE_DTYPES),
  'seed': SEED,
}


@dataclasses.dataclass(frozen=True)
class Conversation:
  """A question of a harness, with what was said before it.

  Attributes:
    turns: question, answer, question, ..., question, with a placeholder for each image.
    images: RGB, of the whole conversation, in the order of the placeholders.
    system: the system prompt, '' for none.
  """

  turns: Sequence[str]
  images: Sequence[Image.Image]
  system: str = SYSTEM_PROMPT


@dataclasses.dataclass(frozen=True)
class PluginModel:
  """A checkpoint with its weights prepared for decoding, the names of the speakers, and settings of answers."""

  janus: LoadedJanus
  decoder: Decoder
  template: Template
  settings: AnswerSettings

  def answer(self, conversations: Sequence[Conversation], settings: AnswerSettings | None = None) -> list[str]:
    """Answers as they are decoded, in order. Raises InputError for what `prepare_question` refuses."""
    tokenizer, _ = self.janus.tokenizer_and_template()
    tiles = (settings or self.settings).tiles
    prepared = [
      prepare_question(self.janus.config, asked.images, asked.turns, tokenizer, self.template, asked.system, tiles)
      for asked in conversations
    ]
    found = answer_questions(self.decoder, prepared, tokenizer, settings or self.settings)
    return [answer.text for answer in found]


def open_model(options: dict[str, Any]) -> PluginModel:
  """Opens a checkpoint.

  Args:
    options: 'checkpoint', a path that `runs.loading.load` takes; if wanted 'dtype' (bfloat16 unless given), 'mesh'
      (as --mesh of the commands), 'prompt' ('vlmevalkit': the role names of its adapter for Janus in place of the
      checkpoint's), and fields of `AnswerSettings`. None is as good as not given.

  Raises:
    InputError: an option is unknown or out of range, or whatever is wrong with the checkpoint.
  """
  given = {name: value for name, value in options.items() if value is not None}
  if 'checkpoint' not in given:
    raise InputError('checkpoint is missing: expected checkpoint=PATH')
  check_fields(given, CHECKS)
  path, prompt = given.pop('checkpoint'), given.pop('prompt', PROMPTS[0])
  janus = loading.load(path, given.pop('dtype', 'bfloat16'), parse_mesh(given.pop('mesh', None)))
  _, template = janus.tokenizer_and_template()
  settings = AnswerSettings(**given)
  decoder = decoder_for(janus, settings.weights, settings.cache_dtype)
  return PluginModel(janus, decoder, OLD_ROLES if prompt == 'vlmevalkit' else template, settings)


def windows(indices: Sequence[int], size: int = WINDOW) -> Iterator[Sequence[int]]:
  """Consecutive parts of at most `size`. Datasets keep the questions about one image together, so their image is run
  once; within a part questions are batched by length."""
  for start in range(0, len(indices), size):
    yield indices[start : start + size]
