"""Plans stages and prints a paragraph or a JSON object for each."""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from janus_jax.planning.compile import StagePlan, make_setup, plan_stage
from janus_jax.planning.suggest import find_fitting
from janus_jax.planning.topologies import Topology
from janus_jax.runs.config import TrainConfig
from janus_jax.runs.start import find_start
from janus_jax.sharding.accelerators import GIB
from janus_jax.training.run_config import expected_samples
from janus_jax.training.step import StepConfig


def plan_and_print(
  config: TrainConfig, recipe: str, topology: Topology, stage: str | None, hints: bool, as_json: bool
) -> None:
  """Plans a stage of a run, None for all, and prints each on stdout as it is done.

  `recipe` is the path of the config's file; `hints`: look for settings with which a stage fits that does not.

  Raises:
    InputError: something in the config is wrong, or does not go with the topology.
  """
  start = find_start(config, recipe)
  indices = range(len(config.run)) if stage is None else [config.run.index(config.find_stage(stage).name)]
  doing = 'estimating' if topology.is_estimated else 'compiling'
  for index in indices:
    logging.info('%s %s for %s', doing, config.run[index], topology.name)
    plan = plan_stage(make_setup(config, start, topology, index), index)
    options, fitting = [], None
    if hints and not plan.memory.fits:
      sizes = f'{_gib(plan.memory.peak)} of {_gib(plan.memory.available)} GiB'
      logging.info('%s does not fit: %s; looking for settings with which it would', plan.stage.name, sizes)
      options, fitting = find_fitting(config, index, plan)
    found = plan, options, fitting
    print(json.dumps(plan_to_json(*found)) if as_json else plan_to_text(*found), flush=True)


def settings(step: StepConfig) -> dict[str, Any]:
  """Settings with which a person can use more or less memory."""
  named = (
    (step, ('accumulation', 'loss_chunk')),
    (step.compute, ('remat', 'attention', 'vision_attention')),
    (step.optimizer, ('moment_dtype', 'gradient_sum_dtype')),
  )
  return {name: getattr(part, name) for part, names in named for name in names}


def plan_to_json(plan: StagePlan, options: Sequence[str], fitting: StagePlan | None) -> dict[str, Any]:
  """All figures by name: plain numbers for bytes and FLOPs, seconds or days for times."""
  memory, found, stage, topology = plan.memory, plan.figures, plan.stage, plan.setup.topology
  bound = found.bound
  return {
    'stage': stage.name,
    'topology': topology.name,
    'chips': topology.num_chips,
    'devices': topology.num_devices,
    'mesh': dict(plan.setup.mesh.shape),
    'batch_size': stage.batch_size,
    'sequence_length': plan.setup.run.sequence_length,
    **settings(plan.step),
    'estimated': topology.is_estimated,
    'fits': memory.fits,
    'peak_bytes_per_device': memory.peak,
    'peak_moment': memory.worst,
    'peak_bytes_per_device_by_moment': dict(memory.peaks),
    'hbm_bytes_per_device': memory.available,
    'argument_bytes_per_device': memory.arguments,
    'temporary_bytes_per_device': memory.temporaries,
    'flops_per_step': found.flops.total,
    'decoder_flops_per_step': found.flops.decoder,
    'executed_flops_per_step': found.executed_flops,
    'collective_bytes_per_device': None if plan.received is None else dict(plan.received),
    'ideal_collective_bytes_per_device': plan.ideal,
    'compute_seconds': bound and bound.compute,
    'memory_seconds': bound and bound.memory,
    'network_seconds': bound and bound.network,
    'step_seconds_bound': bound and bound.seconds,
    'mfu_bound': found.mfu_bound,
    'sampling_seconds_bound': found.sampling,
    'steps': stage.steps,
    'tokens': found.tokens,
    'days_at_mfu_percent': dict(found.days),
    'compile_seconds': round(plan.compile_seconds, 1),
    'options_to_fit': list(options) if fitting else None,
    'peak_bytes_per_device_with_options': fitting and fitting.memory.peak,
  }


def plan_to_text(plan: StagePlan, options: Sequence[str], fitting: StagePlan | None) -> str:
  """The same for a person."""
  memory, found, setup, stage, topology = plan.memory, plan.figures, plan.setup, plan.stage, plan.setup.topology
  mesh = ' x '.join(f'{axis} {size}' for axis, size in setup.mesh.shape.items() if size > 1) or 'one device'
  verdict = 'fits' if memory.fits else 'does not fit'
  parts = [f'arguments {_gib(memory.arguments)}']
  if memory.temporaries is not None:
    parts.append(f'temporaries {_gib(memory.temporaries)}')
  moments = ', '.join(f'{moment} {_gib(size)}' for moment, size in memory.peaks.items())
  lines = [
    ('memory per device', f'{_gib(memory.peak)} of {_gib(memory.available)} GiB at most, in: {memory.worst}'),
    ('GiB by moment', moments),
    ('in a step', ', '.join(parts)),
    ('batch', _batch(plan)),
    ('settings', ', '.join(f'{name} {value}' for name, value in settings(plan.step).items())),
    ('FLOPs per step', f'{found.flops.total:.3g}, {found.executed_flops:.3g} with what is computed twice'),
  ]
  if plan.received is not None:
    lines.append(('received per device', _received(plan.received, plan.ideal)))
  if bound := found.bound:
    limits = f'compute {bound.compute:.3g}, memory {bound.memory:.3g}, network {bound.network:.3g}'
    lines.append(('seconds per step', f'at least {bound.seconds:.3g} ({limits}), so MFU at most {found.mfu_bound:.0%}'))
  if found.sampling is not None:
    how = stage.preference
    drawn = 'none, pairs are stored' if how.pairs else f'{how.num_prompts * how.group} {how.samples}'
    lines.append(('seconds of sampling', f'at least {found.sampling:.3g} ({drawn})'))
  days = ', '.join(f'{days:.3g} days at {mfu} % MFU' for mfu, days in found.days.items())
  lines.append(('whole stage', f'{found.tokens:.4g} tokens in {stage.steps} steps{": " if days else ""}{days}'))
  if fitting:
    lines.append(('would fit with', f'{" ".join(options)} ({_gib(fitting.memory.peak)} GiB)'))
  # Some chips are two devices.
  chips = f' on {topology.num_chips} chips' if topology.num_chips < topology.num_devices else ''
  estimated = ', estimated by formula and not compiled' if topology.is_estimated else ''
  title = f'{stage.name} on {topology.name} ({mesh}{chips}): {verdict}{estimated}'
  return '\n'.join([title, *(f'  {name:19} {value}' for name, value in lines)])


def _batch(plan: StagePlan) -> str:
  stage, samples = plan.stage, expected_samples(plan.stage)
  parts = [f'{stage.batch_size} rows of {plan.setup.run.sequence_length} positions'] if stage.reads_data else []
  parts += [f'{samples.rows} samples of {samples.length}'] if samples else []
  return ', '.join(parts)


def _gib(size: int) -> str:
  return f'{size / GIB:.2f}'


def _received(received: Mapping[str, int], ideal: int) -> str:
  kinds = ', '.join(f'{kind} {size / 1e9:.1f}' for kind, size in received.items() if size)
  return f'{sum(received.values()) / 1e9:.1f} GB (ideal {ideal / 1e9:.1f}){": " if kinds else ""}{kinds}'
