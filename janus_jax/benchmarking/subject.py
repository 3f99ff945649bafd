"""What is benchmarked: a config's model with weights, on the config's mesh."""

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from janus_jax.conversion.load import load_params
from janus_jax.conversion.translate import parameter_shapes
from janus_jax.models.config import JanusConfig
from janus_jax.models.initialization import initial_params
from janus_jax.planning import find_start
from janus_jax.sharding.mesh import make_mesh
from janus_jax.training.config_checks import check_config
from janus_jax.training.state import Placement, flatten, unflatten
from janus_jax.training_run import open_start


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
  """A model to measure.

  Attributes:
    config: of a run.
    model: architecture.
    params: numpy arrays, in what a run of the config begins with.
    placement: mesh and shardings.
  """

  config: ConfigDict
  model: JanusConfig
  params: Any
  placement: Placement


def read_subject(config: ConfigDict, recipe: str) -> Subject:
  """The model that a run of the config would start from; with random weights where `init_from` names none.

  Args:
    config: of a run.
    recipe: path of its file.

  Raises:
    InputError: no model is named, or its mesh does not fit the devices.
  """
  check_config(config)
  start = find_start(config, recipe)
  placement = Placement.of(make_mesh(config.mesh.to_dict()), parameter_shapes(start.model))
  if config.init_from:
    params = jax.tree.map(np.asarray, load_params(open_start(config), None))
  else:
    flat = flatten(initial_params(start.model, config.seed))
    params = unflatten({path: leaf.astype(jnp.dtype(start.dtypes[path])) for path, leaf in flat.items()})
  return Subject(config, start.model, params, placement)


def peak_memory() -> tuple[str, int]:
  """('bytes_of_device', peak so far), or ('bytes_of_process', ...) where a device does not say."""
  statistics = jax.local_devices()[0].memory_stats() or {}
  if 'peak_bytes_in_use' in statistics:
    return 'peak_bytes_of_device', statistics['peak_bytes_in_use']
  import resource

  unit = 1 if os.uname().sysname == 'Darwin' else 1024
  return 'peak_bytes_of_process', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resized(subject: Subject, length: int, depth: int) -> Subject:
  """The same with rows of another length, or a decoder of another depth and then with random weights.

  Args:
    subject: what is measured.
    length: positions of a row.
    depth: layers of the decoder.
  """
  config = subject.config.copy_and_resolve_references()
  config.sequence_length = length
  if depth == subject.model.language_model.depth:
    return dataclasses.replace(subject, config=config)
  decoder = dataclasses.replace(subject.model.language_model, depth=depth)
  model = dataclasses.replace(subject.model, language_model=decoder)
  dtypes = {path: leaf.dtype for path, leaf in flatten(subject.params).items()}
  flat = flatten(initial_params(model, config.seed))
  params = unflatten({path: leaf.astype(dtypes[path]) for path, leaf in flat.items()})
  placement = Placement.of(subject.placement.mesh, parameter_shapes(model))
  return Subject(config, model, params, placement)
