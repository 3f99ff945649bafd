"""The parts of `janus_jax.measure`, in order of value: each is one command of `janus_jax.benchmark`."""

import dataclasses
import math
import sys

from janus_jax.benchmarking.machine import Machine
from janus_jax.conversion.translate import parameter_shapes
from janus_jax.models.config import PRESETS, JanusConfig
from janus_jax.sharding.accelerators import GIB

# Rows of 4,096 positions on a device by GiB of its memory, tried in turn: so many that the backward pass is handed the
# results of products and attention (training/rematerialisation.py). Fewer for the 7B, and for the peer, which keeps
# everything.
ROWS = ((120, (8, 4, 2, 1)), (70, (4, 2, 1)), (44, (2, 1)), (0, (1,)))
FEW_ROWS = (2, 1)
# Training with stored codes of images to generate, as they are where they are encoded once for several epochs, and
# logits for so many positions at once that a head's weights are read a few times only.
STORED = ('--config.data.precompute_codes=true', '--config.loss_chunk=1024')
WINDOWS = '--window=1,4,16,64'
LORA = ('--config.stages.stage3.lora.rank=16', '--config.stages.stage3.trainable=()')
# An update on 4 prompts x 8 images, as T2I-R1's, and the generation of those.
GRPO = (
  '--config.stages.stage3.objective=grpo',
  '--config.stages.stage3.preference.num_prompts=4',
  '--config.stages.stage3.preference.group=8',
  '--config.stages.stage3.preference.beta=0.01',
)
SAMPLING = ('--batch=32', '--share=8', '--repeats=1')
HALF_MOMENTS = '--config.optimizer.moment_dtype=bfloat16'


@dataclasses.dataclass(frozen=True)
class Part:
  """Something that is measured by one command.

  Attributes:
    name: for flags and files.
    title: for people.
    commands: tried in turn until one fits the memory; they print one JSON object.
    seconds: usual duration; with less left the part is left out.
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
  """All parts for a machine, with traces in the directory `profiles`: Janus-Pro-1B and 7B on an accelerator, small
  models on a CPU.
  """
  flags = ('--config.pretraining.model=test_tiny', '--config.sequence_length=512')
  command = _benchmark(machine, 'benchmarks/cpu', 'check', *flags)
  check = Part('check', 'Correct here', (command,), 40 if machine.platform == 'cpu' else 130, 260)
  return [check, *(_small_parts if machine.platform == 'cpu' else _real_parts)(machine, profiles)]


def _benchmark(machine: Machine, config: str, mode: str, *flags: str) -> tuple[str, ...]:
  start = ('bash', 'launch/run.sh', machine.flags) if machine.flags else (sys.executable, '-m')
  verb = 'benchmark' if machine.flags else 'janus_jax.benchmark'
  return (*start, verb, f'--config=configs/{config}.py', f'--mode={mode}', *flags, '--json')


def _small_parts(machine: Machine, profiles: str) -> list[Part]:
  def part(name: str, title: str, seconds: float, mode: str, *flags: str) -> Part:
    return Part(name, title, (_benchmark(machine, 'benchmarks/cpu', mode, *flags),), seconds, 4 * seconds)

  peer = '--peer=transformers'
  return [
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
  small, large = 'janus_pro_1b', 'janus_pro_7b'

  def decoding(name: str, title: str, preset: str, seconds: float, mode: str, *flags: str) -> Part:
    command = _benchmark(machine, preset, mode, *flags)
    # Weights exist twice while they are prepared.
    return Part(name, title, (command,), seconds, 2 * seconds, 2 * stored_bytes(PRESETS[preset]))

  def training(
    name: str, title: str, preset: str, seconds: float, rows: tuple[int, ...], *flags: str, least: float | None = None
  ) -> Part:
    stage, *others = flags
    size = f'--config.stages.{stage.removeprefix("--stage=")}.batch_size='
    commands = tuple(
      _benchmark(machine, preset, 'train', stage, f'{size}{count * machine.devices}', *others) for count in rows
    )
    least = least or training_bytes(PRESETS[preset], 2 if HALF_MOMENTS in flags else 4)
    return Part(name, title, commands, seconds, 2 * seconds, least / machine.devices)

  many = next(rows for least, rows in ROWS if machine.memory >= least * GIB)
  generate, steps = ('generate', '--prompt_tokens=48', '--repeats=3'), ('--steps=5', '--repeats=3', *STORED)
  stage2, stage3, traced = '--stage=stage2', '--stage=stage3', f'--profile={profiles}'
  lean = (HALF_MOMENTS, '--config.optimizer.gradient_sum_dtype=bfloat16')
  peer = ('--peer=transformers', '--nocompile_peer', '--repeats=1')
  parts = [
    training('train_1b_stage2', 'Train 1B, Stage II, stored codes', small, 100, many, stage2, *steps),
    training(
      'train_1b_stage3', 'Train 1B, Stage III, stored codes', small, 110, many, stage3, *steps,
      f'{traced}/train_1b_stage3',
    ),
    decoding('images_1b', 'Images, 1B', small, 85, *generate, '--batch=1,16', f'{traced}/images_1b'),
    decoding('images_7b', 'Images, 7B', large, 105, *generate, '--batch=1,16'),
    decoding('images_7b_int8', 'Images, 7B, int8', large, 80, *generate, '--batch=1', '--weights=int8'),
  ]  # fmt: skip
  if machine.platform == 'gpu' and machine.devices == 1:
    parts += [
      decoding('peer_images_1b', 'Images beside transformers, 1B', small, 90, 'generate', *peer, '--batch=1'),
      training('peer_train_1b', 'Train beside transformers, 1B', small, 100, FEW_ROWS, stage2, *peer, '--steps=3'),
    ]
  answers = ('understand', '--prompt_tokens=31', '--repeats=3')
  return [
    *parts,
    decoding('answers_1b', 'Answers, 1B', small, 80, *answers),
    # Random weights guess few codes right: what there is to see is what a pass costs.
    decoding('windows_1b', 'Images by window, 1B', small, 100, *generate[:-1], '--batch=1', '--repeats=1', WINDOWS),
    training('train_7b', 'Train 7B, Stage III, stored codes', large, 110, FEW_ROWS, stage3, *steps, *lean),
    training('grpo_1b', 'GRPO update 1B, 32 images', small, 100, (8,), stage3, *steps, *GRPO),
    decoding('rollout_1b', 'GRPO samples 1B, 32 images', small, 100, *generate[:-1], *SAMPLING),
    training(
      'train_7b_lora', 'Train 7B, LoRA, stored codes', large, 100, many, stage3, *steps, *LORA,
      least=1.5 * stored_bytes(PRESETS[large]),
    ),
  ]  # fmt: skip


def stored_bytes(config: JanusConfig) -> float:
  """Parameters as a real run's start has them: bfloat16 in the decoder, float32 elsewhere."""
  sizes = {path: math.prod(shape) for path, shape in parameter_shapes(config).items()}
  return sum(size * (2 if path.startswith('language_model/') else 4) for path, size in sizes.items())


def training_bytes(config: JanusConfig, moment_bytes: int) -> float:
  """State and gradients of a step that trains the decoder: parameters, gradients in float32, two moments."""
  sizes = sum(math.prod(shape) for shape in parameter_shapes(config).values())
  return sizes * (4 + 4 + 2 * moment_bytes)
