"""Evaluations while a run goes on: losses on data it never trains on, generated images, answers."""

import dataclasses
import itertools
from typing import Any

import jax
import numpy as np
from PIL import Image

from janus_jax.data.examples import TASKS, ExampleSpec
from janus_jax.data.mean_sizes import mean_sizes
from janus_jax.data.mixture import make_mixture
from janus_jax.data.packing import batch_shape
from janus_jax.data.pipeline import StreamOptions, batches
from janus_jax.data.prompts import Template
from janus_jax.data.shard_state import all_shards
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.inference.answering import answer
from janus_jax.inference.generation import generate_images
from janus_jax.inference.requests import ImageSettings, LoadedJanus
from janus_jax.models.config import JanusConfig
from janus_jax.runs.datasets import Samples
from janus_jax.training.losses import batch_losses
from janus_jax.training.metrics import MetricWriter
from janus_jax.training.run_config import RunConfig
from janus_jax.training.state import place_whole_batch
from janus_jax.training.step import StepConfig
from janus_jax.training.training_run import Sources

ANSWER_TOKENS = 32
BATCH_SIZE = 64

held_out_losses = jax.jit(batch_losses, static_argnames='config')


class HeldOutLoss:
  """The loss of each task on a few batches of held-out data, the same ones every time."""

  def __init__(
    self, sources: Sources, spec: ExampleSpec, run: RunConfig, step: StepConfig, rows_split: int, num_batches: int
  ):
    """
    Args:
      sources: held-out records by task and name.
      spec: how records become examples.
      run: gives the size of the batches and the mixture, those of its last stage.
      step: types and microbatches that the model is computed in.
      rows_split: number of parts into which the mesh splits the rows of a batch.
      num_batches: 0 measures nothing.
    """
    stage = run.run_stages[-1]
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

  def __call__(self, step: int, stage: str, params: Any, writer: MetricWriter) -> None:
    writer.write(step, stage, {f'held_out/{task}': value for task, value in self.measure(params).items()})

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

  def __init__(
    self, config: JanusConfig, tokenizer: Tokenizer, template: Template, samples: Samples, settings: ImageSettings
  ):
    self._janus = LoadedJanus(config, {}, tokenizer, template)
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
