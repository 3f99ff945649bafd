"""LoRA: low-rank factors beside the kernels of linear maps (arXiv 2106.09685).

A linear map x W becomes x W + scale * (x A) B, with W frozen. The parameter tree has, beside `kernel` [F, D] of a
module, `lora_a` [r, D], `lora_b` [F, r] and `lora_scale` [], each with the layer axis L first where the kernel has one.
Features F and inputs D are flattened. `layers.Linear` applies whatever it finds in its tree.

The base may also be rounded: then the module has `int8` [F, D] and `scale` [F] in the kernel's place, as in decoding.
"""

import dataclasses
import math
import re
import zlib
from collections.abc import Iterable, Mapping

import numpy as np

from janus_jax.errors import InputError

FACTORS = ('lora_a', 'lora_b')
SCALE = 'lora_scale'
BASE_DTYPES = ('', 'float32', 'bfloat16', 'int8')

Shapes = Mapping[str, tuple[int, ...]]  # Parameter path -> shape.


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Factors that train in place of the kernels that they stand beside.

  Attributes:
    rank: columns of A and rows of B; 0: no factors.
    alpha: the product of the factors is multiplied by alpha / rank.
    targets: linear maps that have factors: parameter groups, or regexes over the paths of modules.
    base_dtype: dtype that frozen kernels of the targets in loops over layers are kept in; '' keeps what the checkpoint
      stores.
  """

  rank: int = 0
  alpha: float = 32.0
  targets: tuple[str, ...] = ('language_model/layers/.*',)
  base_dtype: str = ''

  @property
  def scale(self) -> float:
    return self.alpha / self.rank


NO_LORA = LoraConfig()


def is_factor(path: str) -> bool:
  """True for A and B."""
  return path.rpartition('/')[2] in FACTORS


def is_adapter(path: str) -> bool:
  """True for A, B and their scale."""
  return path.rpartition('/')[2] in (*FACTORS, SCALE)


def linear_maps(shapes: Shapes) -> list[str]:
  """Modules that can have factors: those with a kernel, without the VQ's and the patches' convolutions."""
  modules = [path.removesuffix('/kernel') for path in shapes if path.endswith('/kernel')]
  return [module for module in modules if not re.match(r'vq/|.*/patch_embed$', module)]


def matrix_shape(module: str, kernel: tuple[int, ...]) -> tuple[tuple[int, ...], int, int]:
  """Layer axis ((L,) or ()), features F and inputs D of a linear map's kernel."""
  layers, axes = (kernel[:1], kernel[1:]) if '/layers/' in module else ((), kernel)
  inputs = 2 if module.endswith('/attn/o') else 1  # Heads and their dimensions.
  return layers, math.prod(axes[:-inputs]), math.prod(axes[-inputs:])


def factor_shapes(module: str, kernel: tuple[int, ...], rank: int) -> dict[str, tuple[int, ...]]:
  """Path -> shape of a module's A, B and scale."""
  layers, features, inputs = matrix_shape(module, kernel)
  shapes = ((*layers, rank, inputs), (*layers, features, rank), layers)
  return {f'{module}/{name}': shape for name, shape in zip((*FACTORS, SCALE), shapes)}


def target_modules(shapes: Shapes, targets: Iterable[str]) -> list[str]:
  """The linear maps that targets name. Raises InputError for a target that is no regex or matches none."""
  modules, found = linear_maps(shapes), set()
  for target in targets:
    regex = target if '/' in target else f'{re.escape(target)}(/.*)?'
    try:
      matches = {module for module in modules if re.fullmatch(regex, module)}
    except re.error as error:
      raise InputError(f'lora.targets: {target!r} is no regular expression ({error})') from None
    if not matches:
      example = modules[0] if modules else 'none here'
      raise InputError(
        f'lora.targets: {target!r} matches no linear map: expected a parameter group, or a regular expression over '
        f'paths such as {example}'
      )
    found |= matches
  return [module for module in modules if module in found]


def adapted_shapes(shapes: Shapes, config: LoraConfig) -> dict[str, tuple[int, ...]]:
  """Path -> shape of a tree with factors: those of `shapes` and of the factors, int8 in the place of kernels."""
  found = dict(shapes)
  for module in target_modules(shapes, config.targets) if config.rank else ():
    kernel = found[f'{module}/kernel']
    found |= factor_shapes(module, kernel, config.rank)
    layers, features, inputs = matrix_shape(module, kernel)
    if config.base_dtype == 'int8' and layers:
      del found[f'{module}/kernel']
      found |= {f'{module}/int8': (*layers, features, inputs), f'{module}/scale': (*layers, features)}
  return found


def new_factors(module: str, kernel: tuple[int, ...], config: LoraConfig, seed: int) -> dict[str, np.ndarray]:
  """float32 factors of a module with which it is what it was: B is 0, A uniform in +-1 / sqrt(D), as in peft."""
  a, b, scale = factor_shapes(module, kernel, config.rank).items()
  # By the path: a module's factors do not depend on what else has any.
  random = np.random.default_rng([seed, zlib.crc32(module.encode())])
  bound = a[1][-1] ** -0.5
  values = random.uniform(-bound, bound, a[1]), np.zeros(b[1]), np.full(scale[1], config.scale)
  return {path: value.astype(np.float32) for path, value in zip((a[0], b[0], scale[0]), values)}
