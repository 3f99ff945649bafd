"""Answers questions about images, or about none.

    python -m janus_jax.understand --checkpoint=PATH --image=F [--image=F2 ...] --question="..."
                                   [--question="..." ...]
                                   [--max_new_tokens=512 --temperature=0 --top_p=1 --seed=0 --json]
                                   [--weights=int8 --cache_dtype=int8]

Several questions are asked each for itself, all about the same images, which are run once for all of them; answers
follow in their order. On a terminal the answer to a single question appears as it is made.
"""

import json
import logging
import sys
import time
from collections.abc import Iterator

from absl import flags

from janus_jax import cli
from janus_jax.conversion.checkpoint import open_checkpoint
from janus_jax.conversion.export import DTYPES
from janus_jax.data.images import load_image
from janus_jax.data.tokenizer import StreamDecoder, Tokenizer
from janus_jax.inference import answering
from janus_jax.inference.cache import CACHE_DTYPES
from janus_jax.inference.decoder import WEIGHTS
from janus_jax.inference.requests import AnswerSettings, check_tokenizer, decoder_for
from janus_jax.runs import loading
from janus_jax.runs.value_checks import SEED, Integer, Number
from janus_jax.sharding.mesh import parse_mesh

_CHECKPOINT = cli.define_path('checkpoint', None, 'Checkpoint directory of any layout.', required=True)
_IMAGE = cli.define_paths('image', 'Image file; may be given several times.')
_QUESTION = flags.DEFINE_multi_string(
  'question',
  None,
  'May hold one <image> (or <image_placeholder>) per image, where it belongs; else they come first. May be repeated.',
  required=True,
)
_MAX_NEW_TOKENS = cli.define_number('max_new_tokens', 512, 'The longest answer.', Integer(1))
_TEMPERATURE = cli.define_number('temperature', 0.0, 'Divides the logits; 0 takes the most likely token.', Number())
_TOP_P = cli.define_number(
  'top_p', 1.0, 'Only the most likely tokens that together reach this probability.', Number(0, 1, above=True)
)
_SEED = cli.define_number('seed', 0, 'The same seed gives the same answers.', SEED)
_DTYPE = flags.DEFINE_enum('dtype', 'bfloat16', list(DTYPES), 'What to compute in.')
_WEIGHTS = flags.DEFINE_enum(
  'weights', 'full', list(WEIGHTS), 'What kernels are stored in; int8 takes less memory and time, and costs accuracy.'
)
_CACHE_DTYPE = flags.DEFINE_enum('cache_dtype', None, list(CACHE_DTYPES), 'Of keys and values; default: --dtype.')
_MESH = flags.DEFINE_string('mesh', None, 'Spread the parameters over devices, e.g. tensor=2,fsdp=-1.')
_JSON = flags.DEFINE_bool('json', False, 'Print one JSON object per question on stdout.')


def _settings() -> AnswerSettings:
  return AnswerSettings(
    seed=_SEED.value,
    weights=_WEIGHTS.value,
    cache_dtype=_CACHE_DTYPE.value,
    max_new_tokens=_MAX_NEW_TOKENS.value,
    temperature=_TEMPERATURE.value,
    top_p=_TOP_P.value,
  )


def show(chunks: Iterator[list[int]], tokenizer: Tokenizer) -> list[int]:
  """Prints the text of the ids as they come; returns them all."""
  text, token_ids = StreamDecoder(tokenizer), []
  for ids in chunks:
    print(''.join(map(text.push, ids)), end='', flush=True)
    token_ids += ids
  print(text.finish(), flush=True)
  return token_ids


def main() -> None:
  # Opening is quick; the weights are read once the questions are known to be good.
  config = open_checkpoint(_CHECKPOINT.value).config
  tokenizer, template = loading.load_tokenizer(_CHECKPOINT.value)
  check_tokenizer(config, tokenizer)
  images = [load_image(path) for path in _IMAGE.value]
  texts, settings = _QUESTION.value, _settings()
  questions = answering.prepare_questions(config, [images] * len(texts), texts, tokenizer, template)
  janus = loading.load(_CHECKPOINT.value, _DTYPE.value, parse_mesh(_MESH.value))
  decoder = decoder_for(janus, settings.weights, settings.cache_dtype)
  start = time.perf_counter()
  if len(questions) == 1 and sys.stdout.isatty() and not _JSON.value:
    stream = answering.stream_tokens(decoder, questions, [0], tokenizer.special, settings)
    count = len(show((ids for (ids,) in stream), tokenizer))
  else:
    answers = answering.answer_questions(decoder, questions, tokenizer, settings)
    for text, answer in zip(texts, answers):
      values = {'images': _IMAGE.value, 'question': text, 'answer': answer.text, 'token_ids': answer.token_ids}
      print(json.dumps(values) if _JSON.value else answer.text)
    count = sum(len(answer.token_ids) for answer in answers)
  seconds = time.perf_counter() - start
  logging.info('%d tokens in %.1f s, compiling included: %.1f tokens/s', count, seconds, count / seconds)


if __name__ == '__main__':
  cli.run(main)
