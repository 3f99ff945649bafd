"""Answers questions about images, or about none.

    python -m janus_jax.understand --checkpoint=PATH --image=F [--image=F2 ...] --question="..."
                                   [--question="..." ...]
                                   [--max_new_tokens=512 --temperature=0 --top_p=1 --seed=0 --json]
                                   [--tiles=4 --weights=int8 --cache_dtype=int8]

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
from janus_jax.data.images import load_image
from janus_jax.data.tokenizer import StreamDecoder, Tokenizer
from janus_jax.inference import answering
from janus_jax.inference.requests import AnswerSettings, check_tokenizer, decoder_for
from janus_jax.runs import loading
from janus_jax.sharding.mesh import parse_mesh

_CHECKPOINT, _DTYPE, _MESH = cli.define_model()
_IMAGE = cli.define_paths('image', 'Image file; may be given several times.')
_QUESTION = flags.DEFINE_multi_string(
  'question',
  None,
  'May hold one <image> (or <image_placeholder>) per image, where it belongs; else they come first. May be repeated.',
  required=True,
)
_SETTINGS = cli.define_settings(
  AnswerSettings, 'max_new_tokens', 'tiles', 'temperature', 'top_p', 'seed', 'weights', 'cache_dtype'
)
_JSON = flags.DEFINE_bool('json', False, 'Print one JSON object per question on stdout.')


def _print_stream(chunks: Iterator[list[int]], tokenizer: Tokenizer) -> int:
  """Prints the text of the ids as they come; returns their number."""
  text, count = StreamDecoder(tokenizer), 0
  for ids in chunks:
    print(''.join(map(text.push, ids)), end='', flush=True)
    count += len(ids)
  print(text.finish(), flush=True)
  return count


def main() -> None:
  # Opening is quick; the weights are read once the questions are known to be good.
  config = open_checkpoint(_CHECKPOINT.value).config
  tokenizer, template = loading.load_tokenizer(_CHECKPOINT.value)
  check_tokenizer(config, tokenizer)
  images = [load_image(path) for path in _IMAGE.value]
  texts, settings = _QUESTION.value, AnswerSettings(**cli.values(*_SETTINGS))
  questions = answering.prepare_questions(config, [images] * len(texts), texts, tokenizer, template, settings.tiles)
  janus = loading.load(_CHECKPOINT.value, _DTYPE.value, parse_mesh(_MESH.value))
  decoder = decoder_for(janus, settings.weights, settings.cache_dtype)
  start = time.perf_counter()
  if len(questions) == 1 and sys.stdout.isatty() and not _JSON.value:
    stream = answering.stream_tokens(decoder, questions, [0], tokenizer.special, settings)
    count = _print_stream((ids for (ids,) in stream), tokenizer)
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
