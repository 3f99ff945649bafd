"""Model that is benchmarked: a config's, with weights, on the config's mesh."""

import dataclasses
import functools
import os
from collections.abc import Callable
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
from janus_jax.training.stages import stage_models
from janus_jax.training.state import Placement, flatten


@dataclasses.dataclass(frozen=True, eq=False)
class BenchmarkModel:
  """A model to measure.

  Attributes:
    run: config of a run.
    config: architecture.
    make_params: gives the parameters, in the dtypes that a run of the config begins with: numpy arrays of a checkpoint,
      or random ones made on the mesh, anew for each call, so that the caller may give them up.
    placement: mesh and shardings.
  """

  run: TrainConfig
  config: JanusConfig
  make_params: Callable[[], Any]
  placement: Placement


def open_model(run: TrainConfig, recipe: str, stage: str | None = None) -> BenchmarkModel:
  """Opens the model that a run would start from, with random weights where `init_from` names none.

  Args:
    run: config of a run.
    recipe: path of its file.
    stage: gives the sizes of images; None: the last one.

  Raises:
    InputError: neither the config nor its recipe's path names a model, or its mesh does not fit the devices.
  """
  start, index = find_start(run, recipe), run.run.index(run.find_stage(stage).name)
  model = stage_models(start.model, run.run_stages)[index]
  placement = make_placement(run.mesh, model, run.lora)
  if run.init_from:
    sized = open_start(run).resized(*model.sizes)
    params = jax.tree.map(np.asarray, load_params(sized, None))
    return BenchmarkModel(run, model, lambda: params, placement)
  shapes = parameter_shapes(model, run.lora)
  make_params = functools.partial(sample_on_devices, shapes, run.seed, start.dtypes, placement.params)
  return BenchmarkModel(run, model, make_params, placement)


def peak_memory() -> dict[str, int]:
  """The peak so far, `peak_bytes_of_device`, or `peak_bytes_of_process` where a device does not say.

  It counts whatever runs in the process, so it is asked before there is a peer.
  """
  statistics = jax.local_devices()[0].memory_stats() or {}
  if 'peak_bytes_in_use' in statistics:
    return {'peak_bytes_of_device': statistics['peak_bytes_in_use']}
  import resource

  unit = 1 if os.uname().sysname == 'Darwin' else 1024
  return {'peak_bytes_of_process': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


def resized(model: BenchmarkModel, length: int, depth: int) -> BenchmarkModel:
  """Returns the model with rows of `length` positions and a decoder of `depth` layers, random if these are new."""
  run = dataclasses.replace(model.run, sequence_length=length)
  if depth == model.config.language_model.depth:
    return dataclasses.replace(model, run=run)
  decoder = dataclasses.replace(model.config.language_model, depth=depth)
  config = dataclasses.replace(model.config, language_model=decoder)
  dtypes = {path: leaf.dtype.name for path, leaf in flatten(jax.eval_shape(model.make_params)).items()}
  shapes = parameter_shapes(config, run.lora)
  placement = Placement.of(model.placement.mesh, shapes)
  make_params = functools.partial(sample_on_devices, shapes, run.seed, dtypes, placement.params)
  return BenchmarkModel(run, config, make_params, placement)
