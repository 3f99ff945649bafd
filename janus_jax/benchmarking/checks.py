"""Checks of a device, without which its speed is worth nothing: attention kernels, two train steps, greedy choices.

Kernels are compared with the plain one in float32 on the same device; the rest with the CPU, in float32.
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
from janus_jax.inference.sampling import Sampling
from janus_jax.models.attention import IMPLEMENTATIONS, attention
from janus_jax.models.attention_choice import AttentionShape, objection, platform_of
from janus_jax.runs.config import TrainConfig
from janus_jax.sharding.mesh import make_mesh
from janus_jax.training.state import Placement

# bfloat16 has 8 bits: one rounding is 0.4 %; gradients are sums of products of several.
KERNEL_TOLERANCE = 0.02
# Two steps in float32, whose sums are in another order.
LOSS_TOLERANCE = 1e-4
# So many greedy choices of each row; with random weights two can be as likely but for rounding.
LEADING = 16
PROMPT, ANSWER = 12, 24  # Tokens.
# Heads as Janus-Pro has them. Rows of several examples and padding, as training packs them; their length is no power of
# two.
PACKED, IMAGES = AttentionShape(768, 128, True, True, 'bfloat16'), AttentionShape(576, 64, False, False, 'bfloat16')
ROWS, HEADS = 2, 4


@dataclasses.dataclass(frozen=True)
class DeviceCheck:
  """Something that was compared.

  Attributes:
    what: in words.
    difference: relative for numbers, the share that differs for choices; None where the check failed to run.
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


def check_device(config: TrainConfig, subject: BenchmarkModel) -> list[DeviceCheck]:
  """Everything, on the first device. A check that raises has failed; the others are made all the same.

  Args:
    config: of a run, in float32.
    subject: a small model.
  """
  device, cpu = jax.devices()[0], jax.devices('cpu')[0]
  makers: list[tuple[str, float, Callable[[], Iterator[DeviceCheck]]]] = [
    (f'attention {name}, {_words(shape)}', KERNEL_TOLERANCE, functools.partial(_attention, name, shape))
    for shape in (PACKED, IMAGES)
    for name in IMPLEMENTATIONS
    if name != 'xla' and objection(name, platform_of(device), shape) is None
  ]
  params = jax.tree.map(np.asarray, subject.make_params())
  here, there = (_on(subject, config, params, place) for place in (device, cpu))
  makers += [
    ('losses of two train steps', LOSS_TOLERANCE, functools.partial(_steps, here, there)),
    ('greedy codes', 0.0, functools.partial(_codes, here, there)),
    ('greedy answers', 0.0, functools.partial(_answers, here, there)),
  ]
  found = []
  for what, tolerance, make in makers:
    try:
      found += make()
    except Exception as error:  # Whatever a kernel or a compiler raises: the rest is worth knowing too.
      reason = f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'
      found.append(DeviceCheck(what, None, tolerance, reason))
  return found


def _words(shape: AttentionShape) -> str:
  return 'packed rows' if shape.packed else 'images'


def _attention(name: str, shape: AttentionShape) -> Iterator[DeviceCheck]:
  """Forward and gradients of a kernel, against the plain one with the same rounded inputs."""
  named = zip(('forward', 'dq', 'dk', 'dv'), _results(name, shape, shape.dtype), _exact(shape), strict=True)
  for what, found, exact in named:
    difference = np.abs(found - exact).max() / np.abs(exact).max()
    yield DeviceCheck(f'attention {name}, {_words(shape)}, {what}', float(difference), KERNEL_TOLERANCE)


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
    mixed, pull = jax.vjp(call, q, k, v)
    return [mixed * real[..., None, None], *pull(weights.astype(mixed.dtype))]

  with jax.default_matmul_precision('highest'):
    return [np.asarray(x, np.float64) for x in outputs(*(x.astype(dtype) for x in inputs))]


def _segments(length: int) -> jax.Array:
  """int32[ROWS, length]: examples of unequal lengths one after another, the last row with padding at its end."""
  bounds = np.array([[0.3, 0.35, 0.9], [0.1, 0.6, 0.8]]) * length
  segments = 1 + (np.arange(length)[None, :, None] >= bounds[:, None]).sum(-1)
  segments[-1][segments[-1] == 4] = 0
  return jnp.asarray(segments, jnp.int32)


def _on(subject: BenchmarkModel, config: TrainConfig, params: Any, device: jax.Device) -> BenchmarkModel:
  """Places the model, with these parameters, on one device."""
  placement = Placement.of(make_mesh({}, [device]), parameter_shapes(subject.model))
  return dataclasses.replace(subject, config=config, make_params=lambda: params, placement=placement)


def _steps(here: BenchmarkModel, there: BenchmarkModel) -> Iterator[DeviceCheck]:
  def losses(subject: BenchmarkModel) -> list[float]:
    device = subject.placement.mesh.devices.flat[0]
    with jax.default_device(device), jax.default_matmul_precision('highest'):
      trainer = Trainer(make_work(subject, subject.config.find_stage(None), holds_codes=False))
      return [trainer.run(1) for _ in range(2)]

  for index, (ours, exact) in enumerate(zip(losses(here), losses(there))):
    yield DeviceCheck(f'loss of train step {index + 1}', abs(ours - exact) / abs(exact), LOSS_TOLERANCE)


def _codes(here: BenchmarkModel, there: BenchmarkModel) -> Iterator[DeviceCheck]:
  guidance = float(here.config.sampling.cfg_weight)

  def codes(subject: BenchmarkModel) -> np.ndarray:
    prompts = inference.drawing_prompts(subject, 2, PROMPT, guidance)
    return inference.draw_codes(_decoder(subject), prompts, guidance, Sampling(temperature=0.0))

  yield _same('greedy codes', codes, here, there)


def _answers(here: BenchmarkModel, there: BenchmarkModel) -> Iterator[DeviceCheck]:
  def answers(subject: BenchmarkModel) -> np.ndarray:
    return inference.answer_tokens(_decoder(subject), inference.questions(subject, 2, PROMPT), ANSWER)[0]

  yield _same('greedy answers', answers, here, there)


def _decoder(subject: BenchmarkModel) -> Any:
  return inference.benchmark_decoder(subject, 'float32')


def _same(
  what: str, choices: Callable[[BenchmarkModel], np.ndarray], here: BenchmarkModel, there: BenchmarkModel
) -> DeviceCheck:
  """Compares the first choices of each row int[R, n]."""
  found = []
  for subject in (here, there):
    with jax.default_device(subject.placement.mesh.devices.flat[0]):
      found.append(choices(subject)[:, :LEADING])
  return DeviceCheck(f'{what}, the first {LEADING} of each row', float((found[0] != found[1]).mean()), 0.0)
