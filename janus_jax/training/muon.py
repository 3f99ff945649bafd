"""Muon: steps of matrices whose singular values are all alike, so that rare directions move as far as frequent ones."""

import math

import jax
import optax

from janus_jax.errors import InputError

Axes = optax.contrib.MuonDimensionNumbers
MOMENTUM = 0.95
# Root mean square of a step at a rate of 1, about AdamW's, whose rates and decay therefore fit (arXiv 2502.16982, 2.2).
STEP_SIZE = 0.2


def kernel_axes(path: str, shape: tuple[int, ...]) -> Axes:
  """Axes of the inputs and of the outputs of a kernel [outputs, inputs] or a stack of them [layers, outputs, inputs],
  where the heads of attention have two axes.

  Raises:
    InputError: another parameter; no matrix.
  """
  axes = tuple(range(int('/layers/' in path), len(shape)))
  if not path.endswith('/kernel') or len(axes) not in (2, 3):
    raise InputError(f'optimizer.muon: {path}, shape {list(shape)}, is no matrix: expected patterns of kernels')
  split = 1 if path.endswith('/o/kernel') else -1
  return Axes(reduction_axis=axes[split:], output_axis=axes[:split])


def muon_directions(
  gradients: dict[str, jax.Array], momentum: dict[str, jax.Array], count: jax.Array
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
  """Directions of kernels {path: float32 array}, and their momentum after this gradient.

  A direction is the momentum with its singular values near 1 (five Newton-Schulz iterations of optax, in float32),
  times 0.2 and the root of the longer side.

  Args:
    gradients: of kernels alone.
    momentum: after the gradients before; zeros at first.
    count: int32, gradients before.
  """
  axes = {path: kernel_axes(path, kernel.shape) for path, kernel in gradients.items()}
  orthogonal = optax.contrib.scale_by_muon(beta=MOMENTUM, weight_dimension_numbers=axes)
  state = orthogonal.init(gradients)._replace(mu=momentum, count=count)
  directions, state = orthogonal.update(gradients, state)
  sides = {
    path: [math.prod(directions[path].shape[axis] for axis in side) for side in found] for path, found in axes.items()
  }
  return {path: STEP_SIZE * math.sqrt(max(sides[path])) * x for path, x in directions.items()}, state.mu
