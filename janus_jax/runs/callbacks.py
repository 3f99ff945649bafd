"""Evaluations while a run goes on: losses on data it never trains on, generated images, answers, benchmarks."""

import dataclasses
import itertools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from janus_jax.data.examples import TASKS, ExampleSpec
from janus_jax.data.mean_sizes import mean_sizes
from janus_jax.data.mixture import make_mixture
from janus_jax.data.packing import batch_shape
from janus_jax.data.pipeline import StreamOptions, batches
from janus_jax.data.shard_state import all_shards
from janus_jax.errors import InputError
from janus_jax.evaluation import runner
from janus_jax.evaluation.questions import read_questions
from janus_jax.evaluation.scoreboard import write_scoreboard
from janus_jax.evaluation.scores import score_rows, write_rule_scores
from janus_jax.inference.answering import answer
from janus_jax.inference.generation import generate_images
from janus_jax.inference.requests import AnswerSettings, ImageSettings, LoadedJanus, decoder_for
from janus_jax.runs.config import EvaluationConfig
from janus_jax.runs.datasets import Samples
from janus_jax.toy import scoring
from janus_jax.toy.scores import line_name
from janus_jax.toy.shapes import World
from janus_jax.training.losses import batch_losses
from janus_jax.training.metrics import MetricWriter
from janus_jax.training.run_config import RunConfig
from janus_jax.training.stages import Stage
from janus_jax.training.state import place_whole_batch
from janus_jax.training.step import StepConfig
from janus_jax.training.training_run import Sources

ANSWER_TOKENS = 32
BATCH_SIZE = 64
BENCHMARKS_DIRECTORY = 'benchmarks'

held_out_losses = jax.jit(batch_losses, static_argnames='config')


class HeldOutLoss:
  """The loss of each task on a few batches of held-out data, the same ones every time."""

  def __init__(
    self,
    sources: Sources,
    spec: ExampleSpec,
    run: RunConfig,
    stage: Stage,
    step: StepConfig,
    rows_split: int,
    num_batches: int,
  ):
    """
    Args:
      sources: held-out records by task and name.
      spec: how records become examples.
      run: gives the length of rows.
      stage: gives the size of the batches and the mixture.
      step: types and microbatches that the model is computed in.
      rows_split: number of parts into which the mesh splits the rows of a batch.
      num_batches: 0 measures nothing.
    """
    self._batches: list[dict[str, np.ndarray]] = []
    self._step = step.for_stage(stage)
    weights = {
      task: {name: weight for name, weight in stage.sources.get(task, {}).items() if name in sources[task]}
      for task in TASKS
    }
    # Tasks of which nothing is held out are not measured.
    ratio = [part if sum(weights[task].values()) else 0 for task, part in zip(TASKS, stage.ratio)]
    if num_batches and any(ratio):
      (mean,) = mean_sizes(sources, [(ratio, weights)], spec, run.seed)
      shape = batch_shape(stage.batch_size // rows_split, run.sequence_length, mean)
      options = StreamOptions(run.seed, shards=all_shards(rows_split))
      stream = batches(sources, make_mixture(ratio, weights), spec, shape, options)
      self._batches = list(itertools.islice(stream, num_batches))

  @property
  def has_data(self) -> bool:
    """True if anything is held out."""
    return bool(self._batches)

  def __call__(self, step: int, stage: str, params: Any, writer: MetricWriter) -> dict[str, float]:
    losses = self.measure(params)
    writer.write(step, stage, {f'held_out/{task}': value for task, value in losses.items()})
    return losses

  def measure(self, params: Any) -> dict[str, float]:
    """The mean loss per target of each task of which anything is held out, of parameters on a mesh."""
    if not self._batches:
      return {}
    mesh = jax.tree.leaves(params)[0].sharding.mesh
    ones = np.ones(len(TASKS), np.float32)
    found = [held_out_losses(params, place_whole_batch(batch, mesh), ones, self._step)[1] for batch in self._batches]
    sums, weights = (sum(np.asarray(getattr(losses, name)) for losses in found) for name in ('sums', 'weights'))
    return {task: float(total / weight) for task, total, weight in zip(TASKS, sums, weights) if weight}


class Sampler:
  """Generates an image for each of a few prompts and answers a few questions, always the same ones."""

  def __init__(self, janus: LoadedJanus, samples: Samples, settings: ImageSettings):
    """`janus` gives model and tokenizer; the parameters are those of the call."""
    self._janus = janus
    self._samples, self._settings = samples, dataclasses.replace(settings, num_images=1, batch_size=BATCH_SIZE)

  def __call__(self, step: int, stage: str, params: Any, writer: MetricWriter) -> None:
    janus = dataclasses.replace(self._janus, params=params)
    if self._samples.prompts:
      prompts = self._samples.prompts
      images = generate_images(janus, prompts, self._settings)
      writer.write_images(step, 'generated', [found[0].pixels for found in images], prompts)
    if self._samples.questions:
      pixels, texts = zip(*self._samples.questions)
      images = [[Image.fromarray(image)] for image in pixels]
      answers = answer(janus, images, texts, max_new_tokens=ANSWER_TOKENS, batch_size=BATCH_SIZE)
      lines = [f'{text} {found.text.strip()}' for text, found in zip(texts, answers)]
      writer.write_texts(step, 'answers', lines)


class ToyScores:
  """The scores of the toy world, on the same questions and prompts every time: `scores/GROUP/NAME` in percent."""

  def __init__(self, janus: LoadedJanus, world: World, settings: ImageSettings, count: int):
    """
    Args:
      janus: model and tokenizer; the parameters are those of the call.
      world: the toy world.
      settings: how images are generated.
      count: images of each skill and group, and questions of each kind, content and group.
    """
    self._janus, self._world, self._count = janus, world, count
    self._settings = {name: getattr(settings, name) for name in ('cfg_weight', 'temperature', 'top_k', 'seed')}

  def __call__(self, step: int, stage: str, params: Any, writer: MetricWriter) -> None:
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    janus = dataclasses.replace(self._janus, params=params)
    scored = scoring.score(janus, self._world, self._count, self._count, **self._settings)
    found = [*scored.generation_scores, *scored.question_scores]
    figures = {f'scores/{score.group}/{line_name(score.name)}'.replace(' ', '_'): score.percent for score in found}
    writer.write(step, stage, figures)


class BenchmarkScores:
  """The figures of benchmarks on questions from all over them, always the same ones, by their default rules.

  They go into the metrics as `benchmarks/NAME`; answers, scores and the table into the workdir's benchmarks/<step>/.
  """

  def __init__(self, janus: LoadedJanus, dtype: str, evaluation: EvaluationConfig, workdir: str):
    """
    Args:
      janus: model and tokenizer; the parameters are those of the call.
      dtype: dtype to compute in.
      evaluation: which benchmarks, and how many rows.
      workdir: existing directory.

    Raises:
      InputError: no data, a question that is too long, or too few rows for a rule to score.
    """
    self._janus, self._dtype, self._workdir = janus, dtype, workdir
    self._settings, self._asked, self._missing = AnswerSettings(max_new_tokens=evaluation.max_new_tokens), {}, {}
    if not evaluation.data:
      raise InputError("evaluation.data is empty: expected a directory with the benchmarks' files")
    for name in evaluation.benchmarks:
      questions = read_questions(name, evaluation.data)
      kept = runner.spread(name, questions, evaluation.rows or len(questions))
      self._asked[name] = runner.ask_questions(name, kept, 'trained', janus)
      self._missing[name] = len(questions) - len(kept)
      try:
        self._score(name, dict.fromkeys((question.index for question in kept), ''))
      except InputError as error:
        raise InputError(f'evaluation.rows is {evaluation.rows}: {name}: {error}') from None

  def __call__(self, step: int, stage: str, params: Any, writer: MetricWriter) -> None:
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, self._dtype), params)
    janus = dataclasses.replace(self._janus, params=params)
    decoder, found = decoder_for(janus), []
    directory = os.path.join(self._workdir, BENCHMARKS_DIRECTORY, f'{step:08}')
    for name, asked in self._asked.items():
      chunks = runner.answers_to(asked, 'trained', janus, decoder, self._settings)
      lines, scores = self._score(name, {line['index']: line['prediction'] for chunk in chunks for line in chunk})
      found += scores
      if not jax.process_index():
        write_rule_scores(os.path.join(directory, name), lines, scores)
    figures = {f'benchmarks/{score["benchmark"]}': score['headline'] for score in found}
    writer.write(step, stage, {name: figure for name, figure in figures.items() if figure is not None})
    if not jax.process_index():
      write_scoreboard(directory, f'{stage}, step {step}', found)

  def _score(self, name: str, predictions: dict[str, str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Lines and scores (`scores.score_rows`); each line has the prediction too."""
    rows = [{**item.question.row, 'prediction': predictions[item.question.index].strip()} for item in self._asked[name]]
    about = {'missing': self._missing[name], 'prompt': 'trained', 'sampling': f'greedy, {self._dtype}'}
    about |= {'dataset': self._asked[name][0].question.dataset}
    lines, scores = score_rows(name, rows, **about)
    return [{**line, 'prediction': row['prediction']} for line, row in zip(lines, rows)], scores
