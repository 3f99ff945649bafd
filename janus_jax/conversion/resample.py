"""Parameters for other image sizes: the table of patch positions is resampled, everything else stays."""

from collections.abc import Mapping

import numpy as np

from janus_jax.conversion.lazy import LazyArray
from janus_jax.models.siglip import POSITIONS, resample_positions


def with_grid(params: Mapping[str, LazyArray], grid: int) -> Mapping[str, LazyArray]:
  """The parameters of a Janus for another grid of patches."""
  table = params[POSITIONS]
  if table.shape[0] == grid * grid:
    return params

  def read(index: tuple) -> np.ndarray:
    return np.asarray(resample_positions(table[...], grid))[index]

  return {**params, POSITIONS: LazyArray((grid * grid, table.shape[1]), table.dtype, read, table.origin)}
