"""What is benchmarked: a config's model with weights, on the config's mesh."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from janus_jax.conversion.load import load_params
from janus_jax.conversion.translate import parameter_shapes
from janus_jax.models.config import JanusConfig
from janus_jax.models.initialization import sample_on_devices
from janus_jax.runs.config import TrainConfig
from janus_jax.runs.setup import make_placement
from janus_jax.runs.start import find_start, open_start
from janus_jax.training.state import Placement, flatten


@dataclasses.dataclass(frozen=True, eq=False)
class BenchmarkModel:
  """A model to measure.

  Attributes:
    config: of a run.
    model: architecture.
    make_params: gives the parameters, in what a run of the config begins with: numpy arrays of a checkpoint, or
      random ones made on the mesh, anew for each call, so that whoever asks may give them up.
    placement: mesh and shardings.
  """

  config: TrainConfig
  model: JanusConfig
  make_params: Callable[[], Any]
  placement: Placement


def read_subject(config: TrainConfig, recipe: str) -> BenchmarkModel:
  """The model that a run of the config would start from; with random weights where `init_from` names none.

  Args:
    config: of a run.
    recipe: path of its file.

  Raises:
    InputError: no model is named, or its mesh does not fit the devices.
  """
  start = find_start(config, recipe)
  placement = make_placement(config.mesh, start.model)
  make_params = _sampling(start.model, config.seed, start.dtypes, placement)
  if config.init_from:
    params = jax.tree.map(np.asarray, load_params(open_start(config), None))
    make_params = lambda: params  # noqa: E731
  return BenchmarkModel(config, start.model, make_params, placement)


def _sampling(model: JanusConfig, seed: int, dtypes: Mapping[str, str], placement: Placement) -> Callable[[], Any]:
  return functools.partial(sample_on_devices, model, seed, dtypes, placement.params)


def peak_memory() -> tuple[str, int]:
  """('bytes_of_device', peak so far), or ('bytes_of_process', ...) where a device does not say."""
  statistics = jax.local_devices()[0].memory_stats() or {}
  if 'peak_bytes_in_use' in statistics:
    return 'peak_bytes_of_device', statistics['peak_bytes_in_use']
  import resource

  unit = 1 if os.uname().sysname == 'Darwin' else 1024
  return 'peak_bytes_of_process', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resized(subject: BenchmarkModel, length: int, depth: int) -> BenchmarkModel:
  """The same with rows of another length, or a decoder of another depth and then with random weights.

  Args:
    subject: what is measured.
    length: positions of a row.
    depth: layers of the decoder.
  """
  config = dataclasses.replace(subject.config, sequence_length=length)
  if depth == subject.model.language_model.depth:
    return dataclasses.replace(subject, config=config)
  decoder = dataclasses.replace(subject.model.language_model, depth=depth)
  model = dataclasses.replace(subject.model, language_model=decoder)
  shapes = flatten(jax.eval_shape(subject.make_params))
  dtypes = {path: leaf.dtype.name for path, leaf in shapes.items()}
  placement = Placement.of(subject.placement.mesh, parameter_shapes(model))
  return BenchmarkModel(config, model, _sampling(model, config.seed, dtypes, placement), placement)
