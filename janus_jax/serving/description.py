"""What the page says about its model: name, size, what it was trained on. No path of the machine is among it."""

import dataclasses
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from janus_jax.conversion.adapters import split_base
from janus_jax.conversion.hub import is_name, resolved
from janus_jax.conversion.workdir import read_newest, split_ema
from janus_jax.inference.requests import LoadedJanus
from janus_jax.runs import workdirs


@dataclasses.dataclass(frozen=True)
class ModelDescription:
  """A model as the page presents it.

  Attributes:
    name: on the hub, or of the checkpoint's directory.
    parameters: their number.
    image_size: side of an image in pixels.
    dtype: what is computed in.
    device: kind of the device.
    start: name of the checkpoint that its training started from; '' where there is no config.
    stages: (name, steps so far) of those that its training has begun.
    sources: names of the data sources of these stages.
    is_toy: trained on the toy world.
  """

  name: str
  parameters: int
  image_size: int
  dtype: str
  device: str
  start: str = ''
  stages: tuple[tuple[str, int], ...] = ()
  sources: tuple[str, ...] = ()
  is_toy: bool = False


def checkpoint_name(path: str) -> str:
  """A name on the hub as it is, else the last part of a path."""
  return path if is_name(split_ema(path)[0]) else os.path.basename(os.path.abspath(path))


def describe(path: str, janus: LoadedJanus) -> ModelDescription:
  """Describes a loaded checkpoint; its training too where the path is that of a training workdir."""
  leaves = jax.tree.leaves(janus.params)
  card = ModelDescription(
    name=checkpoint_name(path),
    parameters=sum(leaf.size for leaf in leaves),
    image_size=janus.config.image_size,
    dtype=janus.params['language_model']['final_norm']['scale'].dtype.name,
    device=jax.devices()[0].device_kind,
  )
  config = workdirs.read_config(path)
  if not config:
    return card
  workdir, averaged = split_ema(split_base(path)[1])
  directory, _ = read_newest(resolved(workdir), averaged)
  step = int(os.path.basename(os.path.dirname(directory)))
  stages = begun_stages(config, step)
  return dataclasses.replace(
    card,
    start=checkpoint_name(config['init_from']),
    stages=stages,
    sources=source_names(config, [name for name, _ in stages]),
    is_toy=config['data']['name'] == 'toy',
  )


def begun_stages(config: Mapping[str, Any], step: int) -> tuple[tuple[str, int], ...]:
  """(name, steps taken) of the stages that a run has begun by this step, by its config as it is saved."""
  planned = [config['stages'][name]['steps'] for name in config['run']]
  starts = itertools.accumulate(planned, initial=0)
  taken = (min(steps, step - start) for start, steps in zip(starts, planned))
  return tuple((name, steps) for name, steps in zip(config['run'], taken) if steps > 0)


def source_names(config: Mapping[str, Any], stages: Sequence[str]) -> tuple[str, ...]:
  """Names of the data sources of some stages, each once."""
  tasks = (task for name in stages for task in config['stages'][name]['sources'].values())
  return tuple(sorted({name for weights in tasks for name in weights}))
