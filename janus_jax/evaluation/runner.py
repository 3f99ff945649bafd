"""Answers benchmarks' questions and generates their images with a model: batched, in shards, resumable.

Answers are appended to a file as they are made, a line each; what a killed run left of a line is cut off. A question
that stands there is not asked again, so that the same command goes on where it stopped.
"""

import dataclasses
import io
import json
import logging
import os
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import tqdm
from PIL import Image

from janus_jax.data.images import decode_image, save_png
from janus_jax.data.prompts import Template, understanding_ids
from janus_jax.data.whole_files import write_text
from janus_jax.errors import InputError, one_line
from janus_jax.evaluation.headline import independent_unit
from janus_jax.evaluation.prompt_styles import PROMPTS, Prompt
from janus_jax.evaluation.questions import BenchmarkQuestion
from janus_jax.evaluation.rows import as_vlmevalkit_reads, read_appended, read_rows, require, require_text
from janus_jax.inference.answering import answer_questions, prepare_question
from janus_jax.inference.decoder import Decoder
from janus_jax.inference.generation import prompt_rows, stream_images
from janus_jax.inference.requests import AnswerSettings, ImageSettings, LoadedJanus

CHUNK = 64  # Questions that are answered before their answers are written.
OLD_ROLES = Template('User', 'Assistant')  # What VLMEvalKit calls the speakers for every checkpoint.


@dataclasses.dataclass(frozen=True)
class Shard:
  """Part `index` of `count` of a benchmark."""

  index: int = 0
  count: int = 1

  def path(self, directory: str) -> str:
    return os.path.join(directory, f'answers-{self.index:05}-of-{self.count:05}.jsonl')


@dataclasses.dataclass(frozen=True)
class Asked:
  """A question as it is asked."""

  question: BenchmarkQuestion
  prompt: Prompt
  length: int  # Tokens, images included.


def ask_questions(
  benchmark: str, questions: Sequence[BenchmarkQuestion], style: str, janus: LoadedJanus
) -> list[Asked]:
  """The prompts of questions in a style. Raises InputError for one that is too long, naming it."""
  tokenizer, template = janus.tokenizer_and_template()
  template = OLD_ROLES if style == 'vlmevalkit' else template
  rows = [question.row for question in questions]
  if style != 'lmms-eval':
    rows = as_vlmevalkit_reads(rows)
  asked = []
  for question, row in zip(questions, rows):
    prompt = PROMPTS[style](benchmark, row, len(question.images))
    try:
      ids = understanding_ids(
        tokenizer,
        template,
        [prompt.text],
        num_images=len(question.images),
        num_image_tokens=janus.config.num_image_tokens,
        max_length=janus.config.language_model.max_positions,
        system=prompt.system,
      )
    except InputError as error:
      raise InputError(f'{benchmark}, question {question.index}: {error}') from None
    asked.append(Asked(question, prompt, len(ids)))
  return asked


def spread(benchmark: str, questions: Sequence[BenchmarkQuestion], count: int) -> list[BenchmarkQuestion]:
  """About so many questions from all over a benchmark: whole units of those that are scored together, evenly spaced."""
  units: dict[Hashable, list[BenchmarkQuestion]] = {}
  for question in questions:
    units.setdefault(independent_unit(benchmark, question.row), []).append(question)
  kept, groups = max(round(count / max(len(questions), 1) * len(units)), 1), list(units.values())
  chosen = groups if count >= len(questions) else [groups[n * len(groups) // kept] for n in range(kept)]
  return [question for unit in chosen for question in unit]


def read_answers(path: str) -> dict[str, dict[str, Any]]:
  """Answers by index; cuts off what a killed run left of a line. Raises InputError for a file of something else."""
  rows = read_appended(path)
  if any('index' not in row or not isinstance(row.get('prediction'), str) for row in rows):
    raise InputError(f'{path}: a line has no index and prediction: expected answers as janus_jax.evaluate wrote them')
  return {str(row['index']): row for row in rows}


def shard_of(asked: Sequence[Asked], shard: Shard) -> list[Asked]:
  """The shard's questions: those about one image stay together, so that it is run once."""
  names = list(dict.fromkeys(_images(item) for item in asked))
  mine = {name for number, name in enumerate(names) if number % shard.count == shard.index}
  return [item for item in asked if _images(item) in mine]


def _images(asked: Asked) -> tuple[str, ...]:
  return tuple(image.name for image in asked.question.images)


def chunks(asked: Sequence[Asked], size: int = CHUNK) -> Iterator[list[Asked]]:
  """Questions in chunks of like length, those about the same images in one; at least `size` each but for the last."""
  groups: dict[tuple[str, ...], list[Asked]] = {}
  for item in asked:
    groups.setdefault(_images(item), []).append(item)
  order = sorted(groups.values(), key=lambda group: (len(_images(group[0])), max(item.length for item in group)))
  chunk: list[Asked] = []
  for group in order:
    chunk += group
    if len(chunk) >= size:
      yield chunk
      chunk = []
  if chunk:
    yield chunk


def answer_benchmark(
  asked: Sequence[Asked], style: str, janus: LoadedJanus, decoder: Decoder, settings: AnswerSettings, path: str
) -> None:
  """Appends the answers that a file does not hold yet, with progress.

  Args:
    asked: questions (`ask_questions`, `shard_of`).
    style: 'vlmevalkit' names the speakers as VLMEvalKit does; else the checkpoint's template does.
    janus: config, tokenizer and template.
    decoder: weights (`requests.decoder_for`).
    settings: longest answer, temperature and the like.
    path: .jsonl file; {'index', 'prediction', 'token_ids'} a line.
  """
  done = read_answers(path)
  left = [item for item in asked if item.question.index not in done]
  with open(path, 'a', encoding='utf-8') as file, _progress(len(asked), len(asked) - len(left), 'question') as bar:
    for lines in answers_to(left, style, janus, decoder, settings):
      file.write(''.join(f'{json.dumps(line, ensure_ascii=False)}\n' for line in lines))
      file.flush()
      bar.update(len(lines))


def answers_to(
  asked: Sequence[Asked], style: str, janus: LoadedJanus, decoder: Decoder, settings: AnswerSettings
) -> Iterator[list[dict[str, Any]]]:
  """Yields {'index', 'prediction', 'token_ids'} of each question, a chunk at a time, as `answer_benchmark` asks it."""
  tokenizer, template = janus.tokenizer_and_template()
  template = OLD_ROLES if style == 'vlmevalkit' else template
  for chunk in chunks(asked):
    opened = {image.name: _open(image) for item in chunk for image in item.question.images}
    prepared = [
      prepare_question(
        janus.config,
        [opened[image.name] for image in item.question.images],
        item.prompt.text,
        tokenizer,
        template,
        item.prompt.system,
        settings.tiles,
      )
      for item in chunk
    ]
    yield [
      {'index': item.question.index, 'prediction': answer.text, 'token_ids': answer.token_ids}
      for item, answer in zip(chunk, answer_questions(decoder, prepared, tokenizer, settings))
    ]


def _open(image: Any) -> Image.Image:
  return decode_image(io.BytesIO(image.read()), image.name)


def _progress(total: int, initial: int, unit: str) -> tqdm.tqdm:
  return tqdm.tqdm(total=total, initial=initial, unit=unit, dynamic_ncols=True)


def collect_answers(
  directory: str, shard: Shard, questions: Sequence[BenchmarkQuestion]
) -> list[dict[str, Any]] | None:
  """Rows with 'prediction' in the order of the dataset; None (and a line in the log) where shards are not done yet."""
  found: dict[str, dict[str, Any]] = {}
  for index in range(shard.count):
    found |= read_answers(dataclasses.replace(shard, index=index).path(directory))
  missing = [question.index for question in questions if question.index not in found]
  if missing:
    logging.info(
      '%s: %d of %d answers are there; the last shard to end scores them', directory, len(found), len(questions)
    )
    return None
  return [{**question.row, 'prediction': found[question.index]['prediction'].strip()} for question in questions]


# --- generation


def read_geneval_prompts(path: str) -> list[dict[str, Any]]:
  """Lines of evaluation_metadata.jsonl. Raises InputError for one without a prompt."""
  rows = read_rows(path)
  require(rows, ('prompt',))
  require_text(rows, ('prompt',), f' of {path}')
  return rows


def generate_geneval(
  metadata: Sequence[dict[str, Any]],
  janus: LoadedJanus,
  decoder: Decoder,
  settings: ImageSettings,
  directory: str,
  shard: Shard,
) -> None:
  """Writes `<directory>/00000/metadata.jsonl` and `samples/00000.png` ..., which the official scorer takes."""

  def path(prompt: int, image: int) -> str:
    return os.path.join(directory, f'{prompt:05}', 'samples', f'{image:05}.png')

  mine = range(shard.index, len(metadata), shard.count)
  for prompt in mine:
    os.makedirs(os.path.join(directory, f'{prompt:05}', 'samples'), exist_ok=True)
    write_text(os.path.join(directory, f'{prompt:05}', 'metadata.jsonl'), json.dumps(metadata[prompt]))
  wanted = [(prompt, image) for prompt in mine for image in range(settings.num_images)]
  left = [pair for pair in wanted if not os.path.exists(path(*pair))]
  for image in _images_of([row['prompt'] for row in metadata], left, janus, decoder, settings, len(wanted)):
    save_png(
      path(image.prompt_index, image.image_index), image.pixels, {'prompt': metadata[image.prompt_index]['prompt']}
    )


def read_dpg_prompts(directory: str) -> dict[str, str]:
  """Name of a file in prompts/ -> its text."""
  names = sorted(name for name in os.listdir(directory) if name.endswith('.txt'))
  found = {}
  for name in names:
    path = os.path.join(directory, name)
    try:
      with open(path, encoding='utf-8') as file:
        found[name.removesuffix('.txt')] = file.read().strip()
    except UnicodeDecodeError as error:
      raise InputError(f'{path}: {one_line(error)}: expected a prompt in UTF-8') from None
  return found


def generate_dpg(
  prompts: dict[str, str], janus: LoadedJanus, decoder: Decoder, settings: ImageSettings, directory: str, shard: Shard
) -> None:
  """Writes `<directory>/<name>.png`, a square of four images, as the official scorer takes them with --pic-num=4."""
  names = list(prompts)
  mine = range(shard.index, len(names), shard.count)
  left = [number for number in mine if not os.path.exists(os.path.join(directory, f'{names[number]}.png'))]
  os.makedirs(directory, exist_ok=True)
  found: dict[int, dict[int, np.ndarray]] = {}
  wanted = [(number, image) for number in left for image in range(4)]
  for image in _images_of(list(prompts.values()), wanted, janus, decoder, settings, 4 * len(mine)):
    four = found.setdefault(image.prompt_index, {})
    four[image.image_index] = image.pixels
    if len(four) == 4:
      rows = [np.concatenate([four[start], four[start + 1]], axis=1) for start in (0, 2)]
      save_png(
        os.path.join(directory, f'{names[image.prompt_index]}.png'),
        np.concatenate(rows),
        {'prompt': prompts[names[image.prompt_index]]},
      )
      del found[image.prompt_index]


def _images_of(
  prompts: Sequence[str],
  left: Sequence[tuple[int, int]],
  janus: LoadedJanus,
  decoder: Decoder,
  settings: ImageSettings,
  total: int,
) -> Iterator[Any]:
  tokenizer, template = janus.tokenizer_and_template()
  rows = prompt_rows(janus.config, prompts, tokenizer, template, settings.aspect)
  with _progress(total, total - len(left), 'image') as bar:
    for image in stream_images(decoder, rows, left, tokenizer.special.pad, settings) if left else ():
      yield image
      bar.update()
