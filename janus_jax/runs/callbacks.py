"""What is looked at while a run goes on: losses on data it never trains on, pictures, answers."""

import dataclasses
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
from janus_jax.training.loop import Sources
from janus_jax.training.losses import batch_losses
from janus_jax.training.metrics import MetricWriter
from janus_jax.training.run_config import RunConfig
from janus_jax.training.state import place_whole_batch
from janus_jax.training.step import StepConfig

ANSWER_TOKENS = 32
BATCH_SIZE = 64

held_out_losses = jax.jit(batch_losses, static_argnames=('config', 'compute', 'chunk', 'accumulation'))


def static_arguments(step: StepConfig) -> dict[str, Any]:
  """Static arguments of `held_out_losses`."""
  return {
    'config': step.model,
    'compute': step.compute,
    'chunk': step.loss_chunk,
    'accumulation': step.accumulation,
  }


class HeldOutLoss:
  """The loss of each kind on a few batches of held-out data, the same ones every time."""

  def __init__(
    self, sources: Sources, spec: ExampleSpec, run: RunConfig, step: StepConfig, rows_split: int, num_batches: int
  ):
    """
    Args:
      sources: held-out records by kind and name.
      spec: how records become examples.
      run: for the size of the batches and the mixture of the last stage.
      step: what the model is computed in, and in how many microbatches.
      rows_split: into how many parts the mesh splits the rows of a batch.
      num_batches: 0 measures nothing.
    """
    stage = run.run_stages[-1]
    self._batches: list[dict[str, np.ndarray]] = []
    self._static = static_arguments(step)
    weights = {
      kind: {name: weight for name, weight in stage.sources.get(kind, {}).items() if name in sources[kind]}
      for kind in TASKS
    }
    # Kinds of which nothing is held out are not measured.
    ratio = [share if sum(weights[kind].values()) else 0 for kind, share in zip(TASKS, stage.ratio)]
    if num_batches and any(ratio):
      (mean,) = mean_sizes(sources, [(ratio, weights)], spec, run.seed)
      shape = batch_shape(stage.batch_size // rows_split, run.sequence_length, mean)
      options = StreamOptions(run.seed, shards=all_shards(rows_split))
      stream = batches(sources, make_mixture(ratio, weights), spec, shape, options)
      self._batches = [next(stream) for _ in range(num_batches)]

  def __call__(self, step: int, stage: str, params: Any, writer: MetricWriter) -> None:
    if self._batches:
      writer.write(step, stage, {f'held_out/{kind}': value for kind, value in self.measure(params).items()})

  def measure(self, params: Any) -> dict[str, float]:
    """The mean loss per target of each kind of which anything is held out; of parameters on a mesh."""
    if not self._batches:
      return {}
    mesh = jax.tree.leaves(params)[0].sharding.mesh
    ones = np.ones(len(TASKS), np.float32)
    found = [
      held_out_losses(params, place_whole_batch(batch, mesh), ones, **self._static)[1] for batch in self._batches
    ]
    sums, weights = (sum(np.asarray(getattr(losses, name)) for losses in found) for name in ('sums', 'weights'))
    return {kind: float(total / weight) for kind, total, weight in zip(TASKS, sums, weights) if weight}


class Sampler:
  """Generates images and answers questions, a few of each, always the same ones."""

  def __init__(
    self, config: JanusConfig, tokenizer: Tokenizer, template: Template, samples: Samples, settings: ImageSettings
  ):
    """
    Args:
      config: architecture.
      tokenizer: of the run.
      template: of the run.
      samples: prompts and questions.
      settings: how images are generated, one for each prompt.
    """
    self._janus = LoadedJanus(config, {}, tokenizer, template)
    self._samples, self._settings = samples, dataclasses.replace(settings, num_images=1, batch_size=BATCH_SIZE)

  def __call__(self, step: int, stage: str, params: Any, writer: MetricWriter) -> None:
    janus = dataclasses.replace(self._janus, params=params)
    if self._samples.prompts:
      prompts = self._samples.prompts
      images = generate_images(janus, prompts, self._settings)
      writer.write_images(step, 'generated', [found[0].pixels for found in images], prompts)
    if self._samples.questions:
      pictures, texts = zip(*self._samples.questions)
      images = [[Image.fromarray(picture)] for picture in pictures]
      answers = answer(janus, images, texts, max_new_tokens=ANSWER_TOKENS, batch_size=BATCH_SIZE)
      lines = [f'{text} {found.text.strip()}' for text, found in zip(texts, answers)]
      writer.write_texts(step, 'answers', lines)
