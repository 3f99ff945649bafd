"""Benchmarks from a checkpoint to a table: the logic of `evaluate --benchmarks`."""

import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from janus_jax.conversion.buckets import absolute
from janus_jax.conversion.checkpoint import open_checkpoint
from janus_jax.errors import InputError
from janus_jax.evaluation import exports, runner
from janus_jax.evaluation.benchmarks import BENCHMARKS
from janus_jax.evaluation.prompt_styles import STYLES
from janus_jax.evaluation.questions import FILES, BenchmarkQuestion, read_questions
from janus_jax.evaluation.reference import COLUMNS
from janus_jax.evaluation.scoreboard import claim, write_table
from janus_jax.evaluation.scores import score_rows, write_rule_scores
from janus_jax.inference.decoder import Decoder
from janus_jax.inference.requests import AnswerSettings, ImageSettings, LoadedJanus, check_tokenizer, decoder_for
from janus_jax.runs import loading

GENEVAL_PROMPTS, DPG_PROMPTS = 'evaluation_metadata.jsonl', 'prompts'


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
  """Settings of a run over benchmarks.

  Attributes:
    benchmarks: names, those of the report (`reference.COLUMNS`).
    data: directory with the datasets' files (`questions.FILES`).
    out: directory; each benchmark has one of its own in it.
    prompt: one of `prompt_styles.STYLES`.
    limit: questions or prompts of each benchmark, from the first on; None for all.
    shard: the part of each benchmark that this process does.
    dtype: dtype to compute in.
    answers: longest answer, temperature and the like; its storage of weights and cache counts for images too.
    images: images per prompt, guidance and the like.
  """

  benchmarks: Sequence[str]
  data: str
  out: str
  prompt: str
  limit: int | None
  shard: runner.Shard
  dtype: str
  answers: AnswerSettings
  images: ImageSettings


@dataclasses.dataclass(frozen=True)
class Model:
  """A checkpoint under evaluation: what its files are called, and its weights prepared for decoding."""

  name: str
  janus: LoadedJanus
  decoder: Decoder


def evaluate(
  checkpoint: str, settings: EvaluationSettings, mesh: jax.sharding.Mesh | None = None
) -> list[dict[str, Any]]:
  """Answers, generates, scores what can be scored here, and writes the table.

  Returns:
    The default rule's score of each benchmark whose shards are all done and that needs no judge.

  Raises:
    InputError: an unknown name, no data, or anything wrong with a checkpoint.
  """
  if unknown := [name for name in settings.benchmarks if name not in COLUMNS]:
    raise InputError(f'benchmark {unknown[0]!r} is unknown: expected any of {", ".join(COLUMNS)}')
  if settings.prompt not in STYLES:
    raise InputError(f'prompt is {settings.prompt!r}: expected one of {", ".join(STYLES)}')
  if not os.path.isdir(settings.data):
    raise InputError(f"{settings.data}: no such directory: expected the benchmarks' files below it")
  # Quick; whatever is wrong with the checkpoint or with the data shows before the weights are read.
  check_tokenizer(open_checkpoint(checkpoint).config, loading.load_tokenizer(checkpoint)[0])
  questions = {name: read_questions(name, settings.data) for name in settings.benchmarks if name in FILES}
  for name, found in questions.items():
    check_questions(name, found)
  prompts = {name: _prompts(name, settings) for name in settings.benchmarks if name not in FILES}
  janus = loading.load(checkpoint, settings.dtype, mesh)
  model = Model(
    os.path.basename(absolute(checkpoint)),
    janus,
    decoder_for(janus, settings.answers.weights, settings.answers.cache_dtype),
  )
  scores = []
  for name in settings.benchmarks:
    directory = os.path.join(settings.out, name)
    os.makedirs(directory, exist_ok=True)
    logging.info('%s: %s', name, directory)
    if name in FILES:
      scores += _answer_and_score(name, questions[name], model, directory, settings)
    else:
      _generate(name, prompts[name], model, directory, settings)
  if scores:
    write_table(settings.out)
  return scores


def check_questions(benchmark: str, questions: Sequence[BenchmarkQuestion]) -> None:
  """Raises InputError where images are missing, or no rule could score answers, before they take hours."""
  if without := [question.index for question in questions if not question.images]:
    raise InputError(f'{benchmark}: question {without[0]} ({len(without)} in all) has no image: expected one or more')
  rows = [{**question.row, 'prediction': ''} for question in questions]
  exports.submission_files(benchmark, rows)
  refusals = []
  for rule in BENCHMARKS[benchmark].rules.values() if benchmark != 'mmvet' else ():  # Which a judge has to read.
    try:
      rule(rows)
      return
    except InputError as error:
      refusals.append(error)
  if refusals:
    raise InputError(f'{benchmark}: {refusals[0]}')


def _answer_and_score(
  benchmark: str, questions: Sequence[BenchmarkQuestion], model: Model, directory: str, settings: EvaluationSettings
) -> list[dict[str, Any]]:
  """The default rule's score in a list, empty where other shards are not done or a judge is needed."""
  style, kept = settings.prompt, questions[: settings.limit]
  greedy = 'greedy' if settings.answers.temperature == 0 else f'temperature {settings.answers.temperature}'
  about = {'model': model.name, 'prompt': style, 'sampling': f'{greedy}, {settings.dtype}'}
  about |= {'dataset': questions[0].dataset}
  asked = runner.shard_of(runner.ask_questions(benchmark, kept, style, model.janus), settings.shard)
  claim(directory, about)
  path = settings.shard.path(directory)
  runner.answer_benchmark(asked, style, model.janus, model.decoder, settings.answers, path)
  rows = runner.collect_answers(directory, settings.shard, kept)
  if rows is None:
    return []
  written = exports.write_answers(benchmark, rows, directory, model.name)
  logging.info('%s: wrote %s', directory, ', '.join(written))
  if benchmark == 'mmvet':
    logging.info('%s: a judge has to read judge_requests.jsonl; janus_jax.score takes its replies', directory)
    return []
  try:
    lines, scores = score_rows(benchmark, rows, 'all', missing=len(questions) - len(kept), **about)
  except InputError as error:
    if len(kept) == len(questions):
      raise
    logging.warning('%s: not scored: the first %d questions alone cannot be: %s', directory, len(kept), error)
    return []
  write_rule_scores(directory, lines, scores)
  return scores[:1]


def _prompts(name: str, settings: EvaluationSettings) -> Any:
  """Prompts of GenEval or DPG-Bench, below the directory of the data."""
  root = Path(settings.data)
  if name == 'geneval':
    found = sorted(root.rglob(GENEVAL_PROMPTS))
    if not found:
      raise InputError(f'{root}: no {GENEVAL_PROMPTS} below it: expected the prompts of GenEval')
    return runner.read_geneval_prompts(str(found[0]))[: settings.limit]
  found = [path for path in sorted(root.rglob(DPG_PROMPTS)) if any(path.glob('*.txt'))]
  if not found:
    raise InputError(f'{root}: no folder {DPG_PROMPTS} with .txt files below it: expected the prompts of DPG-Bench')
  prompts = runner.read_dpg_prompts(str(found[0]))
  return dict(list(prompts.items())[: settings.limit])


def _generate(benchmark: str, prompts: Any, model: Model, directory: str, settings: EvaluationSettings) -> None:
  images = os.path.join(directory, 'images')
  generate = runner.generate_geneval if benchmark == 'geneval' else runner.generate_dpg
  guidance = f'guidance {settings.images.cfg_weight:g}, temperature {settings.images.temperature:g}'
  sampling = f'{guidance}, seed {settings.images.seed}, {settings.dtype}'
  claim(directory, {'model': model.name, 'prompt': "the benchmark's", 'sampling': sampling})
  generate(prompts, model.janus, model.decoder, settings.images, images, settings.shard)
  logging.info('%s: the images, for the official scorer, or for janus_jax.score --images', images)
