"""Trains several seeds of a recipe on the toy world at once, for as many minutes as are given, on one device.

    python tests/benchmarks/toy_seeds.py --config=configs/small.py:gpu --parts=DIR/parts --out=DIR --minutes=5 [--seeds=3]

A GPU takes about as long for a step of three models this small as for one: the train step is vmapped over seeds. They
start with other adaptors, and see the same examples in another order. Stages are as in the recipe, but that each has a
share of the time in place of steps; rates follow the fraction of it that is over. DIR/seed_N can be evaluated; so can
DIR/seed_N_STEP, which are kept along the way.
"""

import argparse
import collections
import concurrent.futures
import functools
import json
import math
import os
import pathlib
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.conversion.checkpoint import Checkpoint, write_checkpoint
from janus_jax.conversion.lazy import from_numpy
from janus_jax.conversion.load import load_params
from janus_jax.data.mean_sizes import mean_sizes
from janus_jax.data.mixture import make_mixture
from janus_jax.data.packing import batch_shape
from janus_jax.data.pipeline import StreamOptions, batches
from janus_jax.runs.config import TrainConfig, parse_config, to_json
from janus_jax.runs.datasets import open_data
from janus_jax.runs.loading import load_tokenizer
from janus_jax.runs.recipes import read_recipe
from janus_jax.runs.setup import example_spec, make_placement, read_step
from janus_jax.runs.start import open_start
from janus_jax.runs.workdirs import RUN_CONFIG_FILE, write_json
from janus_jax.training.stages import Stage, trained_paths
from janus_jax.training.state import TrainState, flatten, new_state, unflatten
from janus_jax.training.step import StageValues, train_step

BLOCK = 64  # Batches that each seed sees in an order of its own.
LOG_EVERY = 200


def is_shared(path: str) -> bool:
  """True for what no seed trains, and what all have in common."""
  return path.startswith('vq/')


def axes_of(params: Any) -> Any:
  return unflatten({path: None if is_shared(path) else 0 for path in flatten(params)})


def read_ahead(stream: Iterator[Any], size: int) -> Iterator[Any]:
  """The same items, of which a thread reads so many ahead."""
  read = queue.Queue(maxsize=size)

  def fill() -> None:
    for item in stream:
      read.put(item)

  threading.Thread(target=fill, daemon=True).start()
  while True:
    yield read.get()


def stacked_batches(stream: Iterator[dict[str, np.ndarray]], seeds: int, seed: int) -> Iterator[dict[str, np.ndarray]]:
  """Batches with a leading axis of seeds, each of which sees every batch of a block once."""
  rng = np.random.default_rng(seed)
  while True:
    block = [next(stream) for _ in range(BLOCK)]
    for rows in np.stack([rng.permutation(BLOCK) for _ in range(seeds)], axis=1):
      yield {name: np.stack([block[row][name] for row in rows]) for name in block[0]}


def rate(stage: Stage, fraction: float, step: int) -> np.float32:
  """The learning rate after a fraction of the stage's time."""
  low = stage.final_fraction
  falling = low + (1 - low) * (1 + math.cos(math.pi * fraction)) / 2
  return np.float32(stage.learning_rate * min(1.0, (step + 1) / max(stage.warmup_steps, 1)) * falling)


class Seeds:
  """The parameters of all seeds, and what trains them."""

  def __init__(self, args: argparse.Namespace):
    recipe = read_recipe(args.config)
    recipe.init_from, recipe.workers = args.parts, args.workers
    for stage in recipe.stages.values():
      stage.batch_size = args.rows or stage.batch_size
      stage.learning_rate *= args.rate
    self.config: TrainConfig = parse_config(recipe)
    self._args, self._recipe = args, recipe
    self.start = open_start(self.config)
    self._placement = make_placement(self.config.mesh, self.start.config, self.config.lora)
    self.mesh = self._placement.mesh
    self._step = read_step(self.config, self.start.config, self._placement)
    data = open_data(self.config, self.start.config, args.out, lambda: self.start, 0)
    words = load_tokenizer(args.parts)
    self._spec = example_spec(self.config.sequence_length, self.start.config, *words, data.holds_codes)
    self._train, self.kept = data.train, {}
    stages = self.config.run_stages
    self._means = mean_sizes(data.train, [(s.ratio, s.sources) for s in stages], self._spec, self.config.seed)
    self.params = self._initial()
    self._state_axes = TrainState(0, axes_of(self.params), 0, None, 0, 0)

  def _initial(self) -> Any:
    found = []
    for seed in range(self._args.seeds):
      recipe = self._recipe.copy_and_resolve_references()
      recipe.seed = seed
      found.append(flatten(load_params(open_start(parse_config(recipe)), self._placement.params)))
    return unflatten({path: x if is_shared(path) else jnp.stack([f[path] for f in found]) for path, x in found[0].items()})

  def batches(self, index: int) -> Iterator[dict[str, np.ndarray]]:
    stage, config = self.config.run_stages[index], self.config
    shape = batch_shape(stage.batch_size, config.sequence_length, self._means[index])
    options = StreamOptions(index, config.guidance_dropout, prefetch=config.prefetch, workers=config.num_workers)
    stream = batches(self._train, make_mixture(stage.ratio, stage.sources), self._spec, shape, options)
    return stacked_batches(read_ahead(stream, BLOCK), self._args.seeds, index)

  def first_state(self, stage: Stage, params: Any) -> TrainState:
    """The state at a stage's start: fresh moments for what trains."""
    make = functools.partial(new_state, trained=trained_paths(stage, self._placement.params), config=self._step.optimizer)
    return jax.jit(jax.vmap(make, in_axes=(axes_of(params),), out_axes=self._state_axes))(params)

  def lower(self, stage: Stage, batch: dict[str, np.ndarray]) -> Any:
    masks = trained_paths(stage, self._placement.params)
    step = functools.partial(train_step, masks=masks, config=self._step.for_stage(stage))
    axes = self._state_axes, 0
    stepped = jax.jit(jax.vmap(step, in_axes=(*axes, None), out_axes=axes), donate_argnums=0)
    state = jax.eval_shape(functools.partial(self.first_state, stage), self.params)
    return stepped.lower(state, batch, self.values(stage, np.float32(0)))

  def values(self, stage: Stage, learning_rate: np.float32) -> StageValues:
    return StageValues(learning_rate, np.float32(stage.weight_decay), np.float32(stage.loss_weights))

  def keep(self, suffix: str, seeds: int) -> None:
    flat = {path: np.asarray(x) for path, x in flatten(self.params).items()}
    for seed in range(seeds):
      self.kept[f'seed_{seed}{suffix}'] = {path: x if is_shared(path) else x[seed] for path, x in flat.items()}

  def write(self) -> None:
    out = pathlib.Path(self._args.out)
    for name, params in self.kept.items():
      os.makedirs(out / name)
      arrays = {path: from_numpy(x, path) for path, x in params.items()}
      checkpoint = Checkpoint(self.start.config, arrays, self.start.tokenizer_files, {}, ())
      write_checkpoint(checkpoint, str(out / name), 'orbax', lambda _: None)
      write_json(str(out / name / RUN_CONFIG_FILE), to_json(self.config))


def train(seeds: Seeds, args: argparse.Namespace, log: Any) -> None:
  began = time.monotonic()
  stages = seeds.config.run_stages
  streams = [seeds.batches(index) for index in range(len(stages))]
  firsts = [next(stream) for stream in streams]
  print(f'first batches after {time.monotonic() - began:.0f} s', flush=True)
  pool = concurrent.futures.ThreadPoolExecutor(len(stages))
  programs = [pool.submit(seeds.lower(stage, first).compile) for stage, first in zip(stages, firsts)]
  for program in programs:
    program.result()
  compiled = time.monotonic()
  print(f'compiled after {compiled - began:.0f} s', flush=True)
  total, step = 60 * args.minutes - (compiled - began), 0
  for index, (stage, program, share) in enumerate(zip(stages, programs, args.shares)):
    run, stream, state = program.result(), streams[index], seeds.first_state(stage, seeds.params)
    entered, first, waited, recent, pending = time.monotonic(), step, 0.0, [], collections.deque()
    snapshots = collections.deque((i + 1) / (args.snapshots + 1) for i in range(args.snapshots if index else 0))
    while (fraction := (time.monotonic() - entered) / (total * share)) < 1:
      asked = time.monotonic()
      batch = next(stream)
      waited += time.monotonic() - asked
      state, metrics = run(state, batch, seeds.values(stage, rate(stage, fraction, step - first)))
      pending.append(metrics['loss'])
      if len(pending) > 2:  # Or the time would be over long before the device is done.
        pending.popleft().block_until_ready()
      recent.append((metrics['loss_sums'], metrics['loss_weights']))
      step += 1
      if step % LOG_EVERY == 0:
        sums, weights = (np.sum(x, axis=0) for x in zip(*jax.device_get(recent)))
        line = {'step': step, 'stage': stage.name, 'seconds': time.monotonic() - began, 'waited': waited}
        line |= {'losses': (sums / np.maximum(weights, 1)).tolist(), 'rate': float(rate(stage, fraction, step - first))}
        log.write(json.dumps(line) + '\n')
        log.flush()
        recent.clear()
        if step % (10 * LOG_EVERY) == 0:
          print(line, flush=True)
      if snapshots and fraction >= snapshots[0]:
        snapshots.popleft()
        seeds.params = state.params
        seeds.keep(f'_{step}', 1)
    seeds.params = jax.block_until_ready(state.params)
    seeds.keep(f'_{step}' if index < len(stages) - 1 else '', args.seeds if index == len(stages) - 1 else 1)
    tokens = (step - first) * stage.batch_size * seeds.config.sequence_length
    print(f'{stage.name}: {step - first} steps, {tokens / 1e6:.1f} M positions, waited {waited:.0f} s for data', flush=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--config', required=True)
  parser.add_argument('--parts', required=True)
  parser.add_argument('--out', required=True)
  parser.add_argument('--minutes', type=float, required=True, help='of training, compiling included')
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--rows', type=int, default=0, help='of a batch; 0: as the recipe has it')
  parser.add_argument('--rate', type=float, default=1.0, help='factor of all learning rates')
  parser.add_argument('--workers', type=int, default=-1)
  parser.add_argument('--shares', type=float, nargs=3, default=(0.02, 0.5, 0.48), help='of the time, for each stage')
  parser.add_argument('--snapshots', type=int, default=0, help='of the first seed within each stage but the first')
  args = parser.parse_args()
  os.makedirs(args.out, exist_ok=True)
  seeds = Seeds(args)
  with open(os.path.join(args.out, 'metrics.jsonl'), 'w') as log, jax.set_mesh(seeds.mesh):
    train(seeds, args, log)
  seeds.write()


if __name__ == '__main__':
  main()
