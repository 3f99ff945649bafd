"""The parts of `janus_jax.measure`, in order of value: each is one command of `janus_jax.benchmark`."""

import dataclasses
import math
import sys

from janus_jax.benchmarking.machine import Machine
from janus_jax.conversion.translate import parameter_shapes
from janus_jax.models.config import PRESETS, JanusConfig
from janus_jax.sharding.accelerators import GIB

# Rows of 4,096 positions on a device, tried in turn: so many that the backward pass is handed what products and
# attention gave (training/rematerialisation.py), by GiB of memory; of the 7B, and of the peer, which keeps everything.
ROWS = ((120, (8, 4, 2, 1)), (70, (4, 2, 1)), (44, (2, 1)), (0, (1,)))
LARGE_ROWS = PEER_ROWS = (2, 1)
# How training is measured: codes of images to generate are stored, as they are where they are encoded once for several
# epochs; so many positions of a row have logits at once that a head's weights are read a few times only.
STORED = ('--config.data.precompute_codes=true', '--config.loss_chunk=1024')


@dataclasses.dataclass(frozen=True)
class Part:
  """Something that is measured by one command.

  Attributes:
    name: for flags and files.
    title: for people.
    commands: tried in turn until one fits the memory; they print one JSON object.
    seconds: about what it takes; with less left it is left out.
    limit: seconds after which it is ended.
    memory: bytes of a device that it needs at least.
  """

  name: str
  title: str
  commands: tuple[tuple[str, ...], ...]
  seconds: float
  limit: float
  memory: float = 0


def parts_for(machine: Machine, profiles: str) -> list[Part]:
  """All parts for a machine: Janus-Pro-1B and 7B on an accelerator, small models on a CPU.

  Args:
    machine: where they run.
    profiles: directory for traces.
  """
  return _small_parts(machine, profiles) if machine.platform == 'cpu' else _real_parts(machine, profiles)


def _benchmark(machine: Machine, config: str, mode: str, *flags: str) -> tuple[str, ...]:
  start = ('bash', 'launch/run.sh', machine.flags) if machine.flags else (sys.executable, '-m')
  verb = 'benchmark' if machine.flags else 'janus_jax.benchmark'
  return (*start, verb, f'--config=configs/{config}.py', f'--mode={mode}', *flags, '--json')


def _check(machine: Machine) -> Part:
  flags = ('--config.pretraining.model=tiny', '--config.sequence_length=512')
  command = _benchmark(machine, 'benchmarks/cpu', 'check', *flags)
  return Part('check', 'Correct here', (command,), 40 if machine.platform == 'cpu' else 130, 260)


def _small_parts(machine: Machine, profiles: str) -> list[Part]:
  def part(name: str, title: str, seconds: float, mode: str, *flags: str) -> Part:
    return Part(name, title, (_benchmark(machine, 'benchmarks/cpu', mode, *flags),), seconds, 4 * seconds)

  peer = '--peer=transformers'
  return [
    _check(machine),
    part('train_stage2', 'Train, Stage II', 35, 'train', '--stage=stage2', '--steps=1', '--repeats=2'),
    part(
      'train_stage3', 'Train, Stage III', 45, 'train', '--stage=stage3', '--steps=1', '--repeats=2',
      f'--profile={profiles}/train_stage3',
    ),
    part('images', 'Images', 60, 'generate', '--batch=1', '--repeats=2', f'--profile={profiles}/images'),
    part('images_int8', 'Images, int8 weights', 45, 'generate', '--weights=int8_products', '--batch=1', '--repeats=1'),
    part('answers', 'Answers', 30, 'understand', '--batch=1', '--answer_tokens=64', '--repeats=2'),
    part('peer_images', 'Images beside transformers', 80, 'generate', peer, '--batch=1', '--repeats=1'),
    part('peer_train', 'Train beside transformers', 45, 'train', peer, '--stage=stage2', '--steps=1', '--repeats=2'),
  ]  # fmt: skip


def _real_parts(machine: Machine, profiles: str) -> list[Part]:
  small, large = PRESETS['janus_pro_1b'], PRESETS['janus_pro_7b']
  decoding = ('--prompt_tokens=48', '--repeats=3')
  peer = ('--peer=transformers', '--nocompile_peer', '--repeats=1')
  lean = ('--config.optimizer.moment_dtype=bfloat16', '--config.optimizer.gradient_sum_dtype=bfloat16')

  def inference(name: str, title: str, mode: str, config: str, seconds: float, *flags: str) -> Part:
    command, model = _benchmark(machine, config, mode, *flags), PRESETS[config]
    # Weights exist twice while they are prepared.
    return Part(name, title, (command,), seconds, 2 * seconds, 2 * stored_bytes(model))

  def training(
    name: str, title: str, config: str, stage: str, rows: tuple[int, ...], seconds: float, least: float, *flags: str
  ) -> Part:
    setting = f'--config.stages.{stage}.batch_size'
    commands = tuple(
      _benchmark(machine, config, 'train', f'--stage={stage}', f'{setting}={count * machine.devices}', *flags)
      for count in rows
    )
    return Part(name, title, commands, seconds, 2 * seconds, least / machine.devices)

  many = next(rows for least, rows in ROWS if machine.memory >= least * GIB)
  steps, traced = ('--steps=5', '--repeats=3', *STORED), f'--profile={profiles}'
  parts = [
    _check(machine),
    training(
      'train_1b_stage2', 'Train 1B, Stage II, stored codes', 'janus_pro_1b', 'stage2', many, 100,
      training_bytes(small, 4), *steps
    ),
    training(
      'train_1b_stage3', 'Train 1B, Stage III, stored codes', 'janus_pro_1b', 'stage3', many, 110,
      training_bytes(small, 4), *steps,
      f'{traced}/train_1b_stage3',
    ),
    inference(
      'images_1b', 'Images, 1B', 'generate', 'janus_pro_1b', 85, *decoding, '--batch=1,16', f'{traced}/images_1b'
    ),
    inference('images_7b', 'Images, 7B', 'generate', 'janus_pro_7b', 105, *decoding, '--batch=1,16'),
    inference(
      'images_7b_int8', 'Images, 7B, int8', 'generate', 'janus_pro_7b', 80, *decoding, '--batch=1', '--weights=int8'
    ),
  ]  # fmt: skip
  if machine.platform == 'gpu' and machine.devices == 1:
    parts += [
      inference(
        'peer_images_1b', 'Images beside transformers, 1B', 'generate', 'janus_pro_1b', 180, *peer, '--batch=1'
      ),
      training(
        'peer_train_1b', 'Train beside transformers, 1B', 'janus_pro_1b', 'stage2', PEER_ROWS, 150,
        training_bytes(small, 4), *peer, '--steps=3',
      ),
    ]  # fmt: skip
  least = training_bytes(large, 2)
  return [
    *parts,
    inference('answers_1b', 'Answers, 1B', 'understand', 'janus_pro_1b', 80, '--prompt_tokens=31', '--repeats=3'),
    training(
      'train_7b', 'Train 7B, Stage III, stored codes', 'janus_pro_7b', 'stage3', LARGE_ROWS, 130, least, *steps, *lean
    ),
  ]


def stored_bytes(model: JanusConfig) -> float:
  """The parameters as a real run's start has them: bfloat16 in the decoder, float32 elsewhere."""
  sizes = {path: math.prod(shape) for path, shape in parameter_shapes(model).items()}
  return sum(size * (2 if path.startswith('language_model/') else 4) for path, size in sizes.items())


def training_bytes(model: JanusConfig, moment_bytes: int) -> float:
  """The state and the gradients of a step that trains the decoder: parameters, gradients in float32, two moments."""
  sizes = sum(math.prod(shape) for shape in parameter_shapes(model).values())
  return sizes * (4 + 4 + 2 * moment_bytes)
