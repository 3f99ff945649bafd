"""Questions of a benchmark, answered as `evaluate` does it, and by the peer one after the other."""

import io
import itertools
import os
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import tokenizers
from PIL import Image

from janus_jax.benchmarking.benchmark_model import BenchmarkModel
from janus_jax.benchmarking.peer import PeerProcess
from janus_jax.benchmarking.settings import Request
from janus_jax.benchmarking.timing import Timing
from janus_jax.data import tokenizer as tokenizer_lib
from janus_jax.data.prompts import SYSTEM_PROMPT, TEMPLATES, left_pad
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.evaluation.prompt_styles import WORD
from janus_jax.evaluation.questions import BenchmarkQuestion, ImageRef
from janus_jax.evaluation.runner import answer_benchmark, ask_questions, read_answers
from janus_jax.inference.answering import prepare_question
from janus_jax.inference.decoder import Decoder
from janus_jax.inference.requests import AnswerSettings, LoadedJanus
from janus_jax.models.config import JanusConfig

BENCHMARK, STYLE = 'pope', 'trained'
QUESTIONS = 64  # At least so many, about whole images.


class EvaluatedQuestions:
  """Greedy answers to random questions about random images, as `running.benchmark_inference` times them.

  Ours are those of `runner.answer_benchmark`, from encoded images and text to a file of answers. The peer gets ids and
  pixels and is asked one question at a time, as VLMEvalKit and lmms-eval ask it.
  """

  rows, names, windows = 'questions', ('seconds_of_questions',), (1,)

  def __init__(self, model: BenchmarkModel, request: Request):
    self._directory, self._files = tempfile.TemporaryDirectory(), itertools.count()
    tokenizer = write_tokenizer(model.config, os.path.join(self._directory.name, tokenizer_lib.FILE_NAME))
    self._janus = LoadedJanus(model.config, {}, tokenizer, TEMPLATES['deepseek'])
    self._questions, self._length = random_questions(model, request), request.answer_tokens
    self.about = {'prompt_tokens': request.prompt_tokens, 'answer_tokens': self._length}
    self.about['asked'] = len(self._questions)

  def _answer(self, decoder: Decoder, batch: int) -> list[list[int]]:
    """Ids of the answers, in the order of the questions."""
    path = os.path.join(self._directory.name, f'answers-{next(self._files)}.jsonl')
    settings = AnswerSettings(batch_size=batch, max_new_tokens=self._length)
    asked = ask_questions(BENCHMARK, self._questions, STYLE, self._janus)
    answer_benchmark(asked, STYLE, self._janus, decoder, settings, path)
    found = read_answers(path)
    return [found[question.index]['token_ids'] for question in self._questions]

  def runs(self, decoder: Decoder, batch: int) -> list[Callable[[], Any]]:
    return [lambda: self._answer(decoder, batch)]

  def peer_runs(self, other: PeerProcess, batch: int) -> list[Callable[[], Any]]:
    tokenizer, template = self._janus.tokenizer_and_template()
    prepared = []
    for item in ask_questions(BENCHMARK, self._questions, STYLE, self._janus):
      image = Image.open(io.BytesIO(item.question.images[0].read()))
      question = prepare_question(
        self._janus.config, [image], item.prompt.text, tokenizer, template, item.prompt.system
      )
      prepared.append((question.ids, question.pixels))
    return [lambda: other.call('answer_each', prepared, tokenizer.special.eos, self._length)]

  def greedy(self, decoder: Decoder, other: PeerProcess, batch: int) -> tuple[np.ndarray, np.ndarray]:
    answers = self._answer(decoder, batch), self.peer_runs(other, batch)[0]()
    return tuple(left_pad(rows, -1, self._length)[0] for rows in answers)

  def rates(self, batch: int, questions: Timing) -> dict[str, Any]:
    return {'questions_per_second': len(self._questions) / questions.median}

  def figures(self, decoder: Decoder, batch: int, window: int | str, questions: Timing) -> dict[str, Any]:
    return {}


def random_questions(model: BenchmarkModel, request: Request) -> list[BenchmarkQuestion]:
  """Questions of half to one and a half times `prompt_tokens` words, `rows_per_prefix` about each image."""
  rng, share, size = np.random.default_rng(model.run.seed), request.rows_per_prefix, model.config.image_size
  images = []
  for number in range(-(-QUESTIONS // share)):
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8)).save(buffer, 'PNG')
    images.append(ImageRef(f'{number}.png', buffer.getvalue))
  questions = []
  for index in range(len(images) * share):
    length = rng.integers(request.prompt_tokens // 2, 3 * request.prompt_tokens // 2 + 1)
    words = rng.integers(0, model.config.language_model.vocab_size // 2, length)
    row = {'index': index, 'question': ' '.join(f'w{word}' for word in words)}
    questions.append(BenchmarkQuestion(row, (images[index // share],)))
  return questions


def write_tokenizer(config: JanusConfig, path: str) -> Tokenizer:
  """Writes a tokenizer with a token for each word of a prompt, and of `w0`, `w1` ... as many as the model has ids."""
  splitter, size = tokenizers.pre_tokenizers.Whitespace(), config.language_model.vocab_size
  special = [token for token in tokenizer_lib.SPECIAL_TOKENS if token != tokenizer_lib.IMAGE_PLACEHOLDER]
  words = [word for word, _ in splitter.pre_tokenize_str(f'{SYSTEM_PROMPT}: {WORD}')]
  names = dict.fromkeys([*special, *words, *(f'w{number}' for number in range(size))])
  vocabulary = dict(zip(names, (number for number in range(size) if number != config.image_token_id)))
  vocabulary[tokenizer_lib.IMAGE_PLACEHOLDER] = config.image_token_id
  backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=words[0]))
  backend.pre_tokenizer = splitter
  backend.add_special_tokens(list(tokenizer_lib.SPECIAL_TOKENS))
  backend.save(path)
  return Tokenizer(path)
