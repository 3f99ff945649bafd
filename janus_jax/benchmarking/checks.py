"""Checks of a device, without which its speed is worth nothing.

Attention kernels are compared with the plain one in float32 on the same device; two train steps and greedy choices with
the CPU, in float32.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.benchmarking import inference
from janus_jax.benchmarking.benchmark_model import BenchmarkModel
from janus_jax.benchmarking.train import Trainer, make_work
from janus_jax.conversion.translate import parameter_shapes
from janus_jax.inference.drawing import Window
from janus_jax.models.attention import IMPLEMENTATIONS, attention
from janus_jax.models.attention_choice import AttentionShape, objection, platform_of
from janus_jax.runs.config import replaced
from janus_jax.sharding.mesh import make_mesh
from janus_jax.training.state import Placement

# bfloat16 has 8 bits: one rounding is 0.4 %; gradients are sums of products of several.
KERNEL_TOLERANCE = 0.02
# Two steps in float32 with sums in another order.
LOSS_TOLERANCE = 1e-4
# Greedy choices compared in each row; with random weights two can be as likely but for rounding.
LEADING = 16
PROMPT, ANSWER = 12, 24  # Tokens.
WINDOWS = Window(), Window(4)  # Codes of a pass.
# Janus-Pro's heads. Rows of several examples and padding, as training packs them; their length is no power of two.
PACKED, IMAGES = AttentionShape(768, 128, True, True, 'bfloat16'), AttentionShape(576, 64, False, False, 'bfloat16')
ROWS, HEADS = 2, 4


@dataclasses.dataclass(frozen=True)
class DeviceCheck:
  """One comparison.

  Attributes:
    what: name for people.
    difference: relative for numbers, the fraction that differs for choices; None where the check failed to run.
    tolerance: largest difference that is right.
    error: why it did not run, '' if it did.
  """

  what: str
  difference: float | None
  tolerance: float
  error: str = ''

  @property
  def ok(self) -> bool:
    return self.difference is not None and self.difference <= self.tolerance

  def to_dict(self) -> dict[str, Any]:
    found = {'check': self.what, 'difference': self.difference, 'tolerance': self.tolerance, 'ok': self.ok}
    return found | ({'error': self.error} if self.error else {})


def check_device(model: BenchmarkModel) -> list[DeviceCheck]:
  """All checks of the first device with a small model. One that raises has failed; the others are made all the same."""
  device, cpu = jax.devices()[0], jax.devices('cpu')[0]
  checks: list[tuple[str, float, Callable[[], Iterator[DeviceCheck]]]] = [
    (f'attention {name}, {_described(shape)}', KERNEL_TOLERANCE, functools.partial(_attention, name, shape))
    for shape in (PACKED, IMAGES)
    for name in IMPLEMENTATIONS
    if name != 'xla' and objection(name, platform_of(device), shape) is None
  ]
  params = jax.tree.map(np.asarray, model.make_params())
  here, there = (_on(model, params, one) for one in (device, cpu))
  checks += [
    ('losses of two train steps', LOSS_TOLERANCE, lambda: _steps(here, there)),
    ('greedy codes', 0.0, lambda: _same('greedy codes', _codes, here, there)),
    ('greedy answers', 0.0, lambda: _same('greedy answers', _answers, here, there)),
  ]
  found = []
  for what, tolerance, check in checks:
    try:
      found += check()
    except Exception as error:  # Whatever a kernel or a compiler raises: the rest is worth knowing too.
      reason = f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'
      found.append(DeviceCheck(what, None, tolerance, reason))
  return found


def _described(shape: AttentionShape) -> str:
  return 'packed rows' if shape.packed else 'images'


def _attention(name: str, shape: AttentionShape) -> Iterator[DeviceCheck]:
  """Forward and gradients of a kernel, against the plain one with the same rounded inputs."""
  named = zip(('forward', 'dq', 'dk', 'dv'), _results(name, shape, shape.dtype), _exact(shape), strict=True)
  for what, found, exact in named:
    difference = np.abs(found - exact).max() / np.abs(exact).max()
    yield DeviceCheck(f'attention {name}, {_described(shape)}, {what}', float(difference), KERNEL_TOLERANCE)


@functools.cache
def _exact(shape: AttentionShape) -> list[np.ndarray]:
  return _results('xla', shape, 'float32')


def _results(name: str, shape: AttentionShape, dtype: str) -> list[np.ndarray]:
  """Output of a kernel for inputs that are rounded to the shape's dtype, and gradients of q, k and v."""
  keys = jax.random.split(jax.random.key(0), 4)
  size = (ROWS, shape.length, HEADS, shape.head_dim)
  *inputs, weights = (jax.random.normal(key, size, jnp.float32).astype(shape.dtype) for key in keys)
  segments = _segments(shape.length) if shape.packed else None
  real = np.ones((ROWS, shape.length), bool) if segments is None else np.asarray(segments) > 0
  weights = weights * real[..., None, None]  # Nobody reads what padding attends to.

  @jax.jit
  def outputs(q, k, v):
    call = functools.partial(attention, segments=segments, causal=shape.causal, implementation=name)
    attended, pull = jax.vjp(call, q, k, v)
    return [attended * real[..., None, None], *pull(weights.astype(attended.dtype))]

  with jax.default_matmul_precision('highest'):
    return [np.asarray(x, np.float64) for x in outputs(*(x.astype(dtype) for x in inputs))]


def _segments(length: int) -> jax.Array:
  """int32[ROWS, length]: examples of unequal lengths one after another, the last row with padding at its end."""
  bounds = np.array([[0.3, 0.35, 0.9], [0.1, 0.6, 0.8]]) * length
  segments = 1 + (np.arange(length)[None, :, None] >= bounds[:, None]).sum(-1)
  segments[-1][segments[-1] == 4] = 0
  return jnp.asarray(segments, jnp.int32)


def _on(model: BenchmarkModel, params: Any, device: jax.Device) -> BenchmarkModel:
  """The model in float32, with these parameters, on one device."""
  placement = Placement.of(make_mesh({}, [device]), parameter_shapes(model.config))
  run = replaced(model.run, {'compute.dtype': 'float32'})
  return dataclasses.replace(model, run=run, make_params=lambda: params, placement=placement)


def _steps(here: BenchmarkModel, there: BenchmarkModel) -> Iterator[DeviceCheck]:
  def losses(model: BenchmarkModel) -> list[float]:
    device = model.placement.mesh.devices.flat[0]
    with jax.default_device(device), jax.default_matmul_precision('highest'):
      trainer = Trainer(make_work(model, model.run.find_stage(None), holds_codes=False))
      return [trainer.run(1) for _ in range(2)]

  for index, (ours, exact) in enumerate(zip(losses(here), losses(there))):
    yield DeviceCheck(f'loss of train step {index + 1}', abs(ours - exact) / abs(exact), LOSS_TOLERANCE)


def _codes(model: BenchmarkModel) -> np.ndarray:
  guidance = float(model.run.sampling.cfg_weight)
  prompts = inference.image_prompts(model, 2, PROMPT, guidance)
  decoder = inference.benchmark_decoder(model, 'float32')
  sampled = (inference.sample_codes(decoder, prompts, guidance, inference.GREEDY, window) for window in WINDOWS)
  return np.stack([found.codes for found in sampled])


def _answers(model: BenchmarkModel) -> np.ndarray:
  decoder = inference.benchmark_decoder(model, 'float32')
  return inference.answer_tokens(decoder, inference.questions(model, 2, PROMPT), ANSWER)[0]


def _same(
  what: str, choices: Callable[[BenchmarkModel], np.ndarray], here: BenchmarkModel, there: BenchmarkModel
) -> Iterator[DeviceCheck]:
  """Compares the first choices of each row int[R, n]."""
  found = []
  for model in (here, there):
    with jax.default_device(model.placement.mesh.devices.flat[0]):
      found.append(choices(model)[:, :LEADING])
  yield DeviceCheck(f'{what}, the first {LEADING} of each row', float((found[0] != found[1]).mean()), 0.0)
