"""Choice of how much of the forward pass is kept for the backward one: the fastest policy that fits, by formula.

'full' computes the layers a second time, a quarter of all work. 'dots' keeps the results of products and attention: by
byte, all of them save about as much. 'none' would keep three times as many bytes for norms, rotations and activations,
which cost little more to compute again than to read, so that 'auto' never takes it.
"""

import dataclasses
import math
import os
import types
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from janus_jax.models.config import JanusConfig
from janus_jax.models.lora import is_adapter
from janus_jax.sharding.accelerators import ACCELERATORS
from janus_jax.sharding.mesh import rows_split
from janus_jax.training.optimizer import steps_by_muon
from janus_jax.training.run_config import expected_samples
from janus_jax.training.stages import Stage, adapted_groups, trained_paths
from janus_jax.training.state import Placement
from janus_jax.training.step import StepConfig

Shapes = Mapping[str, tuple[int, ...]]
Dtypes = Mapping[str, str]  # Path -> name of a dtype.
FLOAT32: Dtypes = types.MappingProxyType({})  # Nothing is said.

# Fraction of a program's memory that the formula may fill: it knows no workspaces and no fragmentation.
USABLE = 0.9
# Fraction of a GPU's memory that JAX takes unless its environment says otherwise.
GPU_FRACTION = 0.75


def usable_bytes(device: jax.Device) -> float | None:
  """Bytes that a step may fill, by the device's kind, so that all hosts agree; None for a CPU or an unknown one."""
  found = ACCELERATORS.get(device.device_kind)
  if found is None:
    return None
  fraction = float(os.environ.get('XLA_PYTHON_CLIENT_MEM_FRACTION', GPU_FRACTION)) if device.platform == 'gpu' else 1.0
  return found.memory * fraction * USABLE


def kept_bytes(model: JanusConfig, dtype: str, remat: str, tensor: int = 1) -> tuple[int, int]:
  """Bytes kept for the backward pass, by position of the decoder and by patch of the understanding encoder.

  A layer keeps its input [D]. With 'dots' also q [N, H], k and v [K, H], attention's output [N, H] and the logarithm
  of its sums, float32[N], the output's product [D], and the activation's input: gate and up, 2 [F]; in SigLIP one [F].

  `remat` is 'full' or 'dots'; `tensor` is the number of devices that heads and hidden units are split over.
  """
  size, llama, siglip = jnp.dtype(dtype).itemsize, model.language_model, model.vision_encoder
  decoder, encoder = size * llama.width, size * siglip.width
  if remat == 'dots':
    heads = llama.num_heads * llama.head_dim + llama.num_kv_heads * llama.head_dim + llama.mlp_dim
    decoder += size * llama.width + (2 * size * heads + 4 * llama.num_heads) // tensor
    encoder += size * siglip.width + (size * (4 * siglip.width + siglip.mlp_dim) + 4 * siglip.num_heads) // tensor
  return llama.depth * decoder, siglip.depth * encoder


def working_bytes(model: JanusConfig, dtype: str) -> int:
  """Bytes by position that a step needs besides: one layer's values and gradients, embeddings and logits.

  One layer without rematerialisation hands on 6 F + 17 D numbers. A quarter more is above what the TPU compiler took
  for 16 stages of the 1B and the 7B: with 'full', `step_bytes` is 1.02 to 1.17 times its peaks (1.2 to 1.3 in Stage I).
  """
  llama = model.language_model
  return jnp.dtype(dtype).itemsize * (7 * llama.mlp_dim + 22 * llama.width)


def state_bytes(
  step: StepConfig, trained: frozenset[str], placement: Placement, shapes: Shapes, dtypes: Dtypes = FLOAT32
) -> int:
  """Bytes of a device that do not depend on rows.

  A parameter that trains is stored in float32, with its moments (two; one where Muon steps it), its gradient and, by
  `step`, its average and the sum of its gradients. Outside of the loops over layers it may have a copy in the dtype
  that it is multiplied in. Frozen parameters are stored in their `dtypes`, path -> name; float32 where nothing is said.
  """
  optimizer, copy = step.optimizer, jnp.dtype(step.compute.dtype).itemsize
  moment, average = jnp.dtype(optimizer.moment_dtype).itemsize, 4 if optimizer.ema_decay else 0
  sums = jnp.dtype(optimizer.gradient_sum_dtype).itemsize if step.accumulation > 1 else 0
  held = {path: math.prod(placement.params[path].shard_shape(shape)) for path, shape in shapes.items()}
  copied = copy * sum(count for path, count in held.items() if '/layers/' not in path)
  stored = {path: jnp.dtype(dtypes.get(path, 'float32')).itemsize for path in held}
  moments = {path: moment * (1 if steps_by_muon(optimizer, path) else 2) for path in trained}
  training = {path: 8 + moments[path] + average + sums for path in trained}
  return copied + sum(n * training.get(path, stored[path]) for path, n in held.items())


def step_bytes(
  step: StepConfig,
  stages: Sequence[Stage],
  placement: Placement,
  shapes: Shapes,
  length: int,
  remat: str,
  dtypes: Dtypes = FLOAT32,
) -> int:
  """Bytes of a device at the worst moment of the largest step of a run, with the state of all that ever trains.

  The gradient of `lm_head` is summed over chunks of logits in float32, whole on each device (losses.py), unless factors
  of LoRA are all that trains in the decoder.
  """
  mesh, model, dtype = placement.mesh, step.model, step.compute.dtype
  decoder, encoder = kept_bytes(model, dtype, remat, mesh.shape['tensor'])
  trained, largest = frozenset(), 0.0
  steps = [step.for_stage(stage) for stage in stages]
  for stage, own in zip(stages, steps):
    paths = trained_paths(stage, placement.params)
    trained |= paths
    tokens = sum(part * size for part, size in zip(stage.ratio, stage.expected_tokens))
    seen = stage.ratio[0] * model.num_image_tokens / tokens
    patches = seen * encoder if any(path.startswith('vision_encoder/') for path in paths) else 0.0
    each, samples = decoder + working_bytes(model, dtype), expected_samples(stage)
    parts = rows_split(mesh) * own.accumulation * mesh.shape['context']
    if stage.reads_data:
      largest = max(largest, stage.batch_size * length / parts * (each + patches))
    if samples:
      largest = max(largest, samples.rows * samples.length / parts * each)
  heads = 4 * model.language_model.vocab_size * model.language_model.width // mesh.shape['tensor']
  if 'language_model' in adapted_groups(trained):
    heads = 0
  accumulating = max(steps, key=lambda own: own.accumulation)
  held = state_bytes(accumulating, trained, placement, shapes, dtypes)
  if any(stage.has_reference for stage in stages):
    compared = (path for path in trained if not is_adapter(path))
    held += 4 * sum(math.prod(placement.params[path].shard_shape(shapes[path])) for path in compared)
  return held + heads + math.ceil(largest)


def with_remat(
  step: StepConfig,
  stages: Sequence[Stage],
  placement: Placement,
  shapes: Shapes,
  length: int,
  dtypes: Dtypes = FLOAT32,
) -> StepConfig:
  """`step` with 'auto' replaced by 'dots' where the device is known to have the memory for all stages, else by 'full'.

  `shapes` are {path: shape} of all parameters, `dtypes` those that they are stored in; a row has `length` positions.
  """
  if step.compute.remat != 'auto':
    return step
  usable = usable_bytes(placement.mesh.devices.flat[0])
  fits = usable is not None and step_bytes(step, stages, placement, shapes, length, 'dots', dtypes) <= usable
  return dataclasses.replace(step, compute=dataclasses.replace(step.compute, remat='dots' if fits else 'full'))
