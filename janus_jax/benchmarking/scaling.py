"""Cost against size: what a step takes at several sizes along one axis, and the power law through them."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from janus_jax.benchmarking import inference
from janus_jax.benchmarking.benchmark_model import BenchmarkModel, resized
from janus_jax.benchmarking.timing import Timing, time_in_turn
from janus_jax.benchmarking.train import Trainer, make_work
from janus_jax.errors import InputError
from janus_jax.inference.decoder import Decoder
from janus_jax.training.stages import Stage

FACTORS = (0.25, 0.5, 1, 2)
BATCHES = (1, 2, 4, 8)


@dataclasses.dataclass(frozen=True)
class PowerLaw:
  """cost = factor * size ** exponent."""

  factor: float
  exponent: float

  def at(self, size: float) -> float:
    return self.factor * size**self.exponent


@dataclasses.dataclass(frozen=True)
class Point:
  size: int
  seconds: Timing


@dataclasses.dataclass(frozen=True)
class Cost:
  """Seconds at several sizes.

  Attributes:
    axis: what grows, a name for files.
    title: of a chart.
    points: two or more.
  """

  axis: str
  title: str
  points: tuple[Point, ...]

  @property
  def fit(self) -> PowerLaw:
    return fit_power_law([point.size for point in self.points], [point.seconds.median for point in self.points])

  def to_dict(self) -> dict[str, Any]:
    points = [{self.axis: point.size, 'seconds': point.seconds.spread()} for point in self.points]
    return {'exponent': self.fit.exponent, 'points': points}


def fit_power_law(sizes: Sequence[float], costs: Sequence[float]) -> PowerLaw:
  """Least squares of log cost over log size.

  Args:
    sizes: two different ones or more, above 0.
    costs: above 0.
  """
  exponent, constant = np.polyfit(np.log(sizes), np.log(costs), 1)
  return PowerLaw(float(np.exp(constant)), float(exponent))


def sizes_around(size: int, multiple: int = 1) -> list[int]:
  """A quarter, a half, once and twice a size, as multiples of some number, without repetition."""
  return sorted({max(round(size * factor / multiple), 1) * multiple for factor in FACTORS})


def train_costs(subject: BenchmarkModel, stage: Stage, steps: int, repeats: int) -> list[Cost]:
  """A training step against the length of rows, rows and depth of the decoder, the other two as configured.

  Rows are full of text, one example each: images would be whole or missing at other lengths, and the encoders cost
  the same at any depth. What trains is as the stage says.

  Args:
    subject: what is measured.
    stage: of its config.
    steps: of a run.
    repeats: runs.

  Raises:
    InputError: less than two sizes along an axis fit.
  """
  config = subject.config
  stage = dataclasses.replace(stage, ratio=(0, 1, 0))
  mesh = subject.placement.mesh.shape
  rows = mesh['data'] * mesh['fsdp'] * config.accumulation

  def seconds_of(length: int, batch: int, depth: int) -> Timing:
    changed = resized(subject, length, depth)
    full = dataclasses.replace(stage, batch_size=batch, expected_tokens=(0.0, length, 0.0))
    trainer = Trainer(make_work(changed, full, holds_codes=True))
    trainer.run(1)
    return time_in_turn([lambda: trainer.run(steps)], repeats)[0].per(steps)

  length, batch, depth = config.sequence_length, stage.batch_size, subject.model.language_model.depth
  return [
    _cost('length', 'training step', sizes_around(length, mesh['context']), lambda n: seconds_of(n, batch, depth)),
    _cost('batch', 'training step', sizes_around(batch, rows), lambda n: seconds_of(length, n, depth)),
    _cost('depth', 'training step', sizes_around(depth), lambda n: seconds_of(length, batch, n)),
  ]


def decode_costs(subject: BenchmarkModel, decoder: Decoder, answer: int, repeats: int) -> list[Cost]:
  """A decoded token against the questions that are answered together, and against how much came before it.

  Questions are of text. Against the batch they have a quarter of the config's rows; against the position there is one.

  Args:
    subject: what is measured.
    decoder: its weights.
    answer: tokens over which a decode step is averaged.
    repeats: runs.

  Raises:
    InputError: less than two sizes along an axis fit.
  """

  def seconds_of(batch: int, position: int) -> Timing:
    prompts = inference.texts(subject, batch, position)
    inference.answer_tokens(decoder, prompts, answer)  # Compiles.
    seconds = [inference.answer_tokens(decoder, prompts, answer)[1] for _ in range(repeats)]
    return Timing(tuple(seconds)).per(answer - 1)

  length = subject.config.sequence_length
  quarter = max(length // 4, inference.WORDS)
  return [
    _cost('batch', 'decoded token of each row', BATCHES, lambda n: seconds_of(n, quarter)),
    _cost('position', 'decoded token', sizes_around(length), lambda n: seconds_of(1, n)),
  ]


def _cost(axis: str, what: str, sizes: Sequence[int], seconds_of: Callable[[int], Timing]) -> Cost:
  points = []
  for size in sizes:
    logging.info('%s: %s %d', what, axis, size)
    try:
      points.append(Point(size, seconds_of(size)))
    except jax.errors.JaxRuntimeError as error:
      if not str(error).startswith('RESOURCE_EXHAUSTED'):
        raise
      logging.info('%s: %s %d does not fit the memory', what, axis, size)
      break
  if len(points) < 2:
    raise InputError(f'--scaling: {axis} {sizes[0]} to {sizes[-1]}: expected two sizes that fit the memory')
  return Cost(axis, f'seconds of a {what} against {axis}', tuple(points))
