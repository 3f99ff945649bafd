"""Cost against size: seconds of a step at several sizes along one axis, and the power law through them."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
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
class Cost:
  """Seconds at several sizes.

  Attributes:
    axis: what grows, a name for files.
    title: title of a chart.
    seconds: by size, two or more.
  """

  axis: str
  title: str
  seconds: Mapping[int, Timing]

  @property
  def fit(self) -> PowerLaw:
    return fit_power_law(list(self.seconds), [timing.median for timing in self.seconds.values()])

  def to_dict(self) -> dict[str, Any]:
    points = [{self.axis: size, 'seconds': timing.spread()} for size, timing in self.seconds.items()]
    return {'exponent': self.fit.exponent, 'points': points}


def fit_power_law(sizes: Sequence[float], costs: Sequence[float]) -> PowerLaw:
  """Least squares of log cost over log size; two different sizes or more, all above 0."""
  exponent, constant = np.polyfit(np.log(sizes), np.log(costs), 1)
  return PowerLaw(float(np.exp(constant)), float(exponent))


def sizes_around(size: int, multiple: int = 1) -> list[int]:
  """A quarter, a half, once and twice a size, as multiples of some number, without repetition."""
  return sorted({max(round(size * factor / multiple), 1) * multiple for factor in FACTORS})


def train_costs(model: BenchmarkModel, stage: Stage, steps: int, repeats: int) -> list[Cost]:
  """A training step against the length of rows, rows and depth of the decoder, the other two as configured.

  Rows are full of text, one example each: images would be whole or missing at other lengths, and the encoders cost
  the same at any depth. The stage says what trains.

  Raises:
    InputError: less than two sizes along an axis fit.
  """
  run, mesh = model.run, model.placement.mesh.shape
  rows = mesh['data'] * mesh['fsdp'] * run.accumulation_in(stage)

  def seconds_of(length: int, batch: int, depth: int) -> Timing:
    full = dataclasses.replace(stage, ratio=(0, 1, 0), batch_size=batch, expected_tokens=(0.0, length, 0.0))
    trainer = Trainer(make_work(resized(model, length, depth), full, holds_codes=True))
    trainer.run(1)
    return time_in_turn([lambda: trainer.run(steps)], repeats)[0].per(steps)

  length, batch, depth = run.sequence_length, stage.batch_size, model.config.language_model.depth
  return [
    _cost('length', 'training step', sizes_around(length, mesh['context']), lambda n: seconds_of(n, batch, depth)),
    _cost('batch', 'training step', sizes_around(batch, rows), lambda n: seconds_of(length, n, depth)),
    _cost('depth', 'training step', sizes_around(depth), lambda n: seconds_of(length, batch, n)),
  ]


def decode_costs(model: BenchmarkModel, decoder: Decoder, count: int, repeats: int) -> list[Cost]:
  """A decoded token, averaged over `count`, against the questions in a batch, and against how much came before it.

  Questions are text. Against the batch they have a quarter of the config's rows; against the position there is one.

  Raises:
    InputError: less than two sizes along an axis fit.
  """

  def seconds_of(batch: int, position: int) -> Timing:
    prompts = inference.texts(model, batch, position)
    inference.answer_tokens(decoder, prompts, count)  # Compiles.
    seconds = [inference.answer_tokens(decoder, prompts, count)[1] for _ in range(repeats)]
    return Timing(tuple(seconds)).per(count - 1)

  length = model.run.sequence_length
  quarter = max(length // 4, inference.FIRST_WORD)
  return [
    _cost('batch', 'decoded token of each row', BATCHES, lambda n: seconds_of(n, quarter)),
    _cost('position', 'decoded token', sizes_around(length), lambda n: seconds_of(1, n)),
  ]


def _cost(axis: str, what: str, sizes: Sequence[int], seconds_of: Callable[[int], Timing]) -> Cost:
  seconds = {}
  for size in sizes:
    logging.info('%s: %s %d', what, axis, size)
    try:
      seconds[size] = seconds_of(size)
    except jax.errors.JaxRuntimeError as error:
      if not str(error).startswith('RESOURCE_EXHAUSTED'):
        raise
      logging.info('%s: %s %d does not fit the memory', what, axis, size)
      break
  if len(seconds) < 2:
    raise InputError(f'--scaling: {axis} {sizes[0]} to {sizes[-1]}: expected two sizes that fit the memory')
  return Cost(axis, f'seconds of a {what} against {axis}', seconds)
